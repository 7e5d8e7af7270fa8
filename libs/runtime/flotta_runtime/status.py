"""Errors to gRPC and back, in one place.

What goes out: the status code of the error's class, its message as description, and the routing hints as ASCII
trailers. What comes in is turned back into the same error class, so callers match on types and not on texts.
"""

from __future__ import annotations

import grpc
import grpc.aio

from flotta_runtime.errors import (
    AlreadyExists,
    ConnectionLost,
    FlottaError,
    InternalError,
    InvalidArgument,
    NotFound,
    NotLeader,
    PayloadTooLarge,
    PermissionDenied,
    PreconditionFailed,
    RateLimited,
    ShardMoved,
    Timeout,
    Unauthenticated,
    Unavailable,
    VersionMismatch,
)

LEADER_HINT = "x-leader-hint"
SHARD_ID = "x-shard-id"
NEW_NODE_HINT = "x-new-node-hint"
RETRY_AFTER_MS = "x-retry-after-ms"
ERROR_NAME = "x-flotta-error"

_NEVER_SENT = ("failed to connect to all addresses", "DNS resolution failed", "empty address list")
_HINT_WORDS = "Leader hint: "


def grpc_code(error: FlottaError) -> grpc.StatusCode:
    """The gRPC status code of an error."""
    return grpc.StatusCode[error.grpc_code]


def trailers(error: FlottaError) -> tuple[tuple[str, str], ...]:
    """The trailing metadata of an error. A hint that is not known is left out, never sent empty.

    `x-flotta-error` names the class where the gRPC code alone does not tell it, and tells an UNAVAILABLE that a
    handler answered (it certainly did not happen) from one that a broken connection made up (it may have).
    """
    made: list[tuple[str, str]] = []
    if error.leader_hint:
        made.append((LEADER_HINT, error.leader_hint))
    if error.shard_id:
        made.append((SHARD_ID, error.shard_id))
    if error.new_node_hint:
        made.append((NEW_NODE_HINT, error.new_node_hint))
    if error.retry_after_ms:
        made.append((RETRY_AFTER_MS, str(error.retry_after_ms)))
    if error.grpc_code in ("FAILED_PRECONDITION", "INVALID_ARGUMENT", "UNAVAILABLE"):
        made.append((ERROR_NAME, error.name))
    return tuple(made)


def metadata_value(metadata: grpc.aio.Metadata | None, key: str) -> str | None:
    """The first value under `key` as text, or None."""
    if metadata is None:
        return None
    for name, value in metadata:
        if name == key:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return None


def from_rpc_error(error: grpc.aio.AioRpcError) -> FlottaError:
    """The error a server meant. Never raises; an unknown code is an InternalError."""
    trailing = error.trailing_metadata()
    details = error.details() or error.code().name
    shard_id = metadata_value(trailing, SHARD_ID)
    code = error.code()
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return _failed_precondition(trailing, details, shard_id)
    if code is grpc.StatusCode.UNAVAILABLE and not metadata_value(trailing, ERROR_NAME):
        # Not a server of ours that said so: the transport did. Unless it never connected, the call may have arrived.
        return Unavailable(details) if details.startswith(_NEVER_SENT) else ConnectionLost(details, shard_id=shard_id)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        text = metadata_value(trailing, RETRY_AFTER_MS)
        return RateLimited(details, retry_after_ms=int(text) if text and text.isdecimal() else 0)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        if metadata_value(trailing, ERROR_NAME) == PayloadTooLarge.name:
            return PayloadTooLarge(details)
        return InvalidArgument(details)
    return _BY_CODE.get(code, InternalError)(details, shard_id=shard_id)


def _failed_precondition(trailing: grpc.aio.Metadata | None, details: str, shard_id: str | None) -> FlottaError:
    name = metadata_value(trailing, ERROR_NAME)
    leader = metadata_value(trailing, LEADER_HINT)
    moved = metadata_value(trailing, NEW_NODE_HINT)
    if leader is None and _HINT_WORDS in details:
        # KvDB's own servers say it in words; "null" is their word for a leader they do not know.
        words = details.rpartition(_HINT_WORDS)[2].strip()
        leader = words if ":" in words else None
        name = name or NotLeader.name
    if name == NotLeader.name or leader is not None or details.startswith("Not the leader"):
        return NotLeader(leader, shard_id=shard_id)
    if name == ShardMoved.name or moved is not None or details.startswith("Shard has moved"):
        return ShardMoved(shard_id or "", moved)
    if name == VersionMismatch.name:
        return VersionMismatch(details, shard_id=shard_id)
    return PreconditionFailed(details, shard_id=shard_id)


_BY_CODE: dict[grpc.StatusCode, type[FlottaError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Timeout,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
}
