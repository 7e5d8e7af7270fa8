"""flotta.storage.v1.Shards over grpc.aio: streams of frames around the batch handler, and two questions for audits.

Invariants of a stream: answers of a loop turn leave together; an unsent answer counts against the node's budget until
it is written; while more than `UNSENT_BYTES_MAX` wait, no further frame is read; a sender that half-closes still gets
every answer; when the stream breaks, what it had waiting is let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Final

import grpc.aio
from flotta_consensus.aio import GroupHost
from flotta_consensus.api import Committed, ReadReady
from flotta_proto.flotta import storage_pb2 as pb
from flotta_proto.flotta.storage_pb2_grpc import ShardsServicer
from flotta_runtime.errors import NotFound, Unavailable

from flotta_storage.batch_handler import NOT_SERVING, OVERHEAD_BYTES, BatchHandler
from flotta_storage.budget import Budget
from flotta_storage.core.commands import expire_payload
from flotta_storage.digest import digest
from flotta_storage.replica_table import ReplicaTable

UNSENT_BYTES_MAX: Final = 32 << 20
FRAME_BYTES: Final = 1 << 20  # a reply frame is closed once it has this much; one reply may be larger
BARRIER_TIMEOUT_MS: Final = 3_000
FENCE_TIMEOUT_MS: Final = 800  # the asker waits for the barrier and this


class Outbox:
    """Answers of one stream, between the handler and the wire."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._replies: list[pb.Reply] = []
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._closed = False
        self._finished = asyncio.Event()
        self._ended = False
        self.expected = 0  # operations handed to the handler and not answered
        self.unsent_bytes = 0

    def put(self, replies: list[pb.Reply]) -> None:
        if self._closed:
            return
        self.expected -= len(replies)
        size = sum(len(reply.value) + OVERHEAD_BYTES for reply in replies)
        self._budget.hold(size)
        self.unsent_bytes += size
        if self.unsent_bytes > UNSENT_BYTES_MAX:
            self._drained.clear()
        self._replies += replies
        self._wake.set()

    async def room(self) -> None:
        await self._drained.wait()

    async def drain(self) -> None:
        """No more operations come: wait until every answer is sent."""
        self._ended = True
        self._check_finished()
        await self._finished.wait()

    async def write(self, context: grpc.aio.ServicerContext[Any, pb.ReplyFrame]) -> None:
        """Send for as long as the stream lives."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            replies, self._replies = self._replies, []
            for frame, size in frames(replies):
                await context.write(frame)
                self._sent(size)

    def close(self) -> None:
        self._closed = True
        self._sent(self.unsent_bytes)
        self._replies.clear()

    def _sent(self, size: int) -> None:
        self._budget.sent(size)
        self.unsent_bytes -= size
        if self.unsent_bytes <= UNSENT_BYTES_MAX:
            self._drained.set()
        self._check_finished()

    def _check_finished(self) -> None:
        if self._ended and not self.expected and not self.unsent_bytes:
            self._finished.set()


def frames(replies: Sequence[pb.Reply]) -> Iterator[tuple[pb.ReplyFrame, int]]:
    """Reply frames below `FRAME_BYTES` (or of one reply), each with its size as the budget counts it."""
    start = size = 0
    for position, reply in enumerate(replies):
        more = len(reply.value) + OVERHEAD_BYTES
        if size and size + more > FRAME_BYTES:
            yield pb.ReplyFrame(replies=replies[start:position]), size
            start, size = position, 0
        size += more
    if size:
        yield pb.ReplyFrame(replies=replies[start:]), size


GREETING = (("x-flotta-accepted", "1"),)


class ShardsService(ShardsServicer):
    """See the module. Without a `host` (the node is not part of a cluster yet) everything is UNAVAILABLE."""

    def __init__(self, handler: BatchHandler, replicas: ReplicaTable, budget: Budget) -> None:
        self._handler = handler
        self._replicas = replicas
        self._budget = budget
        self.host: GroupHost | None = None
        self.streams = 0

    async def Execute(  # type: ignore[override]  # the reader-writer form that grpc.aio also takes
        self, requests: object, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        # Before this greeting a sender sends nothing, so a stream that is refused leaves no operation in doubt.
        await context.send_initial_metadata(GREETING)
        outbox = Outbox(self._budget)
        self.streams += 1
        reader = asyncio.create_task(self._read(context, outbox), name="execute.read")
        writer = asyncio.create_task(outbox.write(context), name="execute.write")
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.streams -= 1
            for task in (reader, writer):
                task.cancel()
            ended = await asyncio.gather(reader, writer, return_exceptions=True)
            outbox.close()
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _read(self, context: grpc.aio.ServicerContext[Any, Any], outbox: Outbox) -> None:
        while True:
            await outbox.room()
            frame = await context.read()
            if frame is grpc.aio.EOF:
                await outbox.drain()
                return
            outbox.expected += len(frame.operations)
            self._handler.handle(frame.operations, outbox.put)

    async def MembershipOf(self, request: pb.MembershipRequest, context: object) -> pb.MembershipResponse:
        """Only the leader, after a barrier, knows.

        "Not a member" lets the asking node delete a replica. It is said only once an entry behind the configuration
        is committed too: a quorum then has durably heard that the configuration is. Until then a power cut could take
        the group back to the old one, whose voters it would need again.
        """
        host, replica = self.host, self._replicas.of_group(request.group_id)
        if host is None or replica is None:
            return pb.MembershipResponse(known=False)
        outcome = await host.read_barrier(request.group_id, BARRIER_TIMEOUT_MS)
        role = host.role(request.group_id)
        if not isinstance(outcome, ReadReady) or role is None or not role.is_leader:
            return pb.MembershipResponse(known=False)
        member = request.replica_id in replica.machine.members()
        if not member:
            fence = await host.propose(request.group_id, expire_payload(0, 0), FENCE_TIMEOUT_MS)
            if not isinstance(fence, Committed):
                return pb.MembershipResponse(known=False)
            member = request.replica_id in replica.machine.members()
        return pb.MembershipResponse(known=True, member=member, applied_index=replica.machine.applied_index())

    async def Digest(self, request: pb.DigestRequest, context: object) -> pb.DigestResponse:
        if self.host is None:
            raise Unavailable(NOT_SERVING)
        if request.shard_id and self._replicas.of_shard(request.shard_id) is None:
            raise NotFound(f"shard_id: this node has no replica of {request.shard_id}", shard_id=request.shard_id)
        chosen = [one for one in self._replicas if not request.shard_id or one.shard_id == request.shard_id]
        chosen.sort(key=lambda one: one.group)
        return pb.DigestResponse(replicas=[await digest(replica) for replica in chosen])
