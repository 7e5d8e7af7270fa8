"""HTTP/2 by hand: connections that may send anything at all, and that need not read, wait or keep a promise.

A `Connection` sends what its script yields and tallies what comes back (statuses, GOAWAYs, resets, ends); a `Crowd`
drives any number of them from one thread for a given time. Nothing here follows the protocol by itself, except that
a connection that reads also acknowledges SETTINGS and gives the server window again.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 3, 4
ERRORS = (
    *("NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED"),
    *("FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM"),
    *("INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"),
)
READ_BYTES = 1 << 18
UNSENT_BYTES = 1 << 15
PAUSE_S = 0.05
GONE = (errno.ECONNRESET, errno.EPIPE, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ETIMEDOUT)


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack("!IBI", len(body) << 8 | kind, flags, stream) + body


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack("!HI", *pair) for pair in pairs))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack("!I", increment))


def reset(stream: int, error: str = "CANCEL") -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack("!I", ERRORS.index(error)))


def literal(name: str, value: str) -> bytes:
    """A header field that leaves no trace in the receiver's table."""
    return b"\x00" + _text(name) + _text(value)


def indexing(name: str, value: str) -> bytes:
    """A header field that the receiver must remember."""
    return b"\x40" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    raw = text.encode()
    return integer(len(raw), 7, 0) + raw


def integer(value: int, prefix_bits: int, flags: int) -> bytes:
    """HPACK's integers."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([flags | value])
    found = bytearray([flags | most])
    value -= most
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def call_headers(path: str, authority: str = "flotta", **more: str) -> bytes:
    """The header block of a gRPC call; `more` with _ for -."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": authority, "te": "trailers"}
    fields |= {"content-type": "application/grpc", **{name.replace("_", "-"): value for name, value in more.items()}}
    return b"".join(literal(name, value) for name, value in fields.items())


def message(body: bytes, *, compressed: bool = False, claimed_bytes: int | None = None) -> bytes:
    """A gRPC message; `claimed_bytes` when it claims another length than it has."""
    return struct.pack("!BI", compressed, len(body) if claimed_bytes is None else claimed_bytes) + body


def data(stream: int, body: bytes, *, end: bool = False, frame_bytes: int = 16_384) -> bytes:
    pieces = [body[at : at + frame_bytes] for at in range(0, len(body), frame_bytes)] or [b""]
    last = len(pieces) - 1
    return b"".join(frame(DATA, END_STREAM if end and n == last else 0, stream, p) for n, p in enumerate(pieces))


def call(stream: int, headers: bytes, body: bytes) -> bytes:
    """A whole unary call."""
    return frame(HEADERS, END_HEADERS, stream, headers) + data(stream, message(body), end=True)


@dataclass
class Connection:
    """One connection of an attacker, and what its script may want to know."""

    answers: bool = True  # SETTINGS and PING acknowledged, window given; only where scripts send whole frames
    ended: int = 0  # streams that the server ended, one way or another
    streams_max: int = 1 << 31  # what the server allows, once it said so
    told: bool = False  # the server's SETTINGS came
    window: int = 65_535  # of the connection; scripts that keep to it take off what they send
    seen: Counter[str] = field(default_factory=Counter)
    _initial_window: int = 65_535
    _granted: Counter[int] = field(default_factory=Counter)
    _inbox: bytearray = field(default_factory=bytearray)
    _decoder: hpack.Decoder = field(default_factory=lambda: hpack.Decoder(max_header_list_size=1 << 20))
    _known: dict[bytes, tuple[str, ...]] = field(default_factory=dict)
    _headers: bytes = b""

    def stream_window(self, stream: int) -> int:
        """All that the server was ever ready to take on this stream."""
        return self._initial_window + self._granted[stream]

    def feed(self, chunk: bytes) -> bytes:
        """Take what the server sent; returns what must be answered."""
        self._inbox += chunk
        answers, at, data_bytes = [], 0, 0
        while len(self._inbox) - at >= 9:
            length = int.from_bytes(self._inbox[at : at + 3])
            if len(self._inbox) - at < 9 + length:
                break
            kind, flags, stream = struct.unpack_from("!BBI", self._inbox, at + 3)
            body = bytes(self._inbox[at + 9 : at + 9 + length])
            at += 9 + length
            data_bytes += length if kind == DATA else 0
            answers.append(self._take(kind, flags, stream, body))
        del self._inbox[:at]
        if data_bytes:
            answers.append(window_update(0, data_bytes))
        return b"".join(answers) if self.answers else b""

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> bytes:
        if kind in (HEADERS, CONTINUATION):
            self._headers += body
            if flags & END_HEADERS:
                block, self._headers = self._headers, b""
                for said in self._statuses(block):
                    self.seen[said] += 1
        elif kind == RST_STREAM:
            self.ended += 1
            self.seen[f"RST_STREAM {_error(body[:4])}"] += 1
        elif kind == GOAWAY:
            self.seen[f"GOAWAY {_error(body[4:8])}"] += 1
        elif kind == SETTINGS and not flags & ACK:
            self.told = True
            for at in range(0, len(body), 6):
                name, value = struct.unpack_from("!HI", body, at)
                if name == MAX_CONCURRENT_STREAMS:
                    self.streams_max = value
                elif name == INITIAL_WINDOW_SIZE:
                    self._initial_window = value
            return frame(SETTINGS, ACK, 0)
        elif kind == WINDOW_UPDATE:
            increment = int.from_bytes(body)
            if stream:
                self._granted[stream] += increment
            else:
                self.window += increment
        elif kind == PING and not flags & ACK:
            return frame(PING, ACK, 0, body)
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            self.ended += 1
        return b""

    def _statuses(self, block: bytes) -> tuple[str, ...]:
        """The statuses in a header block. One of table indexes alone changes no table, so its twin says the same."""
        found = self._known.get(block)
        if found is not None:
            return found
        fields = [(str(name), str(value)) for name, value in self._decoder.decode(block)]
        found = tuple(
            f"{name} {value}"
            for name, value in fields
            if name == "grpc-status" or (name, value[:1]) == (":status", "4")
        )
        if min(block) < 0x80:
            self._known.clear()
        elif max(block) < 0xFF:
            self._known[block] = found
        return found


