"""Rows as they travel out of a shard and into another one: in backups, and between a node and whoever copies it.

A row is a fixed head (key bytes, value bytes, version, three times in ms), then the key, then the value; rows follow
each other without anything between. Invariants: a reader holds no more than one row and one piece in memory, and every
head that `encode_row` cannot have made is a ValueError before the row it announces is waited for.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

KEY_BYTES_MAX: Final = 1024
VALUE_BYTES_MAX: Final = 17 << 20  # what fits into one message between processes
_HEAD: Final = struct.Struct(">HIQQQQ")
HEAD_BYTES: Final = _HEAD.size


class SavedRow(NamedTuple):
    """`expire_ms` 0: it never expires."""

    key: bytes
    value: bytes
    version: int
    create_ms: int
    update_ms: int
    expire_ms: int

    @property
    def size(self) -> int:
        """Of its encoding."""
        return HEAD_BYTES + len(self.key) + len(self.value)


def encode_row(row: SavedRow) -> bytes:
    key, value, version, create_ms, update_ms, expire_ms = row
    return b"".join((_HEAD.pack(len(key), len(value), version, create_ms, update_ms, expire_ms), key, value))


class RowReader:
    """Rows out of pieces of any size."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, piece: bytes | memoryview) -> list[SavedRow]:
        """The rows that are whole with this piece. ValueError if these are no rows."""
        rest = self._rest
        rest += piece
        found: list[SavedRow] = []
        at, end = 0, len(rest)
        while end - at >= HEAD_BYTES:
            head = _HEAD.unpack_from(rest, at)
            _check(head)
            key_at = at + HEAD_BYTES
            value_at = key_at + head[0]
            after = value_at + head[1]
            if after > end:
                break
            found.append(SavedRow(bytes(rest[key_at:value_at]), bytes(rest[value_at:after]), *head[2:]))
            at = after
        del rest[:at]
        return found

    def finish(self) -> None:
        """ValueError if the pieces ended within a row."""
        if self._rest:
            raise ValueError(f"the last row is cut off: {len(self._rest)} bytes of it are there")


def read_rows(encoded: bytes) -> list[SavedRow]:
    """All rows of one whole piece."""
    reader = RowReader()
    rows = reader.feed(encoded)
    reader.finish()
    return rows


def _check(head: tuple[int, ...]) -> None:
    key_bytes, value_bytes, version, create_ms, update_ms, _ = head
    if not 0 < key_bytes <= KEY_BYTES_MAX:
        raise ValueError(f"a row's key has {key_bytes} bytes, which is not between 1 and {KEY_BYTES_MAX}")
    if value_bytes > VALUE_BYTES_MAX:
        raise ValueError(f"a row's value has {value_bytes} bytes, the limit is {VALUE_BYTES_MAX}")
    if not version or create_ms > update_ms:
        raise ValueError(f"a row has version {version}, was made at {create_ms} and changed at {update_ms}")
