"""A native server answered by a thread of plain functions: what the tests of the RPC half drive.

`Served` polls the server and calls `on_unary` for each unary call and `on_stream` for each stream event, and keeps all
of what it saw. Tests wait for conditions with `until`, never for a time.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flotta_native as native
import grpc

PATIENCE_S = 60.0
UNARY, STREAM = "/test.Echo/Unary", "/test.Echo/Stream"
METHODS = [(UNARY, False), (STREAM, True)]

Unary = tuple[int, int, bytes, Any, Any, native.RpcPeer]
Event = tuple[int, int, int, Any]


def until(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Wait for a condition; what it came to."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.005)
    raise AssertionError(f"{what} did not come true in {PATIENCE_S} s")


class Served:
    """A running server and the thread that answers it. `echo` answers unary calls with their message."""

    def __init__(self, *, echo: bool = True, listen: str = "127.0.0.1:0", **options: Any) -> None:
        self.server = native.RpcServer(METHODS, **options)
        self.port = self.server.start(listen)
        self.address = f"127.0.0.1:{self.port}" if self.port else listen
        self.unary: list[Unary] = []
        self.events: list[Event] = []
        self.ended: list[int] = []
        self.batches: list[int] = []
        self.on_unary: Callable[[Unary], Any] | None = (lambda call: (call[0], call[2])) if echo else None
        self.on_stream: Callable[[Event], None] | None = None
        self.failure: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="served", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                if select.select([self.server.notify_fd()], [], [], 0.05)[0]:
                    self._turn()
        except BaseException as error:
            self.failure = error

    def _turn(self) -> None:
        unary, events, ended = self.server.poll()
        self.unary += unary
        self.events += events
        self.ended += ended
        if unary:
            self.batches.append(len(unary))
        if self.on_unary is not None:
            replies = [reply for call in unary if (reply := self.on_unary(call)) is not None]
            self.server.reply_many(replies)
        if self.on_stream is not None:
            for event in events:
                self.on_stream(event)

    def events_of(self, call: int) -> list[int]:
        return [event[0] for event in self.events if event[1] == call]

    def opened(self, count: int = 1) -> list[int]:
        """The calls of the first streams."""
        opens = until(
            lambda: [call for kind, call, _, _ in self.events if kind == native.EVENT_OPEN][:count] or None, "a stream"
        )
        if len(opens) < count:
            until(lambda: sum(event[0] == native.EVENT_OPEN for event in self.events) >= count, "the streams")
            return self.opened(count)
        return opens

    def messages_of(self, call: int) -> list[bytes]:
        return [data for kind, number, _, data in self.events if kind == native.EVENT_MESSAGE and number == call]

    def close(self) -> None:
        self.server.stop(0)
        self._over.set()
        self._thread.join(PATIENCE_S)
        if self.failure is not None:
            raise self.failure


@contextmanager
def served(**options: Any) -> Iterator[Served]:
    running = Served(**options)
    try:
        yield running
    finally:
        running.close()


def connected(channel: grpc.Channel) -> None:
    """Connecting takes nothing of a short deadline then."""
    grpc.channel_ready_future(channel).result(PATIENCE_S)


@contextmanager
def channel_to(address: str, **options: Any) -> Iterator[grpc.Channel]:
    """A channel with a connection of its own."""
    arguments = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    arguments += [(key.replace("__", "."), value) for key, value in options.items()]
    with grpc.insecure_channel(address, options=arguments) as channel:
        yield channel


def call_unary(channel: grpc.Channel, payload: bytes, path: str = UNARY, **options: Any) -> bytes:
    options.setdefault("timeout", PATIENCE_S)
    return channel.unary_unary(path)(payload, **options)


def code_of(channel: grpc.Channel, payload: bytes, path: str = UNARY, **options: Any) -> tuple[grpc.StatusCode, str]:
    try:
        call_unary(channel, payload, path, **options)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""
