"""One HTTP/2 connection by hand, for what no proper client does: sends what it is told, keeps what comes back."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hpack
import raw_http2 as h2
from rpc_harness import PATIENCE_S, UNARY


def head(path: str = UNARY, **more: str) -> bytes:
    return h2.call_headers(path, **more)


def open_call(stream: int, path: str = UNARY, *, end: bool = False, **more: str) -> bytes:
    """The headers of a call."""
    return h2.frame(h2.HEADERS, h2.END_HEADERS | (h2.END_STREAM if end else 0), stream, head(path, **more))


class Raw:
    """`attentive`: acknowledges settings and pings."""

    def __init__(self, port: int, *, window: int = (1 << 31) - 1, attentive: bool = True, read: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        # Else each frame sent after another waits for the other side's delayed acknowledgement, 40 ms.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.attentive, self.reads = attentive, read
        self.headers: dict[int, list[dict[str, str]]] = {}
        self.data: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, str] = {}
        self.goaways: list[tuple[int, str]] = []
        self.pongs: list[bytes] = []
        self.settings: dict[int, int] = {}
        self.granted: dict[int, int] = {}
        self.closed = False
        self._decoder = hpack.Decoder(max_header_list_size=1 << 20)
        self._inbox = b""
        self._unanswered: list[bytes] = []
        self.send(h2.PREFACE, h2.settings((h2.INITIAL_WINDOW_SIZE, window)), h2.window_update(0, (1 << 31) - 65_536))
        if attentive and read:
            # Its windows hold from the acknowledgement on.
            self.until(lambda: self.settings, "the server's settings")

    def send(self, *frames: bytes) -> None:
        """Everything, reading meanwhile, so that neither side waits for the other."""
        left = memoryview(b"".join(frames))
        deadline = time.monotonic() + PATIENCE_S
        while left and not self.closed:
            assert time.monotonic() < deadline, "the server takes nothing"
            readable, writable, _ = select.select([self.socket] if self.reads else [], [self.socket], [], 1)
            if readable:
                self._read()
            if writable:
                try:
                    left = left[self.socket.send(left[:65_536], socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    continue
                except OSError:
                    self.closed = True
        self._answer()

    def until(self, condition: Callable[[], Any], what: str = "the condition") -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (result := condition()):
            assert time.monotonic() < deadline, f"{what} did not come true in {PATIENCE_S} s"
            if self.closed:
                time.sleep(0.005)
            elif select.select([self.socket], [], [], 0.02)[0]:
                self._read()
                self._answer()
        return result

    def answer(self, stream: int) -> dict[str, str]:
        """All headers and trailers of a stream that the server ended."""
        self.until(lambda: stream in self.ended or stream in self.resets or self.closed, f"stream {stream}'s end")
        assert stream in self.ended, (self.resets, self.goaways, self.closed)
        return {name: value for block in self.headers[stream] for name, value in block.items()}

    def code(self, stream: int) -> int:
        return int(self.answer(stream)["grpc-status"])

    def message(self, stream: int) -> tuple[bool, bytes]:
        """The one message of a stream: whether it is packed, and its bytes."""
        data = self.data[stream]
        flag, length = struct.unpack_from("!BI", data)
        assert length == len(data) - 5
        return bool(flag), data[5:]

    def answer_pings(self) -> None:
        """Be attentive from now on, also to what came before."""
        self.attentive = True
        self._answer()

    def close(self) -> None:
        self.socket.close()

    def _read(self) -> None:
        try:
            chunk = self.socket.recv(1 << 20)
        except OSError:
            chunk = b""
        if not chunk:
            self.closed = True
            return
        self._inbox += chunk
        while len(self._inbox) >= 9:
            length = int.from_bytes(self._inbox[:3])
            if len(self._inbox) < 9 + length:
                break
            kind, flags, stream = struct.unpack_from("!BBI", self._inbox, 3)
            self._unanswered.append(self._take(kind, flags, stream, self._inbox[9 : 9 + length]))
            self._inbox = self._inbox[9 + length :]

    def _answer(self) -> None:
        """Never while something is being sent: an answer would fall into the middle of a frame."""
        if self.attentive and any(self._unanswered):
            with contextlib.suppress(OSError):
                self.socket.sendall(b"".join(self._unanswered))
            self._unanswered.clear()

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> bytes:
        if kind == h2.HEADERS:
            fields = {str(name): str(value) for name, value in self._decoder.decode(body)}
            self.headers.setdefault(stream, []).append(fields)
        elif kind == h2.DATA:
            self.data[stream] = self.data.get(stream, b"") + body
        elif kind == h2.RST_STREAM:
            self.resets.setdefault(stream, h2.ERRORS[int.from_bytes(body)])
        elif kind == h2.GOAWAY:
            self.goaways.append((int.from_bytes(body[:4]), h2.ERRORS[int.from_bytes(body[4:8])]))
        elif kind == h2.WINDOW_UPDATE:
            self.granted[stream] = self.granted.get(stream, 0) + int.from_bytes(body)
        elif kind == h2.SETTINGS and not flags & h2.ACK:
            self.settings |= dict(struct.iter_unpack("!HI", body))
            return h2.frame(h2.SETTINGS, h2.ACK, 0)
        elif kind == h2.PING and flags & h2.ACK:
            self.pongs.append(body)
        elif kind == h2.PING:
            return h2.frame(h2.PING, h2.ACK, 0, body)
        if kind in (h2.HEADERS, h2.DATA) and flags & h2.END_STREAM:
            self.ended.add(stream)
        return b""


@contextmanager
def raw(port: int, **options: Any) -> Iterator[Raw]:
    connection = Raw(port, **options)
    try:
        yield connection
    finally:
        connection.close()
