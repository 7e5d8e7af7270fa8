"""flotta.storage.v1.Backups: rows out of a shard as of one index, and back into another one.

Invariants: a dump begins after a read barrier, so it has everything acknowledged before the call; a load is one log
entry, whole or not at all, and never replaces a row. Both are few at a time: a frozen view pins files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, Protocol

from flotta_consensus.api import Committed, Outcome, ReadOutcome, ReadReady, Rejected, RejectReason, RoleChange
from flotta_proto.flotta import storage_pb2 as pb
from flotta_proto.flotta.storage_pb2_grpc import BackupsServicer
from flotta_runtime.errors import (
    AlreadyExists,
    FlottaError,
    InvalidArgument,
    NotFound,
    NotLeader,
    PreconditionFailed,
    RateLimited,
    ShardMoved,
    Timeout,
    Unavailable,
)
from flotta_runtime.saved_rows import read_rows

from flotta_storage.batch_handler import NOT_SERVING
from flotta_storage.core.loads import LoadKind, LoadResult, load_payload
from flotta_storage.dump import dump
from flotta_storage.hints import Hints
from flotta_storage.replica_table import Replica, ReplicaTable
from flotta_storage.stamping import StampSource

BARRIER_TIMEOUT_MS: Final = 3_000
LOAD_TIMEOUT_MS: Final = 10_000
DUMPS_MAX: Final = 8
LOADS_MAX: Final = 16
RETRY_AFTER_MS: Final = 200


class Group(Protocol):
    """What is asked of the Raft host."""

    async def read_barrier(self, group: int, timeout_ms: int) -> ReadOutcome: ...

    async def propose(self, group: int, payload: bytes, timeout_ms: int) -> Outcome: ...

    def role(self, group: int) -> RoleChange | None: ...


class BackupsService(BackupsServicer):
    """See the module. Without a `host` (the node is not part of a cluster yet) everything is UNAVAILABLE."""

    def __init__(self, replicas: ReplicaTable, hints: Hints, stamp_ms: StampSource) -> None:
        self._replicas = replicas
        self._hints = hints
        self._stamp_ms = stamp_ms
        self._dumps = asyncio.Semaphore(DUMPS_MAX)
        self._loads = asyncio.Semaphore(LOADS_MAX)
        self.host: Group | None = None

    async def Dump(self, request: pb.DumpRequest, context: object) -> AsyncIterator[pb.DumpPart]:
        host, replica = self._serving(request.shard_id)
        _check_free(self._dumps, "dumps")
        async with self._dumps:
            outcome = await host.read_barrier(replica.group, BARRIER_TIMEOUT_MS)
            if not isinstance(outcome, ReadReady):
                raise Unavailable(f"no quorum of {request.shard_id} answers this replica", shard_id=request.shard_id)
            async for part in dump(replica):
                yield part

    async def Load(self, request: pb.LoadRequest, context: object) -> pb.LoadResponse:
        host, replica = self._serving(request.shard_id)
        try:
            rows = read_rows(request.rows)
        except ValueError as error:
            raise InvalidArgument(f"rows: {error}", field="rows") from error
        if not rows:
            raise InvalidArgument("rows: there are none", field="rows")
        newest_ms = max(row.update_ms for row in rows)
        if newest_ms > request.group_time_ms:
            text = f"group_time_ms: it is {request.group_time_ms}, but a row was changed at {newest_ms}"
            raise InvalidArgument(text, field="group_time_ms")
        role = host.role(replica.group)
        if role is None or not role.is_leader:
            raise self._elsewhere(request.shard_id, role.leader if role is not None else 0)
        _check_free(self._loads, "loads")
        async with self._loads:
            payload = load_payload(max(self._stamp_ms(), request.group_time_ms), request.rows)
            outcome = await host.propose(replica.group, payload, LOAD_TIMEOUT_MS)
        if not isinstance(outcome, Committed):
            raise self._not_committed(request.shard_id, outcome)
        return pb.LoadResponse(rows=self._checked(request.shard_id, outcome.result).rows)

    def _serving(self, shard_id: str) -> tuple[Group, Replica]:
        replica = self._replicas.of_shard(shard_id)
        if self.host is None:
            raise Unavailable(NOT_SERVING)
        if replica is None:
            raise NotFound(f"shard_id: this node has no replica of {shard_id}", shard_id=shard_id)
        return self.host, replica

    def _elsewhere(self, shard_id: str, leader: int) -> NotLeader:
        return NotLeader(self._hints.leader(shard_id, leader) or None, shard_id=shard_id)

    def _not_committed(self, shard_id: str, outcome: Outcome) -> FlottaError:
        if not isinstance(outcome, Rejected):
            return Timeout("no answer in time: the rows may be loaded or not", shard_id=shard_id)
        if outcome.reason in (RejectReason.NOT_LEADER, RejectReason.NO_LEADER):
            return self._elsewhere(shard_id, outcome.leader)
        if outcome.reason is RejectReason.OVERLOADED:
            return RateLimited("too much waits to be replicated here", retry_after_ms=RETRY_AFTER_MS)
        return Unavailable(f"the rows were not loaded: {outcome.reason.value}", shard_id=shard_id)

    def _checked(self, shard_id: str, result: LoadResult) -> LoadResult:
        if result.kind is LoadKind.MOVED:
            raise ShardMoved(shard_id, self._hints.new_node(shard_id) or None)
        if result.kind is LoadKind.CONFLICT:
            raise AlreadyExists(f"rows: the key {_shown(result.key)} has another row already", shard_id=shard_id)
        if result.kind is LoadKind.TOO_NEW:
            text = f"rows: the key {_shown(result.key)} has a version that this shard is still to give"
            raise PreconditionFailed(text, shard_id=shard_id)
        return result


def _check_free(slots: asyncio.Semaphore, what: str) -> None:
    if slots.locked():
        raise RateLimited(f"as many {what} as this node takes are under way", retry_after_ms=RETRY_AFTER_MS)


def _shown(key: bytes) -> str:
    return repr(key[:64])[1:]
