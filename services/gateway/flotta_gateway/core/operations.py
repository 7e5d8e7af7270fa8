"""Client requests as the operations a storage node takes, after `validation` has let them pass.

Most requests are plain: a key, a value, nothing else set. They are told apart first, because looking into the parts
that are not there is most of the price of a request.
"""

from __future__ import annotations

from flotta_proto.flotta.kv_pb2 import ScanRequest
from flotta_proto.flotta.storage_pb2 import DELETE, GET, PUT, Operation
from flotta_proto.kvdb.gateway_pb2 import DeleteRequest, GetRequest, PutRequest, RequestContext
from flotta_runtime import trace_context

from flotta_gateway.core import validation
from flotta_gateway.core.validation import KEY_BYTES_MAX, Limits

Request = GetRequest | PutRequest | DeleteRequest
Asked = Request | ScanRequest
"""What a client may be held to a rate of."""


def operation_of(request: Request, limits: Limits) -> Operation:
    """The operation a request asks for, but for its call number, route and deadline, which belong to an attempt.
    Raises what `validation` raises."""
    if isinstance(request, PutRequest):
        return _put(request, limits)
    if isinstance(request, GetRequest):
        return _get(request)
    return _delete(request)


def _get(request: GetRequest) -> Operation:
    key = request.key
    if 0 < len(key) <= KEY_BYTES_MAX and not request.HasField("ctx") and not request.HasField("options"):
        return Operation(kind=GET, key=key, head_only=request.head_only)
    validation.check_get(request)
    options = request.options
    return Operation(
        kind=GET,
        key=key,
        consistency=options.consistency,
        read_mode=options.read_mode,
        max_staleness_ms=options.max_staleness_ms,
        session_revision=options.session_revision,
        head_only=request.head_only,
        traceparent=traceparent_of(request.ctx),
    )


def _put(request: PutRequest, limits: Limits) -> Operation:
    key, value = request.key, request.value
    if (
        0 < len(key) <= KEY_BYTES_MAX
        and len(value) <= limits.value_bytes_max
        and not request.HasField("ctx")
        and not request.HasField("options")
    ):
        return Operation(kind=PUT, key=key, value=value)
    validation.check_put(request, limits)
    options = request.options
    return Operation(
        kind=PUT,
        key=key,
        value=value,
        ttl_ms=options.ttl_ms,
        if_version_equals=options.if_version_equals,
        if_not_exists=options.if_not_exists,
        request_id=request.ctx.request_id if options.require_idempotency else "",
        traceparent=traceparent_of(request.ctx),
    )


def _delete(request: DeleteRequest) -> Operation:
    validation.check_delete(request)
    options = request.options
    return Operation(
        kind=DELETE,
        key=request.key,
        if_version_equals=options.if_version_equals,
        request_id=request.ctx.request_id if options.require_idempotency else "",
        traceparent=traceparent_of(request.ctx),
    )


def traceparent_of(ctx: RequestContext) -> str:
    """The client's trace context. A malformed one is left out, as W3C wants it: a request never fails for its trace."""
    return ctx.traceparent if ctx.traceparent and trace_context.parse(ctx.traceparent) is not None else ""
