"""Outcomes as replies of flotta.storage.v1: one place that says which code means what.

Invariant: TIMEOUT (and only it) is said of an operation that may have happened; NOT_LEADER, SHARD_MOVED, UNAVAILABLE
and RATE_LIMITED are said only of operations that certainly did not and will not.
"""

from __future__ import annotations

from typing import Final

from flotta_consensus.api import Rejected, RejectReason, Unknown
from flotta_proto.flotta.storage_pb2 import (
    ANY,
    BOUNDED,
    DELETE,
    LINEARIZABLE,
    PUT,
    READ_GUARANTEE_UNSPECIFIED,
    SESSION,
    Operation,
    ReadGuarantee,
    Reply,
    ScanPart,
)
from flotta_proto.kvdb.gateway_pb2 import Status

from flotta_storage.core.guarantees import Guarantee
from flotta_storage.core.limits import Refusal
from flotta_storage.core.rows import header_of, value_of
from flotta_storage.core.writes import WriteKind, WriteResult
from flotta_storage.hints import Hints

_WRITTEN: Final = WriteKind.OK
_OK: Final = Status.OK
RETRY_AFTER_MS: Final = 20
_SHOWN_MAX: Final = 64

_NOT_LEADER = (RejectReason.NOT_LEADER, RejectReason.NO_LEADER, RejectReason.LOST)

_WRITE_CODES: Final = {
    WriteKind.OK: (Status.OK, ""),
    WriteKind.NOT_FOUND: (Status.NOT_FOUND, "key does not exist"),
    WriteKind.ALREADY_EXISTS: (Status.ALREADY_EXISTS, "key exists, and if_not_exists was set"),
    WriteKind.VERSION_MISMATCH: (Status.VERSION_MISMATCH, "the key's version is not if_version_equals"),
    WriteKind.DEDUP_CONFLICT: (Status.INVALID_ARGUMENT, "request_id was used before with another payload"),
    WriteKind.DEDUP_UNTIMELY: (
        Status.INVALID_ARGUMENT,
        "request_id names a time too far from now for exactly-once to be certain; nothing was done",
    ),
}


# By the number of the guarantee: looking up an enum in a dictionary costs more.
_GUARANTEES: Final = (READ_GUARANTEE_UNSPECIFIED, LINEARIZABLE, SESSION, BOUNDED, ANY)


def refused(operation: Operation, refusal: Refusal) -> Reply:
    code = Status.PAYLOAD_TOO_LARGE if refusal.too_large else Status.INVALID_ARGUMENT
    return Reply(call=operation.call, code=code, message=refusal.message, shard_id=operation.shard_id)


def rate_limited(operation: Operation) -> Reply:
    return Reply(
        call=operation.call,
        code=Status.RATE_LIMITED,
        message="the storage node has too much in work",
        shard_id=operation.shard_id,
        retry_after_ms=RETRY_AFTER_MS,
    )


def unavailable(operation: Operation, message: str) -> Reply:
    return Reply(call=operation.call, code=Status.UNAVAILABLE, message=message, shard_id=operation.shard_id)


def moved(operation: Operation, hints: Hints) -> Reply:
    """The shard is elsewhere, or under another epoch, or the key went to a shard that was born of it."""
    shard_id = hints.home(operation.shard_id, operation.key)
    hint = hints.new_node(shard_id)
    shard = repr(shard_id[:_SHOWN_MAX])
    return Reply(
        call=operation.call,
        code=Status.SHARD_MOVED,
        message=f"Shard has moved to: {hint}" if hint else f"shard_id: this node does not know where {shard} is",
        shard_id=shard_id,
        new_node_hint=hint,
    )


def not_leader(operation: Operation, hints: Hints, leader_replica: int) -> Reply:
    hint = hints.leader(operation.shard_id, leader_replica)
    return Reply(
        call=operation.call,
        code=Status.NOT_LEADER,
        message=f"Not the leader. Leader hint: {hint}" if hint else "Not the leader. The leader is not known",
        shard_id=operation.shard_id,
        leader_hint=hint,
    )


def without_result(operation: Operation, outcome: Rejected | Unknown, hints: Hints) -> Reply:
    """A proposal or barrier that was not carried out, or nobody knows."""
    if isinstance(outcome, Unknown):
        text = "the deadline passed"
        if operation.kind in (PUT, DELETE):
            text += "; the write may have happened"
        return Reply(call=operation.call, code=Status.TIMEOUT, message=text, shard_id=operation.shard_id)
    if outcome.reason in _NOT_LEADER:
        return not_leader(operation, hints, outcome.leader)
    if outcome.reason is RejectReason.UNKNOWN_GROUP:
        return moved(operation, hints)
    if outcome.reason is RejectReason.OVERLOADED:
        return rate_limited(operation)
    return unavailable(operation, f"the storage node refused the operation: {outcome.reason.value}")


def written(operation: Operation, result: WriteResult, hints: Hints) -> Reply:
    """What a committed write came to."""
    if result.kind is _WRITTEN and not result.duplicate:
        return Reply(
            call=operation.call,
            code=_OK,
            version=result.version,
            shard_id=operation.shard_id,
            revision=result.revision,
        )
    if result.kind is WriteKind.SHARD_MOVED:
        return moved(operation, hints)
    code, message = _WRITE_CODES[result.kind]
    return Reply(
        call=operation.call,
        code=code,
        message=message,
        version=result.version,
        shard_id=operation.shard_id,
        revision=result.revision,
        duplicate=result.duplicate,
    )


def found(operation: Operation, row: bytes, revision: int, guarantee: Guarantee) -> Reply:
    version, create_ms, update_ms, expire_ms = header_of(row)
    return Reply(
        call=operation.call,
        code=_OK,
        value=b"" if operation.head_only else value_of(row),
        version=version,
        create_time_ms=create_ms,
        update_time_ms=update_ms,
        expire_time_ms=expire_ms,
        shard_id=operation.shard_id,
        revision=revision,
        guarantee=_GUARANTEES[guarantee],
    )


def absent(operation: Operation, revision: int, guarantee: Guarantee) -> Reply:
    return Reply(
        call=operation.call,
        code=Status.NOT_FOUND,
        message="key does not exist",
        shard_id=operation.shard_id,
        revision=revision,
        guarantee=_GUARANTEES[guarantee],
    )


def guarantee_of(guarantee: Guarantee) -> ReadGuarantee.ValueType:
    """The protocol's name of a promise."""
    return _GUARANTEES[guarantee]


def scanned(operation: Operation, part: ScanPart) -> Reply:
    return Reply(
        call=operation.call,
        code=_OK,
        value=part.SerializeToString(),
        shard_id=operation.shard_id,
        revision=part.revision,
        guarantee=part.guarantee,
    )


def unreached(operation: Operation, revision: int) -> Reply:
    """A session's revision that the shard, caught up by a barrier, has not reached: it is not of this shard."""
    return Reply(
        call=operation.call,
        code=Status.PRECONDITION_FAILED,
        message=f"session_revision is {operation.session_revision}, but {operation.shard_id} has only reached "
        f"{revision}; a session's revision belongs to one shard",
        shard_id=operation.shard_id,
        revision=revision,
    )
