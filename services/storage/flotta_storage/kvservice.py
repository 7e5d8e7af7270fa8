"""kvdb.kvstore.KVService and kvdb.replication.ReplicationService: what KvDB's own gateway calls on a node.

Every call is one operation for the batch handler, so it has the same guarantees: Set and Delete are replicated by
Raft, and Get is linearizable from any replica. An absent key is answered with an empty value, which a KvDB gateway
turns into NOT_FOUND; the internal batch service tells an absent key from an empty value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from flotta_proto.flotta.storage_pb2 import DELETE, GET, PUT, Operation, Reply
from flotta_proto.kvdb import kvstore_pb2 as kv
from flotta_proto.kvdb import replication_pb2
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_proto.kvdb.kvstore_pb2_grpc import KVServiceServicer
from flotta_proto.kvdb.replication_pb2_grpc import ReplicationServiceServicer
from flotta_runtime.errors import (
    FlottaError,
    InternalError,
    InvalidArgument,
    NotLeader,
    PayloadTooLarge,
    PreconditionFailed,
    RateLimited,
    ShardMoved,
    Timeout,
    Unavailable,
)

from flotta_storage.batch_handler import BatchHandler
from flotta_storage.map_model import MapModel

NO_MAP = "Shard map not initialized"
_REPLICATED_BY_RAFT = "replication between storage nodes is Raft; a single write cannot be handed to one replica"


def error_of(reply: Reply) -> FlottaError | None:
    """The error that a reply stands for; None for OK and NOT_FOUND."""
    code = reply.code
    if code in (Status.OK, Status.NOT_FOUND):
        return None
    if code == Status.NOT_LEADER:
        return NotLeader(reply.leader_hint or None)
    if code == Status.SHARD_MOVED:
        return ShardMoved(reply.shard_id, reply.new_node_hint or None)
    if code == Status.RATE_LIMITED:
        return RateLimited(reply.message, retry_after_ms=reply.retry_after_ms)
    if code == Status.INVALID_ARGUMENT:
        return InvalidArgument(reply.message)
    if code == Status.PAYLOAD_TOO_LARGE:
        return PayloadTooLarge(reply.message)
    if code == Status.UNAVAILABLE:
        return Unavailable(reply.message, shard_id=reply.shard_id)
    if code == Status.TIMEOUT:
        return Timeout(reply.message, shard_id=reply.shard_id)
    return InternalError(reply.message)


class KvService(KVServiceServicer):
    """See the module. `shutdown` asks the process to end."""

    def __init__(self, handler: BatchHandler, model: MapModel, shutdown: Callable[[], None]) -> None:
        self._handler = handler
        self._model = model
        self._shutdown = shutdown

    async def Get(self, request: kv.KeyRequest, context: Any) -> kv.ValueResponse:
        reply = await self._execute(GET, request.key, b"", context)
        return kv.ValueResponse(value=reply.value)

    async def Set(self, request: kv.KeyValueRequest, context: Any) -> kv.SetResponse:
        await self._execute(PUT, request.key, request.value, context)
        return kv.SetResponse(success=True)

    async def Delete(self, request: kv.DeleteRequest, context: Any) -> kv.DeleteResponse:
        reply = await self._execute(DELETE, request.key, b"", context)
        return kv.DeleteResponse(success=reply.code == Status.OK)

    async def ReplicateSet(self, request: kv.ReplicateSetRequest, context: Any) -> kv.SetResponse:
        raise PreconditionFailed(_REPLICATED_BY_RAFT)

    async def ReplicateDelete(self, request: kv.ReplicateDeleteRequest, context: Any) -> kv.DeleteResponse:
        raise PreconditionFailed(_REPLICATED_BY_RAFT)

    async def Ping(self, request: kv.PingRequest, context: Any) -> kv.PingResponse:
        return kv.PingResponse(message="pong")

    async def Shutdown(self, request: kv.ShutdownRequest, context: Any) -> kv.ShutdownResponse:
        self._shutdown()
        return kv.ShutdownResponse(message="goodbye")

    async def _execute(self, kind: Any, key: bytes, value: bytes, context: Any) -> Reply:
        if not self._model.num_shards:
            raise Unavailable(NO_MAP)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def answered(replies: list[Reply]) -> None:
            if not future.done():
                future.set_result(replies[0])

        remaining_s = context.time_remaining()
        operation = Operation(
            call=1,
            kind=kind,
            shard_id=self._model.home_of(key),
            key=key,
            value=value,
            deadline_ms=max(1, int(remaining_s * 1000)) if remaining_s is not None else 0,
        )
        self._handler.handle([operation], answered)
        reply = await future
        error = error_of(reply)
        if error is not None:
            raise error
        return reply


class ReplicationService(ReplicationServiceServicer):
    """Declared by KvDB and served by nobody."""

    async def Replicate(
        self, request: replication_pb2.ReplicationRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> replication_pb2.ReplicationResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, _REPLICATED_BY_RAFT)
