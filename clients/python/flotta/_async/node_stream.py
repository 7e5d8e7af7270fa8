"""One stream of operations to one storage node, shared by all calls that have something for it.

Invariants:
- Nothing is sent before the node has greeted, so a stream that is refused leaves no operation in doubt.
- Every operation gets one outcome: the node's reply, `NotSent` (certainly not done) or `Lost` (nobody knows).
- When the stream ends, what waits on it is told at once.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import grpc
from flotta_proto.flotta.storage_pb2 import Operation, Reply

from flotta._async.primitives import Background, Channel, Event, Frames
from flotta.routing import Lost, NotSent, Outcome
from flotta.rpc_failures import code_of, details_of

GREETING = "x-flotta-accepted"
GREETING_TIMEOUT_S = 1.5


class _Asked:
    """What one call waits for."""

    def __init__(self, count: int) -> None:
        self.replies: list[Reply | None] = [None] * count
        self.missing = count
        self.done = Event()

    def put(self, position: int, reply: Reply) -> None:
        self.replies[position] = reply
        self.missing -= 1
        if not self.missing:
            self.done.set()


class AsyncNodeStream:
    """See the module. It begins to connect when it is made."""

    def __init__(self, channel: Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._frames = Frames(channel, metadata)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[_Asked, int]] = {}
        self._greeted = Event()
        self.ended = ""  # why, once it has
        self.leaving = False
        self._background = Background(self._read, self._frames.cancel)

    @property
    def usable(self) -> bool:
        """Whether new operations may be given to it."""
        return not (self.ended or self.leaving)

    async def stop(self) -> None:
        """End it; what waits is lost."""
        await self._background.stop()

    async def ask(self, operations: Sequence[Operation], timeout_s: float) -> list[Outcome]:
        """What became of each of them within the time."""
        deadline_s = time.monotonic() + timeout_s
        greeting_s = min(timeout_s, GREETING_TIMEOUT_S)
        if not await self._greeted.wait(greeting_s):
            short = timeout_s < GREETING_TIMEOUT_S
            return [NotSent(f"no greeting within {greeting_s:.1f} s", short)] * len(operations)
        if not self.usable:
            return [NotSent(self.ended or "the node is stopping")] * len(operations)
        asked = _Asked(len(operations))
        numbers = []
        for position, operation in enumerate(operations):
            operation.call = next(self._numbers)
            numbers.append(operation.call)
            self._waiting[operation.call] = (asked, position)
        try:
            if not self._frames.send(operations):
                return [NotSent("too much waits to be sent to it")] * len(operations)
            if self.ended:  # it may have ended before it could know of these
                asked.done.set()
            await asked.done.wait(max(0.0, deadline_s - time.monotonic()))
        finally:
            for number in numbers:
                self._waiting.pop(number, None)
        lost = Lost(self.ended or f"no answer within {timeout_s:.1f} s")
        return [lost if reply is None else reply for reply in asked.replies]

    async def _read(self) -> None:
        ended = "the stream was closed"
        try:
            names = [name for name, _ in await self._frames.greeting()]
            if GREETING in names:
                self._greeted.set()
            async for frame in self._frames:
                self.leaving = self.leaving or frame.leaving
                for reply in frame.replies:
                    asked, position = self._waiting.pop(reply.call, (None, 0))
                    if asked is not None:
                        asked.put(position, reply)
            ended = "the node ended the stream"
        except grpc.RpcError as error:
            ended = f"{code_of(error).name}: {details_of(error)}"
        finally:
            self.ended = ended
            self._frames.cancel()
            self._greeted.set()
            self._wake_all()

    def _wake_all(self) -> None:
        for asked, _ in list(self._waiting.values()):
            asked.done.set()
