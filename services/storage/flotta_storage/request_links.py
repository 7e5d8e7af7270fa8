"""Gateways' native links: frames of operations in, frames of answers out, with no task in between.

Frames are handed to the batch handler as they are polled; whatever was answered by the end of the turn leaves in one
call for all links. Invariants: a link is accepted only with the internal token, and nothing is sent on it before that,
so a refused one leaves no operation in doubt; answers that the native side could not send yet count against the
node's budget, and it reads no more from a link on which `UNSENT_BYTES_MAX` wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from flotta_proto.flotta import storage_pb2 as pb
from flotta_runtime.auth import REFUSAL, TokenCheck
from flotta_runtime.links import Links, metadata_of

from flotta_storage.batch_handler import BatchHandler
from flotta_storage.budget import Budget
from flotta_storage.outbox import STOPPING, Connections, Outbox

PURPOSE: Final = "requests"
UNCOUNTED_BYTES: Final = 256 << 10  # of a link: what is about to be written is not looked after
_LOOK_AGAIN_SECONDS: Final = 0.01


def refusal(hello: bytes, check: TokenCheck, *, leaving: bool) -> str | None:
    """Why a gateway's link is not taken; None if it is."""
    try:
        metadata = metadata_of(hello)
    except ValueError as error:
        return str(error)
    if not check.accepts(metadata.items()):
        return REFUSAL
    return STOPPING if leaving else None


class RequestLinks:
    """Takes the links; `report` gets a line for each refusal."""

    def __init__(
        self,
        links: Links,
        handler: BatchHandler,
        budget: Budget,
        connections: Connections,
        check: TokenCheck,
        report: Callable[[str], None],
    ) -> None:
        self._links = links
        self._handler = handler
        self._budget = budget
        self._connections = connections
        self._check = check
        self._report = report
        links.serve(PURPOSE, self._hello)

    def _hello(self, link: int, hello: bytes, peer: Any) -> None:
        reason = refusal(hello, self._check, leaving=self._connections.leaving)
        if reason is None:
            _RequestLink(link, self._links, self._handler, self._budget, self._connections)
            return
        self._links.refuse(link, reason)
        if reason is not STOPPING:
            self._report(f"a link from {peer.address.rpartition(':')[0]} was refused: {reason}")


class _RequestLink:
    """One link; its owner."""

    def __init__(
        self, link: int, links: Links, handler: BatchHandler, budget: Budget, connections: Connections
    ) -> None:
        self._link = link
        self._links = links
        self._handler = handler
        self._connections = connections
        self._outbox = Outbox(budget, self._wake)
        self._given: pb.ReplyFrame | None = None
        self._given_size = 0
        self._unsettled = 0  # bytes given to the native side, and still counted
        self._timer: asyncio.TimerHandle | None = None
        if links.accept(link, b"", self):
            connections.add(self._outbox)

    def up(self, greeting: bytes) -> None:
        raise RuntimeError("this link came in, it was not made here")

    def frame(self, data: bytes) -> None:
        operations = pb.OperationFrame.FromString(data).operations
        self._outbox.expected += len(operations)
        self._handler.handle(operations, self._outbox.put)

    def next_frame(self) -> bytes:
        taken = self._outbox.take()
        if taken is None:
            self._settle()
            return b""
        self._given, self._given_size = taken
        self._unsettled += self._given_size
        return self._given.SerializeToString()

    def not_taken(self) -> None:
        """Too much waits already, or the link is down, which is told soon."""
        if self._given is not None:
            self._unsettled -= self._given_size
            self._outbox.give_back(self._given)
            self._given = None
        self._look_again()

    def down(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._connections.remove(self._outbox)

    def _wake(self) -> None:
        self._links.wake(self._link)

    def _settle(self) -> None:
        """Stop counting what was written, or is about to be."""
        self._given = None
        unsent = self._links.hub.unsent_bytes(self._link)
        counted = min(unsent, self._unsettled) if unsent > UNCOUNTED_BYTES else 0
        self._outbox.sent(self._unsettled - counted)
        self._unsettled = counted
        if counted:
            self._look_again()

    def _look_again(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_AGAIN_SECONDS, self._again)

    def _again(self) -> None:
        self._timer = None
        self._wake()
