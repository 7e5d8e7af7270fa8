"""From a storage node's replies to the responses of clients, as bytes ready to be sent.

As in KvDB, what an operation came to travels in `status` of a reply whose gRPC status is OK.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, cast

from flotta_proto.flotta import storage_pb2 as storage
from flotta_proto.kvdb import gateway_pb2 as gateway
from flotta_runtime.errors import FlottaError, KvCode

from flotta_gateway.core.retry import Failure, Fate

# What comes of a change that is under way: an election, a move, a restart. Asking again at once would meet it still.
RETRY_AFTER_MS: Final = 100
_PASSES: Final = frozenset({KvCode.UNAVAILABLE, KvCode.NOT_LEADER, KvCode.SHARD_MOVED})


def failure_of(reply: storage.Reply, address: str) -> Failure:
    """A node's refusal, as the retry policy sees it. A code this gateway does not know is an INTERNAL one."""
    try:
        code = KvCode(reply.code)
    except ValueError:
        code = KvCode.INTERNAL
    if code is KvCode.CODE_UNSPECIFIED:
        code = KvCode.INTERNAL
    return Failure(
        Fate.REPLIED,
        code,
        reply.message,
        address,
        reply.shard_id,
        reply.leader_hint,
        reply.new_node_hint,
        reply.retry_after_ms,
    )


def refusal(error: FlottaError) -> Failure:
    """An error of the gateway's own."""
    return Failure(
        Fate.NOT_SENT,
        error.kv_code,
        error.message,
        shard_id=error.shard_id or "",
        leader_hint=error.leader_hint or "",
        retry_after_ms=error.retry_after_ms,
    )


def get_response(key: bytes, reply: storage.Reply, shard_count: int) -> bytes:
    """The response to a Get that found its key."""
    response = gateway.GetResponse(
        kv=gateway.KeyValue(
            key=key,
            value=reply.value,
            version=reply.version,
            create_time_ms=reply.create_time_ms,
            update_time_ms=reply.update_time_ms,
            expire_time_ms=reply.expire_time_ms,
        ),
        revision=reply.revision,
        guarantee=cast("gateway.ServedGuarantee.ValueType", reply.guarantee),
    )
    return _done(reply.shard_id, shard_count) + response.SerializeToString()


def put_response(_key: bytes, reply: storage.Reply, shard_count: int) -> bytes:
    """The response to a Put that was done."""
    response = gateway.PutResponse(version=reply.version, revision=reply.revision)
    return _done(reply.shard_id, shard_count) + response.SerializeToString()


def delete_response(_key: bytes, reply: storage.Reply, shard_count: int) -> bytes:
    """The response to a Delete that was done."""
    response = gateway.DeleteResponse(version=reply.version, revision=reply.revision)
    return _done(reply.shard_id, shard_count) + response.SerializeToString()


def scan_part(_key: bytes, reply: storage.Reply, _shard_count: int) -> bytes:
    """What a shard found, behind a status."""
    return _done(reply.shard_id, 0) + reply.value


@lru_cache(maxsize=4096)
def _done(shard_id: str, shard_count: int) -> bytes:
    """What every response of a shard begins with, whichever request it answers: their fields `status` and `shard_count`
    have the same numbers in all.

    Two parts of one message, each serialised, are the message when put together."""
    status = gateway.Status(code=gateway.Status.OK, shard_id=shard_id)
    return gateway.PutResponse(status=status, shard_count=shard_count).SerializeToString()


SUCCESS: dict[int, Callable[[bytes, storage.Reply, int], bytes]] = {
    storage.GET: get_response,
    storage.PUT: put_response,
    storage.DELETE: delete_response,
    storage.SCAN: scan_part,
}
Answer = gateway.GetResponse | gateway.PutResponse | gateway.DeleteResponse | storage.ScanPart
MESSAGE: dict[int, type[Answer]] = {
    storage.GET: gateway.GetResponse,
    storage.PUT: gateway.PutResponse,
    storage.DELETE: gateway.DeleteResponse,
    storage.SCAN: storage.ScanPart,
}


def failure_response(kind: int, failure: Failure) -> bytes:
    """The response to a request that was not done, or perhaps not."""
    return MESSAGE[kind](status=failure_status(failure)).SerializeToString()


def failure_status(failure: Failure) -> gateway.Status:
    """What a client is told of a failure."""
    return gateway.Status(
        code=cast("gateway.Status.Code.ValueType", int(failure.code)),
        message=failure.message,
        leader_hint=failure.leader_hint or failure.new_node_hint,
        shard_id=failure.shard_id,
        retry_after_ms=failure.retry_after_ms or (RETRY_AFTER_MS if failure.code in _PASSES else 0),
    )