def _error(code: bytes) -> str:
    number = int.from_bytes(code)
    return ERRORS[number] if number < len(ERRORS) else str(number)


Script = Callable[[Connection], Iterator[bytes]]
"""What a connection sends; b"" means: nothing until something was read or a moment has passed."""

Hears = Literal["answers", "reads", "nothing"]
"""What a connection does with what it is sent: also acknowledges it; only reads it; leaves it in the socket."""


class Crowd:
    """Many connections to one address, each with the same script."""

    def __init__(
        self, address: tuple[str, int], script: Script, connections: int, *, hears: Hears, comes_again: bool
    ) -> None:
        self.seen: Counter[str] = Counter()
        self._address, self._script, self._hears = address, script, hears
        self._comes_again, self._wanted = comes_again, connections
        self._selector = selectors.DefaultSelector()
        self._live: set[_Line] = set()

    def run(self, seconds: float) -> Counter[str]:
        """Drive all connections until the time is over; then cut what is left. What was sent and seen."""
        end = time.monotonic() + seconds
        for _ in range(self._wanted):
            if time.monotonic() > end:
                break
            self._open()
        while time.monotonic() < end and (self._live or self._comes_again):
            if len(self._live) < self._wanted and self._comes_again:
                self._open()
            for key, events in self._selector.select(timeout=0.02):
                line: _Line = key.data
                if not (line.read() if events & selectors.EVENT_READ else line.write()):
                    self._gone(line, "closed by the server")
            for line in tuple(self._live):
                self._watch(line)
        for line in tuple(self._live):
            self._gone(line, "held back to the end" if line.held() else "open to the end")
        self._selector.close()
        return self.seen

    def _open(self) -> None:
        connection = Connection(answers=self._hears == "answers")
        try:
            line = _Line(self._address, connection, self._script(connection))
        except OSError as error:
            if error.errno not in (*GONE, errno.EMFILE, errno.EADDRNOTAVAIL, errno.EAGAIN):
                raise
            self.seen[f"not connected: {errno.errorcode[error.errno or 0]}"] += 1
            time.sleep(0.01)
            return
        self.seen["connections"] += 1
        self._live.add(line)
        self._selector.register(line.socket, selectors.EVENT_WRITE, line)

    def _watch(self, line: _Line) -> None:
        wanted = (0 if self._hears == "nothing" else selectors.EVENT_READ) | (
            selectors.EVENT_WRITE if line.wants_to_send() else 0
        )
        if wanted != line.watched:
            if not line.watched:
                self._selector.register(line.socket, wanted, line)
            elif wanted:
                self._selector.modify(line.socket, wanted, line)
            else:
                self._selector.unregister(line.socket)
            line.watched = wanted

    def _gone(self, line: _Line, why: str) -> None:
        if line.watched:
            self._selector.unregister(line.socket)
        self.seen[why] += 1
        self.seen["bytes sent"] += line.sent
        self.seen += line.connection.seen
        self._live.discard(line)
        line.socket.close()


class _Line:
    """A connection with its socket and its script."""

    def __init__(self, address: tuple[str, int], connection: Connection, chunks: Iterator[bytes]) -> None:
        self.connection, self.sent, self.watched = connection, 0, selectors.EVENT_WRITE
        self._chunks, self._unsent, self._over, self._pause_until = chunks, b"", False, 0.0
        self.socket = socket.create_connection(address, timeout=2)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def held(self) -> bool:
        """It would have sent more, had the server taken it."""
        return bool(self._unsent)

    def wants_to_send(self) -> bool:
        while len(self._unsent) < UNSENT_BYTES and not self._over and time.monotonic() >= self._pause_until:
            chunk = next(self._chunks, None)
            if chunk is None:
                self._over = True
            elif chunk:
                self._unsent += chunk
            else:
                self._pause_until = time.monotonic() + PAUSE_S
        return bool(self._unsent)

    def write(self) -> bool:
        """False when the connection is gone."""
        for _ in range(16):
            if not self.wants_to_send():
                return True
            try:
                done = self.socket.send(self._unsent)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno not in GONE:
                    raise
                with contextlib.suppress(OSError):  # what it said last is often still there
                    self.read()
                return False
            self.sent += done
            self._unsent = self._unsent[done:]
        return True

    def read(self) -> bool:
        """False when the connection is gone."""
        try:
            chunk = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in GONE:
                raise
            return False
        self._unsent += self.connection.feed(chunk)
        self._pause_until = 0
        return bool(chunk)


def drive(
    address: tuple[str, int],
    script: Script,
    *,
    connections: int,
    seconds: float,
    hears: Hears = "answers",
    comes_again: bool = True,
) -> Counter[str]:
    """What came of `connections` connections at a time, each sending what `script` yields; one that the server cut is
    opened again if it `comes_again`."""
    return Crowd(address, script, connections, hears=hears, comes_again=comes_again).run(seconds)
