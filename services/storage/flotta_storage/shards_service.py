"""flotta.storage.v1.Shards over gRPC: streams of frames around the batch handler, and a few calls beside them.

Invariants of a stream: answers of a loop turn leave together; while more than `UNSENT_BYTES_MAX` wait, no further frame
is read; a sender that half-closes still gets every answer; when the stream breaks, what it had waiting is let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc.aio
from flotta_consensus.api import Committed, ReadReady
from flotta_consensus.groups import Groups
from flotta_proto.flotta import storage_pb2 as pb
from flotta_proto.flotta.storage_pb2_grpc import ShardsServicer
from flotta_runtime.errors import NotFound, Unavailable

from flotta_storage.batch_handler import NOT_SERVING, BatchHandler
from flotta_storage.budget import Budget
from flotta_storage.compaction import Compactor
from flotta_storage.core.commands import expire_payload
from flotta_storage.digest import digest
from flotta_storage.following import follow
from flotta_storage.outbox import STOPPING, UNSENT_BYTES_MAX, Connections, Outbox
from flotta_storage.replica_table import ReplicaTable

BARRIER_TIMEOUT_MS: Final = 3_000
FENCE_TIMEOUT_MS: Final = 800  # the asker waits for the barrier and this
GREETING = (("x-flotta-accepted", "1"),)


class _Stream:
    """One stream of a gateway: a task that reads and one that writes."""

    def __init__(self, handler: BatchHandler, budget: Budget, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._handler = handler
        self._context = context
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self.outbox = Outbox(budget, self._wake.set)

    async def read(self) -> None:
        """Until the sender half-closes and has every answer."""
        outbox = self.outbox
        while True:
            await self._until(lambda: outbox.unsent_bytes <= UNSENT_BYTES_MAX)
            frame = await self._context.read()
            if frame is grpc.aio.EOF:
                await self._until(lambda: outbox.idle)
                return
            outbox.expected += len(frame.operations)
            self._handler.handle(frame.operations, outbox.put)

    async def write(self) -> None:
        """For as long as the stream lives."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (taken := self.outbox.take()) is not None:
                frame, size = taken
                await self._context.write(frame)
                self.outbox.sent(size)
                self._moved.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._moved.clear()
            await self._moved.wait()


class ShardsService(ShardsServicer):
    """See the module. Without a `host` (the node is not part of a cluster yet) everything is UNAVAILABLE."""

    def __init__(self, handler: BatchHandler, replicas: ReplicaTable, budget: Budget, connections: Connections) -> None:
        self._handler = handler
        self._replicas = replicas
        self._budget = budget
        self._connections = connections
        self.host: Groups | None = None
        self.compactor: Compactor | None = None
        self.map_version: Callable[[], int] = lambda: 0

    async def Execute(  # type: ignore[override]  # the reader-writer form that grpc.aio also takes
        self, requests: object, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        if self._connections.leaving:
            raise Unavailable(STOPPING)
        # Before this greeting a sender sends nothing, so a stream that is refused leaves no operation in doubt.
        await context.send_initial_metadata(GREETING)
        stream = _Stream(self._handler, self._budget, context)
        self._connections.add(stream.outbox)
        reader = asyncio.create_task(stream.read(), name="execute.read")
        writer = asyncio.create_task(stream.write(), name="execute.write")
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reader, writer):
                task.cancel()
            ended = await asyncio.gather(reader, writer, return_exceptions=True)
            self._connections.remove(stream.outbox)
        for error in ended:
            if isinstance(error, Exception):
                raise error

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

    async def Survey(self, request: pb.SurveyRequest, context: object) -> pb.SurveyResponse:
        """Of the replica as it is here, whoever leads the shard."""
        host, replica = self.host, self._replicas.kept_of_shard(request.shard_id)
        if host is None:
            raise Unavailable(NOT_SERVING)
        status = await host.status(replica.group) if replica is not None else None
        if replica is None or status is None:
            return pb.SurveyResponse(map_version=self.map_version())
        state = replica.state()
        return pb.SurveyResponse(
            replica_id=replica.replica,
            group_id=replica.group,
            term=status.term,
            last_term=status.last_term,
            last_index=status.last_index,
            applied_index=replica.machine.applied_index(),
            epoch=state.epoch if state is not None else 0,
            leader_replica=status.leader,
            voters=status.membership.voters,
            outgoing=status.membership.voters_outgoing,
            shard_index=state.shard_index if state is not None else 0,
            shard_count=state.shard_count if state is not None else 0,
            map_version=self.map_version(),
        )

    async def Compact(self, request: pb.CompactRequest, context: object) -> pb.CompactResponse:
        """Shards that are not here are passed over: the asker's map may be a little older than this node's."""
        if self.compactor is None:
            raise Unavailable(NOT_SERVING)
        do = {pb.CompactRequest.ASK: self.compactor.left, pb.CompactRequest.DROP: self.compactor.drop}
        found = do.get(request.what, self.compactor.order)(frozenset(request.shard_ids))
        return pb.CompactResponse(replicas=found)

    async def Follow(self, request: pb.FollowRequest, context: object) -> pb.FollowResponse:
        """From the replica as it is here: whoever leads the shard, what a page says of a token stays true."""
        if self.host is None:
            raise Unavailable(NOT_SERVING)
        return follow(self._replicas.of_group(request.group_id), request)
