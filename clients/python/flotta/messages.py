"""Between what the client takes and gives, and the gateway's messages."""

from __future__ import annotations

import secrets
import time

from flotta_proto.flotta import kv_pb2
from flotta_proto.kvdb import gateway_pb2 as pb

from flotta.errors import (
    AlreadyExistsError,
    FlottaError,
    InternalError,
    InvalidArgumentError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    PreconditionFailedError,
    RateLimitedError,
    UnavailableError,
    VersionMismatchError,
)
from flotta.models import Consistency, Delete, Entry, Get, Guarantee, Operation

Request = pb.GetRequest | pb.PutRequest | pb.DeleteRequest
Response = pb.GetResponse | pb.PutResponse | pb.DeleteResponse

GUARANTEES = {guarantee.value: guarantee for guarantee in Guarantee}
_ERRORS: dict[int, type[FlottaError]] = {
    pb.Status.INVALID_ARGUMENT: InvalidArgumentError,
    pb.Status.ALREADY_EXISTS: AlreadyExistsError,
    pb.Status.VERSION_MISMATCH: VersionMismatchError,
    pb.Status.PRECONDITION_FAILED: PreconditionFailedError,
    pb.Status.PAYLOAD_TOO_LARGE: PayloadTooLargeError,
    pb.Status.UNAVAILABLE: UnavailableError,
    pb.Status.NOT_LEADER: UnavailableError,
    pb.Status.SHARD_MOVED: UnavailableError,
    pb.Status.TIMEOUT: OutcomeUnknownError,
}


def request_of(operation: Operation, idempotent: bool) -> Request:
    """The request that carries an operation out; `idempotent`: give a write a request id if it has none."""
    key = key_bytes(operation.key)
    if isinstance(operation, Get):
        weak = operation.consistency is Consistency.EVENTUAL
        reading = pb.ReadOptions(
            consistency=pb.EVENTUAL if weak else pb.STRONG, max_staleness_ms=operation.max_staleness_ms
        )
        return pb.GetRequest(key=key, head_only=operation.head_only, options=reading)
    request_id = operation.request_id
    if not request_id and idempotent:
        request_id = f"flotta:{time.time_ns() // 1_000_000}:{secrets.token_hex(12)}"
    context = pb.RequestContext(request_id=request_id)
    options = pb.WriteOptions(require_idempotency=bool(request_id), if_version_equals=operation.if_version)
    if isinstance(operation, Delete):
        return pb.DeleteRequest(ctx=context, key=key, options=options)
    options.ttl_ms = operation.ttl_ms
    options.if_not_exists = operation.if_absent
    return pb.PutRequest(ctx=context, key=key, value=key_bytes(operation.value), options=options)


def repeatable(request: Request) -> bool:
    """Whether sending it twice is as good as once."""
    return isinstance(request, pb.GetRequest) or request.options.require_idempotency


def item_of(request: Request) -> kv_pb2.BatchItem:
    if isinstance(request, pb.GetRequest):
        return kv_pb2.BatchItem(get=request)
    if isinstance(request, pb.PutRequest):
        return kv_pb2.BatchItem(put=request)
    return kv_pb2.BatchItem(delete=request)


def response_of(result: kv_pb2.BatchResult) -> Response:
    """InternalError for a result that is none."""
    name = result.WhichOneof("response")
    if name is None:
        raise InternalError("the gateway answered an item of the batch with nothing")
    response: Response = getattr(result, name)
    return response


def entry_of(response: pb.GetResponse) -> Entry | None:
    """What a get found. Raises what its status says."""
    if response.status.code == pb.Status.NOT_FOUND:
        return None
    raise_unless_ok(response.status)
    kv = response.kv
    return Entry(
        kv.key,
        kv.value,
        kv.version,
        kv.create_time_ms,
        kv.update_time_ms,
        kv.expire_time_ms,
        GUARANTEES.get(response.guarantee, Guarantee.UNKNOWN),
        response.status.shard_id,
        response.revision,
    )


def version_of(response: pb.PutResponse | pb.DeleteResponse) -> int | None:
    """The version a write made, None for a deletion of nothing. Raises what its status says."""
    if isinstance(response, pb.DeleteResponse) and response.status.code == pb.Status.NOT_FOUND:
        return None
    raise_unless_ok(response.status)
    return response.version


def result_of(response: Response, in_doubt: bool) -> Entry | int | FlottaError | None:
    """What the call of its own would return, or raise. `in_doubt`: an earlier attempt may have been carried out."""
    try:
        if in_doubt:
            raise_in_doubt(response.status)
        return entry_of(response) if isinstance(response, pb.GetResponse) else version_of(response)
    except FlottaError as error:
        return error


def raise_in_doubt(status: pb.Status) -> None:
    """After an attempt that may have been carried out, nothing else is certainly undone."""
    if status.code == pb.Status.RATE_LIMITED or _ERRORS.get(status.code) is UnavailableError:
        raise OutcomeUnknownError(f"an earlier attempt may have been carried out; {status.message}")


def raise_unless_ok(status: pb.Status) -> None:
    code = status.code
    if code == pb.Status.OK:
        return
    if code == pb.Status.RATE_LIMITED:
        raise RateLimitedError(status.message, shard_id=status.shard_id, retry_after_ms=status.retry_after_ms)
    message = status.message or pb.Status.Code.Name(code)
    raise _ERRORS.get(code, InternalError)(message, shard_id=status.shard_id)


def key_bytes(text: str | bytes) -> bytes:
    """Keys and values are bytes; text is taken as UTF-8."""
    return text.encode("utf-8") if isinstance(text, str) else text
