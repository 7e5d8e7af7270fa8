"""Bad input, refused before anything is routed: each error names the field and the limit it broke.

Field names are the proto's. What is refused here has changed nothing anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from flotta_proto.flotta.kv_pb2 import ScanRequest
from flotta_proto.kvdb.gateway_pb2 import (
    READ_YOUR_WRITES,
    Consistency,
    DeleteRequest,
    GetRequest,
    PutRequest,
    ReadMode,
    ReadOptions,
    RequestContext,
    WriteDurability,
    WriteOptions,
)
from flotta_runtime.errors import InvalidArgument, PayloadTooLarge

KEY_BYTES_MAX = 1024
VALUE_BYTES_MAX = 16 * 1024 * 1024
REQUEST_ID_BYTES_MAX = 256
NAME_BYTES_MAX = 256  # of a tenant, and of a principal
TTL_MS_MAX = 1 << 42  # 139 years; the storage nodes take no longer one

_CONSISTENCIES = frozenset(Consistency.values())
_READ_MODES = frozenset(ReadMode.values())
_DURABILITIES = frozenset(WriteDurability.values())


@dataclass(frozen=True, slots=True)
class Limits:
    """What a deployment may set."""

    value_bytes_max: int = VALUE_BYTES_MAX


def check_get(request: GetRequest) -> None:
    """Raise InvalidArgument for a Get that can never be served."""
    _check_key(request.key)
    if request.HasField("ctx"):
        _check_context(request.ctx)
    if request.HasField("options"):
        _check_read(request.options)
        if request.options.session_revision and request.options.read_mode != READ_YOUR_WRITES:
            raise InvalidArgument(
                "options.session_revision needs options.read_mode READ_YOUR_WRITES; without it, it would not be kept",
                field="options.session_revision",
            )


def check_scan_options(request: ScanRequest) -> None:
    """Raise InvalidArgument for a Scan whose context or options can never be served."""
    if request.HasField("ctx"):
        _check_context(request.ctx)
    if request.HasField("options"):
        _check_read(request.options)
        if request.options.session_revision:
            raise InvalidArgument(
                "options.session_revision belongs to one shard, and a scan reads them all; leave it 0",
                field="options.session_revision",
            )


def check_put(request: PutRequest, limits: Limits) -> None:
    """Raise InvalidArgument or PayloadTooLarge for a Put that can never be done."""
    _check_key(request.key)
    size = len(request.value)
    if size > limits.value_bytes_max:
        raise PayloadTooLarge(
            f"value is {size} bytes long; the limit is {limits.value_bytes_max}",
            field="value",
            limit=limits.value_bytes_max,
        )
    _check_write(request.ctx, request.options)
    if request.HasField("options"):
        options = request.options
        if options.ttl_ms > TTL_MS_MAX:
            raise InvalidArgument(
                f"options.ttl_ms is {options.ttl_ms}; the limit is {TTL_MS_MAX}",
                field="options.ttl_ms",
                limit=TTL_MS_MAX,
            )
        if options.if_not_exists and options.if_version_equals:
            raise InvalidArgument(
                "options.if_not_exists and options.if_version_equals contradict each other; set one of them",
                field="options.if_not_exists",
            )


def check_delete(request: DeleteRequest) -> None:
    """Raise InvalidArgument for a Delete that can never be done."""
    _check_key(request.key)
    _check_write(request.ctx, request.options)
    if request.HasField("options"):
        if request.options.if_not_exists:
            raise InvalidArgument("options.if_not_exists makes no sense on a delete", field="options.if_not_exists")
        if request.options.ttl_ms:
            raise InvalidArgument("options.ttl_ms makes no sense on a delete", field="options.ttl_ms")


def _check_key(key: bytes) -> None:
    if not key:
        raise InvalidArgument("Key cannot be empty", field="key")
    if len(key) > KEY_BYTES_MAX:
        raise InvalidArgument(
            f"key is {len(key)} bytes long; the limit is {KEY_BYTES_MAX}", field="key", limit=KEY_BYTES_MAX
        )


def _check_read(options: ReadOptions) -> None:
    _check_enum("options.consistency", options.consistency, _CONSISTENCIES)
    _check_enum("options.read_mode", options.read_mode, _READ_MODES)


def _check_write(ctx: RequestContext, options: WriteOptions) -> None:
    _check_context(ctx)
    _check_enum("options.durability", options.durability, _DURABILITIES)
    if options.require_idempotency and not ctx.request_id:
        raise InvalidArgument(
            "ctx.request_id is empty, but options.require_idempotency needs one", field="ctx.request_id"
        )


def _check_context(ctx: RequestContext) -> None:
    _check_text("ctx.request_id", ctx.request_id, REQUEST_ID_BYTES_MAX)
    _check_text("ctx.tenant_id", ctx.tenant_id, NAME_BYTES_MAX)
    _check_text("ctx.principal", ctx.principal, NAME_BYTES_MAX)


def _check_text(field: str, text: str, bytes_max: int) -> None:
    # A string has at most four bytes a character, so most need no encoding to be found short enough.
    if len(text) * 4 <= bytes_max:
        return
    size = len(text.encode("utf-8"))
    if size > bytes_max:
        raise InvalidArgument(f"{field} is {size} bytes long; the limit is {bytes_max}", field=field, limit=bytes_max)


def _check_enum(field: str, value: int, known: frozenset[int]) -> None:
    if value not in known:
        raise InvalidArgument(f"{field} has the unknown value {value}", field=field)
