"""Exactly-once for writes that carry a request id, inside the apply of `kv.write`.

A request id counts together with its key. Within `WINDOW_MS` of group time a repeated id is answered with its first
outcome, rejections included. An id of the form `flotta:<ms>:<anything>` also says when its first attempt was made:
outside the time in which the window can vouch for it, it is refused and never executed.

Invariant: for such ids no two executions are possible at all. Row and id are compared with the same group time: a row
recorded at T answers until T + WINDOW_MS, an id is refused from its own time + WINDOW_MS - SKEW_MS on, and an id more
than SKEW_MS ahead is refused, so its own time is at most T + SKEW_MS.
"""

from __future__ import annotations

import struct
from typing import Final

from flotta_embedded.api import Command, Overlay
from flotta_embedded.dedup import CONFLICT, EXPIRY, FRESH, DedupRun, row_key

from .writes import Write, WriteKind, WriteResult

WINDOW_MS: Final = 600_000
SKEW_MS: Final = 60_000
TIMED_PREFIX: Final = b"flotta:"

_OUTCOME = struct.Struct(">BQQ")


def dedup_row(table: bytes, write: Write) -> bytes:
    return row_key(table, write.key, write.request_id)


def attempt_ms(request_id: bytes) -> int | None:
    """When the first attempt was made, if the id says so."""
    if not request_id.startswith(TIMED_PREFIX):
        return None
    digits, separator, _ = request_id[len(TIMED_PREFIX) :].partition(b":")
    return int(digits) if separator and 0 < len(digits) <= 16 and digits.isdigit() else None


def next_out_of_window_ms(index_key: bytes) -> int:
    """When the dedup row behind an index key may go."""
    return int.from_bytes(index_key[len(EXPIRY) : len(EXPIRY) + 8], "big") + WINDOW_MS


def new_run(overlay: Overlay, commands: int, last_ms: int, *, sweeping: bool = True) -> DedupRun:
    return DedupRun(overlay, WINDOW_MS, last_ms=last_ms, commands=commands, sweeping=sweeping)


def earlier(run: DedupRun, row: bytes, command: Command, write: Write) -> WriteResult | None:
    """What a repeated or untimely write is answered without being executed; None: execute and `record` it."""
    seen = run.lookup(row, write.fingerprint, command.now_ms)
    if seen is CONFLICT:
        return WriteResult(WriteKind.DEDUP_CONFLICT, command.revision)
    if seen is not FRESH:
        kind, revision, version = _OUTCOME.unpack(seen.outcome)
        return WriteResult(WriteKind(kind), revision, version, True)
    first_ms = attempt_ms(write.request_id)
    if first_ms is None:
        return None
    if first_ms > command.now_ms + SKEW_MS or command.now_ms >= first_ms + WINDOW_MS - SKEW_MS:
        return WriteResult(WriteKind.DEDUP_UNTIMELY, command.revision)
    return None


def record(run: DedupRun, row: bytes, command: Command, write: Write, result: WriteResult) -> None:
    outcome = _OUTCOME.pack(result.kind, result.revision, result.version)
    run.record(row, write.fingerprint, outcome, command.now_ms)
