"""Between the client's messages and the storage nodes': requests to operations, replies to responses.

As in KvDB, what an operation came to travels in `status` of a reply whose gRPC status is OK.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from flotta_proto.flotta import storage_pb2 as storage
from flotta_proto.kvdb import gateway_pb2 as gateway
from flotta_runtime.errors import FlottaError, KvCode

from flotta_gateway.core.retry import Failure, Fate

Request = gateway.GetRequest | gateway.PutRequest | gateway.DeleteRequest
Response = gateway.GetResponse | gateway.PutResponse | gateway.DeleteResponse


def operation_of(request: Request) -> storage.Operation:
    """The operation a request asks for, but for its call number, route and deadline, which belong to an attempt."""
    if isinstance(request, gateway.GetRequest):
        options = request.options
        return storage.Operation(
            kind=storage.GET,
            key=request.key,
            consistency=options.consistency,
            read_mode=options.read_mode,
            max_staleness_ms=options.max_staleness_ms,
            session_revision=options.session_revision,
            head_only=request.head_only,
        )
    write = request.options
    request_id = request.ctx.request_id if write.require_idempotency else ""
    if isinstance(request, gateway.PutRequest):
        return storage.Operation(
            kind=storage.PUT,
            key=request.key,
            value=request.value,
            ttl_ms=write.ttl_ms,
            if_version_equals=write.if_version_equals,
            if_not_exists=write.if_not_exists,
            request_id=request_id,
        )
    return storage.Operation(
        kind=storage.DELETE, key=request.key, if_version_equals=write.if_version_equals, request_id=request_id
    )


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


def get_response(key: bytes, reply: storage.Reply) -> gateway.GetResponse:
    """The response to a Get that found its key."""
    return gateway.GetResponse(
        status=gateway.Status(code=gateway.Status.OK, shard_id=reply.shard_id),
        kv=gateway.KeyValue(
            key=key,
            value=reply.value,
            version=reply.version,
            create_time_ms=reply.create_time_ms,
            update_time_ms=reply.update_time_ms,
            expire_time_ms=reply.expire_time_ms,
        ),
        revision=reply.revision,
    )


def put_response(_key: bytes, reply: storage.Reply) -> gateway.PutResponse:
    """The response to a Put that was done."""
    return gateway.PutResponse(
        status=gateway.Status(code=gateway.Status.OK, shard_id=reply.shard_id),
        version=reply.version,
        revision=reply.revision,
    )


def delete_response(_key: bytes, reply: storage.Reply) -> gateway.DeleteResponse:
    """The response to a Delete that was done."""
    return gateway.DeleteResponse(
        status=gateway.Status(code=gateway.Status.OK, shard_id=reply.shard_id),
        version=reply.version,
        revision=reply.revision,
    )


SUCCESS: dict[int, Callable[[bytes, storage.Reply], Response]] = {
    storage.GET: get_response,
    storage.PUT: put_response,
    storage.DELETE: delete_response,
}
_EMPTY: dict[int, type[gateway.GetResponse] | type[gateway.PutResponse] | type[gateway.DeleteResponse]] = {
    storage.GET: gateway.GetResponse,
    storage.PUT: gateway.PutResponse,
    storage.DELETE: gateway.DeleteResponse,
}


def failure_response(kind: int, failure: Failure) -> Response:
    """The response to a request that was not done, or perhaps not."""
    return _EMPTY[kind](
        status=gateway.Status(
            code=cast("gateway.Status.Code.ValueType", int(failure.code)),
            message=failure.message,
            leader_hint=failure.leader_hint,
            shard_id=failure.shard_id,
            retry_after_ms=failure.retry_after_ms,
        )
    )
