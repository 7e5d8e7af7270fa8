"""Exactly-once for retried writes: a replicated row per (table, key, request id), with the outcome of its first run.

A row answers for `window_ms` of group time after it was recorded; from then on it counts as absent, whether or not it
has been removed. Rows that are out of the window are removed a few per recorded command, by an index ordered by time.

Invariants: nothing here reads a clock; what is removed depends on the commands alone, never on how they were cut
into batches; a row and its index row come and go together.
"""

from __future__ import annotations

import heapq
import struct
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import Final, Literal

from .api import Overlay
from .keys import DEDUP

ROWS = DEDUP + b"r"
EXPIRY = DEDUP + b"x"
EXPIRY_END = DEDUP + b"y"

SWEPT_PER_RECORD = 2
FINGERPRINT_BYTES = 16
REQUEST_ID_BYTES_MAX = 256
TABLE_BYTES_MAX = 255
KEY_BYTES_MAX = 65_535

_TIME = struct.Struct(">Q")
_PREFIX = len(EXPIRY)
_TIME_END = _PREFIX + _TIME.size
_OUTCOME_AT = _TIME.size + FINGERPRINT_BYTES


class _Verdict(Enum):
    FRESH = "fresh"
    CONFLICT = "conflict"


FRESH: Final = _Verdict.FRESH
"""Not seen within the window: run it, then `record` its outcome (a rejection too)."""
CONFLICT: Final = _Verdict.CONFLICT
"""The id was used for another payload: refuse, record nothing."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The first run's outcome, to be answered again."""

    outcome: bytes
    recorded_ms: int


Seen = Literal[_Verdict.FRESH, _Verdict.CONFLICT] | Duplicate


def fingerprint(*parts: bytes) -> bytes:
    """Of everything in a request that must be equal for it to be the same request."""
    digest = blake2b(digest_size=FINGERPRINT_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def row_key(table: bytes, key: bytes, request_id: bytes) -> bytes:
    """Computable before any read, so a run's rows can be fetched in one multi-get."""
    if len(table) > TABLE_BYTES_MAX or len(key) > KEY_BYTES_MAX:
        raise ValueError(
            f"table and key have {len(table)} and {len(key)} bytes, over {TABLE_BYTES_MAX} or {KEY_BYTES_MAX}"
        )
    if not 0 < len(request_id) <= REQUEST_ID_BYTES_MAX:
        raise ValueError(f"request id of {len(request_id)} bytes must have 1 to {REQUEST_ID_BYTES_MAX}")
    return b"".join((ROWS, bytes((len(table),)), table, len(key).to_bytes(2, "big"), key, request_id))


def split_row_key(row: bytes) -> tuple[bytes, bytes, bytes]:
    """(table, key, request id) of a row key, or of an index key's tail: what a shard split divides rows by."""
    at = len(ROWS)
    table_end = at + 1 + row[at]
    key_at = table_end + 2
    key_end = key_at + int.from_bytes(row[table_end:key_at], "big")
    return row[at + 1 : table_end], row[key_at:key_end], row[key_end:]


def expiry_key(recorded_ms: int, row: bytes) -> bytes:
    return b"".join((EXPIRY, _TIME.pack(recorded_ms), row[len(ROWS) :]))


def index_of(row_key: bytes, row: bytes) -> bytes:
    """The index key that stands beside a row."""
    return expiry_key(_TIME.unpack_from(row)[0], row_key)


def row_of_expiry_key(key: bytes) -> bytes:
    return ROWS + key[_TIME_END:]


class DedupRun:
    """Dedup for one run of commands, in order. `last_ms` is the group time of the last of its `commands`; with
    `sweeping` false nothing is removed."""

    def __init__(
        self, overlay: Overlay, window_ms: int, *, last_ms: int, commands: int = 1, sweeping: bool = True
    ) -> None:
        if window_ms < 1:
            raise ValueError(f"window_ms {window_ms} must be positive")
        self._overlay = overlay
        self._window_ms = window_ms
        self._last_ms = last_ms
        self._commands = commands
        self._sweeping = sweeping
        self._expiring: list[bytes] | None = None  # a heap of index keys
        self._removed: set[bytes] = set()

    def lookup(self, row: bytes, fingerprint: bytes, now_ms: int) -> Seen:
        stored = self._overlay.get(row)
        if stored is None:
            return FRESH
        recorded_ms = _TIME.unpack_from(stored)[0]
        if recorded_ms + self._window_ms <= now_ms:
            return FRESH
        if stored[_TIME.size : _OUTCOME_AT] != fingerprint:
            return CONFLICT
        return Duplicate(stored[_OUTCOME_AT:], recorded_ms)

    def record(self, row: bytes, fingerprint: bytes, outcome: bytes, now_ms: int) -> None:
        """Keep the outcome of a command that `lookup` called FRESH (one per command), and remove a few expired rows."""
        if len(fingerprint) != FINGERPRINT_BYTES:
            raise ValueError(f"fingerprint of {len(fingerprint)} bytes, it must have {FINGERPRINT_BYTES}")
        if self._sweeping:
            self._sweep(now_ms, SWEPT_PER_RECORD)
        before = self._overlay.get(row)
        if before is not None:
            self._remove_index(expiry_key(_TIME.unpack_from(before)[0], row))
        index = expiry_key(now_ms, row)
        self._overlay.put(row, b"".join((_TIME.pack(now_ms), fingerprint, outcome)))
        self._overlay.put(index, b"")
        self._removed.discard(index)
        if self._sweeping:
            heapq.heappush(self._heap(), index)

    def _heap(self) -> list[bytes]:
        if self._expiring is None:
            # Each record removes at most SWEPT_PER_RECORD of these and makes one stale: more are never looked at.
            most = self._commands * (SWEPT_PER_RECORD + 1)
            self._expiring = _expired(self._overlay, self._window_ms, self._last_ms, most)
        return self._expiring

    def _sweep(self, now_ms: int, most: int) -> None:
        heap = self._heap()
        swept = 0
        while swept < most and heap:
            index = heap[0]
            if _TIME.unpack_from(index, _PREFIX)[0] + self._window_ms > now_ms:
                return
            heapq.heappop(heap)
            if index in self._removed:
                continue
            self._overlay.delete(row_of_expiry_key(index))
            self._remove_index(index)
            swept += 1

    def _remove_index(self, index: bytes) -> None:
        self._overlay.delete(index)
        self._removed.add(index)


def sweep(overlay: Overlay, window_ms: int, now_ms: int, limit: int) -> int:
    """Remove up to `limit` rows that are out of the window: for a command of its own. Returns how many."""
    expired = _expired(overlay, window_ms, now_ms, limit)
    for index in expired:
        overlay.delete(row_of_expiry_key(index))
        overlay.delete(index)
    return len(expired)


def _expired(overlay: Overlay, window_ms: int, now_ms: int, limit: int) -> list[bytes]:
    """The first index keys that are out of the window at `now_ms`, in order."""
    if now_ms < window_ms:
        return []
    high = EXPIRY + _TIME.pack(now_ms - window_ms + 1)
    return [key for key, _ in overlay.scan(EXPIRY, high, limit=limit)]
