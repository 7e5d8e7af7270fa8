// A Go client as Flotta's users have them: grpc-go with a compressor chosen by flag. It writes keys, reads them back,
// asks for one that is not there, and prints what it saw as one JSON line for the test that runs it.
//
// The messages are built by hand (protowire): the wire is what is under test, and nothing has to be generated.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

const service = "/kvdb.gateway.KvGateway/"

// Field numbers of proto/kvdb/gateway.proto.
const (
	getKey, putKey, putValue  = 2, 2, 3
	replyStatus, replyKv      = 1, 2
	statusCode, keyValueValue = 1, 2
	codeOK, codeNotFound      = 1, 3
)

// raw hands bytes through: a codec for messages that are encoded already.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(data)
	return nil
}

// encodings remembers with which encoding each answer came.
type encodings struct {
	mutex sync.Mutex
	seen  map[string]int
}

func (e *encodings) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (e *encodings) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (e *encodings) HandleConn(context.Context, stats.ConnStats)                       {}
func (e *encodings) HandleRPC(_ context.Context, event stats.RPCStats) {
	header, ok := event.(*stats.InHeader)
	if !ok || !header.Client {
		return
	}
	name := header.Compression
	if name == "" {
		name = "identity"
	}
	e.mutex.Lock()
	e.seen[name]++
	e.mutex.Unlock()
}

type client struct {
	connection *grpc.ClientConn
	options    []grpc.CallOption
}

func (c *client) call(method string, request []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var reply []byte
	err := c.connection.Invoke(ctx, service+method, &request, &reply, c.options...)
	return reply, err
}

// field finds the last value of a length-delimited or varint field; nil and 0 when it is not there.
func field(message []byte, wanted protowire.Number) (content []byte, number uint64, err error) {
	for len(message) > 0 {
		found, kind, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return nil, 0, protowire.ParseError(tag)
		}
		size := protowire.ConsumeFieldValue(found, kind, message[tag:])
		if size < 0 {
			return nil, 0, protowire.ParseError(size)
		}
		if found == wanted && kind == protowire.BytesType {
			content, _ = protowire.ConsumeBytes(message[tag:])
		}
		if found == wanted && kind == protowire.VarintType {
			number, _ = protowire.ConsumeVarint(message[tag:])
		}
		message = message[tag+size:]
	}
	return content, number, nil
}

func code(reply []byte) (uint64, error) {
	inner, _, err := field(reply, replyStatus)
	if err != nil {
		return 0, err
	}
	_, number, err := field(inner, statusCode)
	return number, err
}

func bytesField(message []byte, number protowire.Number, content []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(message, number, protowire.BytesType), content)
}

func (c *client) put(key, value []byte) error {
	reply, err := c.call("Put", bytesField(bytesField(nil, putKey, key), putValue, value))
	if err != nil {
		return err
	}
	if got, err := code(reply); err != nil || got != codeOK {
		return fmt.Errorf("put %s: status %d, %v", key, got, err)
	}
	return nil
}

func (c *client) get(key, wanted []byte) error {
	reply, err := c.call("Get", bytesField(nil, getKey, key))
	if err != nil {
		return err
	}
	pair, _, err := field(reply, replyKv)
	if err != nil {
		return err
	}
	value, _, err := field(pair, keyValueValue)
	if err != nil || !bytes.Equal(value, wanted) {
		return fmt.Errorf("get %s: %d bytes that are not the %d written, %v", key, len(value), len(wanted), err)
	}
	return nil
}

// missing asks for a key that is not there: NOT_FOUND, as a gRPC code or in the reply's own status.
func (c *client) missing(key []byte) error {
	reply, err := c.call("Get", bytesField(nil, getKey, key))
	if status.Code(err) == codes.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if got, err := code(reply); err != nil || got != codeNotFound {
		return fmt.Errorf("an absent key: status %d, %v", got, err)
	}
	return nil
}

func run() error {
	address := flag.String("address", "", "host:port of a gateway")
	compressor := flag.String("compressor", "identity", "identity, gzip or snappy")
	keys := flag.Int("keys", 20, "how many keys")
	valueBytes := flag.Int("value-bytes", 100_000, "size of each value")
	flag.Parse()
	seen := &encodings{seen: map[string]int{}}
	options := []grpc.CallOption{grpc.ForceCodec(raw{})}
	if *compressor != "identity" {
		options = append(options, grpc.UseCompressor(*compressor))
	}
	connection, err := grpc.NewClient(
		*address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStatsHandler(seen),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	c := &client{connection, options}
	pattern := []byte("flotta keeps what it was given; ")
	for number := range *keys {
		key := fmt.Appendf(nil, "go/%s/%d", *compressor, number)
		value := bytes.Repeat(append(fmt.Appendf(nil, "%d:", number), pattern...), *valueBytes/len(pattern)+1)[:*valueBytes]
		if err := errors.Join(c.put(key, value), c.get(key, value)); err != nil {
			return err
		}
	}
	if err := c.missing([]byte("go/nobody wrote this")); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"keys": *keys, "encodings": seen.seen})
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
