"""What the client needs of its surroundings, in asyncio. `flotta._sync.primitives` is the same with threads; the two
are written by hand, and everything that is built on them exists once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import grpc.aio
from flotta_proto.flotta.storage_pb2 import Operation, ReplyFrame
from flotta_proto.flotta.storage_pb2_grpc import ShardsStub
from flotta_proto.kvdb.coordinator_pb2 import ShardMapDelta, WatchShardMapRequest
from flotta_runtime.tls import Tls, open_channel

from flotta.channel_options import CHANNEL_OPTIONS
from flotta.outgoing import Outgoing

T = TypeVar("T")
Channel = grpc.aio.Channel
Lock = asyncio.Lock
WatchCall = grpc.aio.UnaryStreamCall[WatchShardMapRequest, ShardMapDelta]
sleep = asyncio.sleep


def connect(tls: Tls | None, address: str) -> Channel:
    """A channel; it connects when it is used."""
    return open_channel(tls, address, CHANNEL_OPTIONS)


async def run_all(work: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """What each of them returns, done at the same time."""
    if len(work) < 2:
        return [await one() for one in work]
    return list(await asyncio.gather(*(one() for one in work)))


class Event:
    """Set once, waited for by any number."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.set = self._event.set
        self.is_set = self._event.is_set

    async def wait(self, timeout_s: float) -> bool:
        """Whether it was set in time."""
        if self._event.is_set():
            return True
        try:
            async with asyncio.timeout(timeout_s):
                return await self._event.wait()
        except TimeoutError:
            return False


class Background:
    """Work that runs beside the calls until it ends or is stopped. `interrupt` makes it stop waiting."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], interrupt: Callable[[], object]) -> None:
        self._interrupt = interrupt
        self._task = asyncio.create_task(work())

    def is_done(self) -> bool:
        """Whether it has ended."""
        return self._task.done()

    async def stop(self) -> None:
        """Return when it has ended."""
        self._interrupt()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Frames:
    """One stream of operations to a node, and of replies from it."""

    def __init__(self, channel: Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._call = ShardsStub(channel).Execute(metadata=metadata)
        self._outgoing = Outgoing()
        self._wake = asyncio.Event()
        self._writer = asyncio.create_task(self._write())

    async def greeting(self) -> tuple[tuple[str, str | bytes], ...]:
        """The node's initial metadata; empty when it refused."""
        return tuple((key, value) for key, value in await self._call.initial_metadata() or ())

    def send(self, operations: Sequence[Operation]) -> bool:
        """Have them written soon, together with what others send. False: too much waits, and none of them will be."""
        taken = self._outgoing.add(operations)
        self._wake.set()
        return taken

    async def _write(self) -> None:
        # How the stream ended is for the reader to tell.
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            while await self._wake.wait():
                self._wake.clear()
                while (frame := self._outgoing.take()) is not None:
                    await self._call.write(frame)

    def __aiter__(self) -> AsyncIterator[ReplyFrame]:
        return self._call.__aiter__()

    def cancel(self) -> None:
        """End it, from any place."""
        self._call.cancel()
        self._writer.cancel()
