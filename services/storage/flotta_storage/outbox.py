"""Answers on their way from the handler to one gateway, whatever connection it came by; and all such connections.

Invariants: an unsent answer counts against the node's budget until it is sent or its connection is gone; answers leave
in frames of at most `FRAME_BYTES`, or of one answer; a node that stops says so once to every gateway, and takes no new
connections from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from flotta_proto.flotta import storage_pb2 as pb

from flotta_storage.batch_handler import OVERHEAD_BYTES
from flotta_storage.budget import Budget

UNSENT_BYTES_MAX: Final = 32 << 20  # of one connection: above, nothing more is read from it
FRAME_BYTES: Final = 1 << 20
STOPPING: Final = "the storage node is stopping"


class Outbox:
    """The answers of one connection. `wake` is called when there is something to take."""

    def __init__(self, budget: Budget, wake: Callable[[], object]) -> None:
        self._budget = budget
        self._wake = wake
        self._replies: list[pb.Reply] = []
        self._taken = 0  # of `_replies`
        self._say_leaving = False
        self._closed = False
        self.expected = 0  # operations handed to the handler and not answered
        self.unsent_bytes = 0

    @property
    def idle(self) -> bool:
        """Everything was answered, and every answer is sent."""
        return not self.expected and not self.unsent_bytes

    def put(self, replies: list[pb.Reply]) -> None:
        if self._closed:
            return
        self.expected -= len(replies)
        size = sum(len(reply.value) + OVERHEAD_BYTES for reply in replies)
        self._budget.hold(size)
        self.unsent_bytes += size
        self._replies += replies
        self._wake()

    def leave(self) -> None:
        """Let the next frame say that the node is stopping."""
        if not self._closed:
            self._say_leaving = True
            self._wake()

    def take(self) -> tuple[pb.ReplyFrame, int] | None:
        """The next frame, and its size as the budget counts it; tell when it is `sent`."""
        start = end = self._taken
        replies = self._replies
        size = 0
        for position in range(start, len(replies)):
            more = len(replies[position].value) + OVERHEAD_BYTES
            if size and size + more > FRAME_BYTES:
                break
            size += more
            end = position + 1
        if end == start and not self._say_leaving:
            return None
        frame = pb.ReplyFrame(replies=replies[start:end], leaving=self._say_leaving)
        self._say_leaving = False
        self._taken = end
        if end == len(replies):
            self._replies, self._taken = [], 0
        return frame, size

    def give_back(self, frame: pb.ReplyFrame) -> None:
        """This frame, the last one taken, was not sent."""
        self._replies[: self._taken] = frame.replies
        self._taken = 0
        self._say_leaving = self._say_leaving or frame.leaving

    def sent(self, size: int) -> None:
        self._budget.sent(size)
        self.unsent_bytes -= size

    def close(self) -> None:
        """The connection is gone: what comes now is for nobody."""
        self._closed = True
        self.sent(self.unsent_bytes)
        self._replies, self._taken = [], 0


class Connections:
    """All connections of gateways to this node."""

    def __init__(self) -> None:
        self._open: set[Outbox] = set()
        self._gone = asyncio.Event()
        self.leaving = False

    def __len__(self) -> int:
        return len(self._open)

    def add(self, outbox: Outbox) -> None:
        self._open.add(outbox)

    def remove(self, outbox: Outbox) -> None:
        outbox.close()
        self._open.discard(outbox)
        if not self._open:
            self._gone.set()

    async def leave(self, grace_ms: int) -> None:
        """Tell every gateway, and return when all have gone, each with all its answers; or after `grace_ms`."""
        self.leaving = True
        for outbox in self._open:
            outbox.leave()
        self._gone.clear()
        if self._open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), grace_ms / 1000)
