"""What the client needs of its surroundings, with threads. `flotta._async.primitives` is the same in asyncio; the two
are written by hand, and everything that is built on them exists once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

import grpc
from flotta_proto.flotta.storage_pb2 import Operation, OperationFrame, ReplyFrame
from flotta_proto.flotta.storage_pb2_grpc import ShardsStub
from flotta_runtime.tls import Tls, open_blocking_channel

from flotta.channel_options import CHANNEL_OPTIONS
from flotta.outgoing import Outgoing

T = TypeVar("T")
Channel = grpc.Channel
Lock = threading.Lock
WatchCall = Any  # grpc's stubs have no name for a call that can be both read and cancelled
sleep = time.sleep
_STOP_TIMEOUT_S = 5.0


def connect(tls: Tls | None, address: str) -> Channel:
    """A channel; it connects when it is used."""
    return open_blocking_channel(tls, address, CHANNEL_OPTIONS)


def run_all(work: Sequence[Callable[[], T]]) -> list[T]:
    """What each of them returns, done at the same time."""
    if len(work) < 2:
        return [one() for one in work]
    with ThreadPoolExecutor(len(work)) as pool:
        return [done.result() for done in [pool.submit(one) for one in work]]


class Event:
    """Set once, waited for by any number."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.set = self._event.set
        self.is_set = self._event.is_set

    def wait(self, timeout_s: float) -> bool:
        """Whether it was set in time."""
        return self._event.wait(timeout_s)


class Background:
    """Work that runs beside the calls until it ends or is stopped. `interrupt` makes it stop waiting."""

    def __init__(self, work: Callable[[], None], interrupt: Callable[[], object]) -> None:
        self._interrupt = interrupt
        self._thread = threading.Thread(target=work, name="flotta", daemon=True)
        self._thread.start()

    def is_done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Return when it has ended."""
        self._interrupt()
        self._thread.join(_STOP_TIMEOUT_S)


class Frames:
    """One stream of operations to a node, and of replies from it."""

    def __init__(self, channel: Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._outgoing = Outgoing()
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._call: Any = ShardsStub(channel).Execute(self._written(), metadata=metadata)

    def greeting(self) -> tuple[tuple[str, str | bytes], ...]:
        """The node's initial metadata; empty when it refused."""
        return tuple((key, value) for key, value in self._call.initial_metadata() or ())

    def send(self, operations: Sequence[Operation]) -> bool:
        """Have them written soon, together with what others send. False: too much waits, and none of them will be."""
        taken = self._outgoing.add(operations)
        self._wake.put(True)
        return taken

    def _written(self) -> Iterator[OperationFrame]:
        """What grpc reads in a thread of its own, which ends after `cancel`."""
        while self._wake.get():
            while (frame := self._outgoing.take()) is not None:
                yield frame

    def __iter__(self) -> Iterator[ReplyFrame]:
        found: Iterator[ReplyFrame] = iter(self._call)
        return found

    def cancel(self) -> None:
        """End it, from any place."""
        self._call.cancel()
        self._wake.put(False)
