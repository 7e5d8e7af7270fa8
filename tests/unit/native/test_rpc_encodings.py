"""Encodings and metadata on the wire: every encoding both ways, big ones, bombs, damage; base64 and percent signs."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable

import cramjam
import flotta_native as native
import grpc
import pytest
import raw_http2 as h2
from rpc_harness import STREAM, UNARY, call_unary, channel_to, served, until
from rpc_raw import open_call, raw

Codec = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]
CODECS: dict[str, Codec] = {
    "gzip": (gzip.compress, gzip.decompress),
    "deflate": (zlib.compress, zlib.decompress),
    "zstd": (lambda data: bytes(cramjam.zstd.compress(data)), lambda data: bytes(cramjam.zstd.decompress(data))),
    "snappy": (
        lambda data: bytes(cramjam.snappy.compress(data)),
        lambda data: bytes(cramjam.snappy.decompress(data)),
    ),
}
INTERNAL, UNIMPLEMENTED, EXHAUSTED = 13, 12, 8


def call(stream: int, encoding: str, body: bytes, *, compressed: bool = True) -> bytes:
    return open_call(stream, grpc_encoding=encoding) + h2.data(
        stream, h2.message(body, compressed=compressed), end=True
    )


@pytest.mark.parametrize("encoding", CODECS)
def test_messages_are_unpacked_and_replies_packed_where_that_helps(encoding: str) -> None:
    pack, unpack = CODECS[encoding]
    with served() as running, raw(running.port) as client:
        # Small, worth it, packed on the blocking pool, big and dense.
        payloads = [b"tiny", b"ab" * 5_000, b"abcdefg" * 300_000, os.urandom(400_000)]
        for number, payload in enumerate(payloads):
            stream = 2 * number + 1
            client.send(call(stream, encoding, pack(payload)))
            assert client.code(stream) == 0
            packed, message = client.message(stream)
            assert packed == (number in (1, 2)), f"{len(payload)} bytes"
            assert (unpack(message) if packed else message) == payload
            assert client.answer(stream)["grpc-encoding"] == encoding
        client.send(call(9, encoding, b"not packed", compressed=False))
        assert client.code(9) == 0
        assert client.message(9) == (False, b"not packed")
        assert [call[2] for call in running.unary] == [*payloads, b"not packed"]
        stats = running.server.stats()
        assert (stats.packed_messages_in, stats.packed_messages_out) == (4, 2)
        until(lambda: running.server.stats().calls == 0)
        assert running.server.stats().request_bytes == 0


@pytest.mark.parametrize("encoding", CODECS)
def test_bombs_and_damage_are_refused_and_the_connection_goes_on(encoding: str) -> None:
    pack, _ = CODECS[encoding]
    with served(message_bytes_max=2 << 20) as running, raw(running.port) as client:
        bomb = pack(bytes(100 << 20))
        small_bomb = pack(bytes((2 << 20) + 1))
        client.send(call(1, encoding, bomb), call(3, encoding, small_bomb), call(5, encoding, b"\xff\x06damaged"))
        # The biggest bombs are refused by their length on the wire.
        assert [client.code(stream) for stream in (1, 3, 5)] == [EXHAUSTED, EXHAUSTED, INTERNAL]
        client.send(call(7, encoding, pack(b"good")))
        assert client.code(7) == 0
        assert [call[2] for call in running.unary] == [b"good"]
        until(lambda: running.server.stats().calls == 0)
        assert running.server.stats().request_bytes == 0


def test_unknown_encodings_and_flags_without_one_are_refused() -> None:
    with served() as running, raw(running.port) as client:
        client.send(call(1, "lz77", b"x"), call(3, "identity", b"x"))
        answer = client.answer(1)
        assert (answer["grpc-status"], answer["grpc-accept-encoding"]) == (
            str(UNIMPLEMENTED),
            "identity,gzip,deflate,zstd,snappy",
        )
        assert client.code(3) == INTERNAL
        client.send(open_call(5), h2.data(5, b"\x07\0\0\0\x01x", end=True))
        assert client.code(5) == INTERNAL
        client.send(open_call(7), h2.data(7, h2.message(b"xy", claimed_bytes=9), end=True))
        assert client.code(7) == INTERNAL
        assert running.unary == []


def test_a_message_over_the_bound_is_refused_at_its_prefix() -> None:
    with served(message_bytes_max=1_000) as running, raw(running.port) as client:
        client.send(open_call(1), h2.data(1, h2.message(b"", claimed_bytes=1_001)))
        assert client.code(1) == EXHAUSTED
        client.send(open_call(3), h2.data(3, h2.message(b"x" * 1_000), end=True))
        assert client.code(3) == 0


def test_stream_messages_are_packed_and_unpacked_in_order() -> None:
    pack, unpack = CODECS["zstd"]
    payloads = [b"a" * 200_000, b"small", b"b" * 10_000, b"c" * 150_000]
    with served() as running, raw(running.port) as client:

        def echo(event: tuple[int, int, int, object]) -> None:
            kind, number, _, data = event
            if kind == native.EVENT_MESSAGE:
                assert isinstance(data, bytes)
                running.server.credit(number, len(data))
                running.server.send_many([(number, data)])
            elif kind == native.EVENT_HALF_CLOSE:
                running.server.finish(number, 0)

        running.on_stream = echo
        body = b"".join(h2.message(pack(payload), compressed=True) for payload in payloads)
        client.send(open_call(1, STREAM, grpc_encoding="zstd"), h2.data(1, body, end=True))
        assert client.code(1) == 0
        received, left = [], client.data[1]
        while left:
            length = int.from_bytes(left[1:5])
            message = left[5 : 5 + length]
            received.append(unpack(message) if left[0] else message)
            left = left[5 + length :]
        assert received == payloads


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_grpcio_compresses_both_ways(compression: grpc.Compression) -> None:
    with served() as running, channel_to(running.address) as channel:
        payload = b"0123456789" * 100_000
        assert call_unary(channel, payload, compression=compression) == payload
        stats = running.server.stats()
        assert (stats.packed_messages_in, stats.packed_messages_out) == (1, 1)
        assert stats.bytes_in < 100_000 > stats.bytes_out


def test_binary_metadata_comes_in_every_spelling_and_goes_out_unpadded() -> None:
    with served(echo=False) as running, raw(running.port) as client:
        running.on_unary = lambda call: (call[0], 3, "100%\tß", b"", (("a-bin", b"\x01\x02"), ("b-bin", b"")))
        fields = [("x-bin", "AQI="), ("x-bin", "AQI,AQID , /w=="), ("k", "a,b"), ("user-agent", "me"), ("k", "c")]
        block = h2.call_headers(UNARY) + b"".join(h2.literal(name, value) for name, value in fields)
        client.send(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block), h2.data(1, h2.message(b""), end=True))
        answer = client.answer(1)
        assert answer["grpc-message"] == "100%25%09%C3%9F"
        assert (answer["a-bin"], answer["b-bin"]) == ("AQI", "")
        binary = [("x-bin", value) for value in (b"\1\2", b"\1\2", b"\1\2\3", b"\xff")]
        assert sorted(running.unary[0][3]) == sorted([*binary, ("k", "a,b"), ("k", "c")])
        client.send(open_call(3, x_bin="!!"), h2.data(3, h2.message(b""), end=True))
        assert client.code(3) == INTERNAL
        client.send(open_call(5, grpc_timeout="soon"), h2.data(5, h2.message(b""), end=True))
        assert client.code(5) == INTERNAL


def test_what_is_not_grpc_is_answered_by_http() -> None:
    with served() as running, raw(running.port) as client:
        fields = {":method": "GET", ":scheme": "http", ":path": "/", ":authority": "x"}
        get = b"".join(h2.literal(*field) for field in fields.items())
        client.send(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, get))
        assert client.answer(1)[":status"] == "405"
        client.send(open_call(3, end=True, content_type="text/html"))
        assert client.answer(3)[":status"] == "415"
        until(lambda: running.server.stats().calls == 0)
