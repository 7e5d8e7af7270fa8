"""The stored form of one key: a fixed header, then the value as it came.

Invariant: `version` is the revision of the write that made the row; `create_ms <= update_ms`; `expire_ms` is 0 or the
group time from which on the row counts as absent.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

FORMAT = 1
_HEADER = struct.Struct(">BQQQQ")
HEADER_BYTES = _HEADER.size
_new = tuple.__new__  # what `RowHeader._make` comes to, at half its price


class RowHeader(NamedTuple):
    version: int
    create_ms: int
    update_ms: int
    expire_ms: int

    def expired(self, now_ms: int) -> bool:
        return 0 < self.expire_ms <= now_ms


def encode_row(version: int, create_ms: int, update_ms: int, expire_ms: int, value: bytes) -> bytes:
    return _HEADER.pack(FORMAT, version, create_ms, update_ms, expire_ms) + value


def header_of(row: bytes) -> RowHeader:
    """ValueError for a row that this version cannot have written."""
    if len(row) < HEADER_BYTES or row[0] != FORMAT:
        raise ValueError(f"a stored row of {len(row)} bytes does not begin with format {FORMAT}")
    return _new(RowHeader, _HEADER.unpack_from(row)[1:])


def value_of(row: bytes) -> bytes:
    return row[HEADER_BYTES:]


def value_view(row: bytes) -> memoryview:
    """The value without a copy; it keeps the row alive."""
    return memoryview(row)[HEADER_BYTES:]


def value_bytes(row: bytes) -> int:
    return len(row) - HEADER_BYTES
