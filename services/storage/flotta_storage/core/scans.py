"""A shard's piece of a scan, collected from one frozen view in small steps.

Invariants: what is collected is of one state, and only what the shard owns in it; rows that group time calls expired
are passed over. Every step looks at some rows or ends, and what was not looked at is what `rest` says, so whoever goes
on there misses nothing and sees nothing twice. With `wall_ms` a row that this clock calls expired, and group time does
not yet, ends the piece as `overdue`: nothing of it is to be shown.
"""

from __future__ import annotations

from typing import Final

from flotta_embedded.api import View
from flotta_proto.flotta.storage_pb2 import ScanPart, ScanRange
from flotta_proto.kvdb.gateway_pb2 import KeyValue

from . import keys
from .limits import KEY_BYTES_MAX, Refusal
from .rows import HEADER_BYTES, RowHeader, header_of, value_of
from .shard_state import ShardState

STEP_ROWS: Final = 128  # about half a millisecond
STEP_BYTES: Final = 256 << 10
SCAN_ROWS_MAX: Final = 1 << 16
SCAN_BYTES_MAX: Final = 8 << 20  # keys travel twice, and a reply is one message
ROW_BYTES: Final = 48  # what a row is counted with beside its key and value

Row = tuple[bytes, bytes]
_KEY_AT: Final = len(keys.DATA_PREFIX)


def check_scan(scan: ScanRange) -> Refusal | None:
    """What is wrong with a piece on the face of it."""
    if not 0 < scan.rows_max <= SCAN_ROWS_MAX:
        return Refusal("scan.rows_max", f"scan.rows_max is {scan.rows_max}, it must be 1 to {SCAN_ROWS_MAX}")
    if scan.bytes_max > SCAN_BYTES_MAX:
        return Refusal("scan.bytes_max", f"scan.bytes_max is {scan.bytes_max}, the limit is {SCAN_BYTES_MAX}")
    for name, bound in (("start", scan.start), ("end", scan.end)):
        if len(bound) > KEY_BYTES_MAX + 1:  # the key after the longest one has one byte more
            return Refusal(f"scan.{name}", f"scan.{name} has {len(bound)} bytes, the limit is {KEY_BYTES_MAX + 1}")
    return None


class Cursor:
    """One piece under way; `part` is what has been found so far."""

    def __init__(
        self, view: View, state: ShardState, scan: ScanRange, group_time_ms: int, wall_ms: int | None = None
    ) -> None:
        self._view = view
        self._state = state
        self._scan = scan
        self._group_time_ms = group_time_ms
        self._wall_ms = wall_ms
        self._low = keys.data_key(scan.start)
        self._high = keys.data_key(scan.end) if scan.end else keys.DATA_END
        self._bytes_left = scan.bytes_max
        self.part = ScanPart(
            shard_id=state.shard_id, shard_index=state.shard_index, shard_count=state.shard_count, count=0
        )
        self.ended = False
        self.overdue = False

    def step(self) -> None:
        """Look at some more rows."""
        reverse = self._scan.reverse
        rows, through = self._next_rows()
        names = [row_key[_KEY_AT:] for row_key, _ in rows]
        for (row_key, stored), key, owned in zip(rows, names, self._state.own(names), strict=True):
            header = header_of(stored)
            if owned and not header.expired(self._group_time_ms):
                if self._wall_ms is not None and header.expired(self._wall_ms):
                    self.ended = self.overdue = True
                    return
                if not self._take(key, header, stored):
                    self._end_before(key)
                    return
            if reverse:
                self._high = row_key
            else:
                self._low = row_key + b"\x00"
        self.ended = through

    def stop(self) -> None:
        """End the piece where it is; after the first step."""
        if not self.ended:
            self.ended = True
            self.part.rest = self._position()

    def _next_rows(self) -> tuple[list[Row], bool]:
        """No more than is likely to be needed, and whether they are the last."""
        wanted = min(STEP_ROWS, self._scan.rows_max - self.part.count + 1)
        rows: list[Row] = []
        size = 0
        for row in self._view.scan(self._low, self._high, reverse=self._scan.reverse, limit=wanted):
            rows.append(row)
            size += len(row[1])
            if size > STEP_BYTES:
                return rows, False
        return rows, len(rows) < wanted

    def _position(self) -> bytes:
        bound = self._high if self._scan.reverse else self._low
        return bound[_KEY_AT:] if bound else b""

    def _end_before(self, key: bytes) -> None:
        self.ended = True
        self.part.rest = key + b"\x00" if self._scan.reverse else key

    def _take(self, key: bytes, header: RowHeader, stored: bytes) -> bool:
        """Whether there was room for the row."""
        scan, part = self._scan, self.part
        if part.count >= scan.rows_max:
            return False
        if not scan.count_only:
            size = len(key) + ROW_BYTES + (0 if scan.keys_only else len(stored) - HEADER_BYTES)
            if size > self._bytes_left if scan.bytes_max else part.count:
                return False
            self._bytes_left -= size
            entry = KeyValue(
                key=key,
                value=b"" if scan.keys_only else value_of(stored),
                version=header.version,
                create_time_ms=header.create_ms,
                update_time_ms=header.update_ms,
                expire_time_ms=header.expire_ms,
            )
            part.keys.append(key)
            part.entries.append(entry.SerializeToString())
        part.count += 1
        return True
