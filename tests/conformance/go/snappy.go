package main

import (
	"io"

	"github.com/golang/snappy"
	"google.golang.org/grpc/encoding"
)

// snappyCompressor is the framed snappy that clients of Regatta and Armada send by default.
type snappyCompressor struct{}

func init() { encoding.RegisterCompressor(snappyCompressor{}) }

func (snappyCompressor) Name() string { return "snappy" }

func (snappyCompressor) Compress(writer io.Writer) (io.WriteCloser, error) {
	return snappy.NewBufferedWriter(writer), nil
}

func (snappyCompressor) Decompress(reader io.Reader) (io.Reader, error) {
	return snappy.NewReader(reader), nil
}
