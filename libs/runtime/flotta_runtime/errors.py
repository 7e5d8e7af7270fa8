"""One family of errors for the whole system, and the one table of how each looks from outside.

A core raises a `FlottaError`; the transports translate it (`status.py` for gRPC, the admin service for HTTP)
from the class attributes here. This module imports nothing but the standard library, so every `core/` may use it.

Invariants:
- `outcome_unknown` is true only for errors after which the operation may have happened; every other error
  promises that it did not.
- `InvariantError` is not an `Exception`: no `except Exception` may carry on after it.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class KvCode(enum.IntEnum):
    """The numbers of kvdb.gateway.Status.Code."""

    CODE_UNSPECIFIED = 0
    OK = 1
    INVALID_ARGUMENT = 2
    NOT_FOUND = 3
    ALREADY_EXISTS = 4
    VERSION_MISMATCH = 5
    PRECONDITION_FAILED = 6
    RATE_LIMITED = 7
    PAYLOAD_TOO_LARGE = 8
    UNAVAILABLE = 9
    TIMEOUT = 10
    INTERNAL = 11
    NOT_LEADER = 12
    SHARD_MOVED = 13


class FlottaError(Exception):
    """Base of all expected errors. `message` is one clear sentence for the caller.

    Attributes usable on every error (None or 0 when they say nothing): `shard_id`, `leader_hint` (host:port),
    `new_node_hint` (host:port), `retry_after_ms`.
    """

    grpc_code: ClassVar[str] = "INTERNAL"  # name of a grpc.StatusCode
    kv_code: ClassVar[KvCode] = KvCode.INTERNAL
    http_status: ClassVar[int] = 500
    name: ClassVar[str] = "INTERNAL_ERROR"  # the `error` field of HTTP bodies
    outcome_unknown: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        shard_id: str | None = None,
        leader_hint: str | None = None,
        new_node_hint: str | None = None,
        retry_after_ms: int = 0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.shard_id = shard_id
        self.leader_hint = leader_hint
        self.new_node_hint = new_node_hint
        self.retry_after_ms = retry_after_ms


class InvalidArgument(FlottaError):
    """The request can never succeed as it is. Name the field, and the limit it broke when there is one."""

    grpc_code = "INVALID_ARGUMENT"
    kv_code = KvCode.INVALID_ARGUMENT
    http_status = 400
    name = "INVALID_ARGUMENT"

    def __init__(self, message: str, *, field: str | None = None, limit: int | str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.limit = limit


class NotFound(FlottaError):
    """The named node, shard or key does not exist."""

    grpc_code = "NOT_FOUND"
    kv_code = KvCode.NOT_FOUND
    http_status = 404
    name = "NOT_FOUND"


class AlreadyExists(FlottaError):
    """Create-only met something that exists, or a repeat differs from the first request."""

    grpc_code = "ALREADY_EXISTS"
    kv_code = KvCode.ALREADY_EXISTS
    http_status = 409
    name = "ALREADY_EXISTS"


class VersionMismatch(FlottaError):
    """A compare-and-set found another version."""

    grpc_code = "FAILED_PRECONDITION"
    kv_code = KvCode.VERSION_MISMATCH
    http_status = 412
    name = "VERSION_MISMATCH"


class PreconditionFailed(FlottaError):
    """The system is not in the state this request needs; nothing was changed."""

    grpc_code = "FAILED_PRECONDITION"
    kv_code = KvCode.PRECONDITION_FAILED
    http_status = 412
    name = "PRECONDITION_FAILED"


class RateLimited(FlottaError):
    """Too much work is waiting; try again after `retry_after_ms`."""

    grpc_code = "RESOURCE_EXHAUSTED"
    kv_code = KvCode.RATE_LIMITED
    http_status = 429
    name = "RATE_LIMITED"

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message, retry_after_ms=retry_after_ms)


class PayloadTooLarge(FlottaError):
    """A key, value or request is over its configured size. Name the field and the limit."""

    grpc_code = "INVALID_ARGUMENT"
    kv_code = KvCode.PAYLOAD_TOO_LARGE
    http_status = 413
    name = "PAYLOAD_TOO_LARGE"

    def __init__(self, message: str, *, field: str | None = None, limit: int | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.limit = limit


class Unavailable(FlottaError):
    """It certainly did not happen, and may work later (no leader, no map, node down, shutting down)."""

    grpc_code = "UNAVAILABLE"
    kv_code = KvCode.UNAVAILABLE
    http_status = 503
    name = "UNAVAILABLE"


class Timeout(FlottaError):
    """The deadline passed. The operation may have happened, or may still happen."""

    grpc_code = "DEADLINE_EXCEEDED"
    kv_code = KvCode.TIMEOUT
    http_status = 504
    name = "TIMEOUT"
    outcome_unknown = True


class ConnectionLost(Timeout):
    """The connection broke before the answer came. The operation may have happened."""

    name = "CONNECTION_LOST"


class NotLeader(FlottaError):
    """This member does not lead. `leader_hint` is host:port, or None when the leader is not known."""

    grpc_code = "FAILED_PRECONDITION"
    kv_code = KvCode.NOT_LEADER
    http_status = 503
    name = "NOT_LEADER"

    def __init__(self, leader_hint: str | None = None, *, shard_id: str | None = None) -> None:
        # KvDB's clients read the address after the words "Leader hint: ".
        super().__init__(
            f"Not the leader. Leader hint: {leader_hint}" if leader_hint else "Not the leader. The leader is not known",
            leader_hint=leader_hint,
            shard_id=shard_id,
        )


class ShardMoved(FlottaError):
    """The caller's map is older than the shard: wrong node, or wrong epoch."""

    grpc_code = "FAILED_PRECONDITION"
    kv_code = KvCode.SHARD_MOVED
    http_status = 410
    name = "SHARD_MOVED"

    def __init__(self, shard_id: str, new_node_hint: str | None = None) -> None:
        super().__init__(
            f"Shard has moved to: {new_node_hint or ''}".rstrip(), shard_id=shard_id, new_node_hint=new_node_hint
        )


class Unauthenticated(FlottaError):
    """No or wrong credentials."""

    grpc_code = "UNAUTHENTICATED"
    kv_code = KvCode.PRECONDITION_FAILED
    http_status = 401
    name = "UNAUTHENTICATED"


class PermissionDenied(FlottaError):
    """Known caller, not allowed."""

    grpc_code = "PERMISSION_DENIED"
    kv_code = KvCode.PRECONDITION_FAILED
    http_status = 403
    name = "PERMISSION_DENIED"


class InternalError(FlottaError):
    """Something failed that should not have; the log has more under the id in the message."""

    outcome_unknown = True


class StartupError(Exception):
    """The process cannot start. The text is one sentence for the operator; `run.py` prints it and exits with 1."""


class InvariantError(BaseException):
    """Something that can never be true is true. The process ends before it does harm."""


def check(condition: bool, message: str) -> None:
    """Raise InvariantError unless `condition` holds. For checks cheap enough to stay on."""
    if not condition:
        raise InvariantError(message)
