"""How the rows of one space are laid out: the first byte of a key says what the row is.

Invariant: only the machine writes rows under `META`; they do not travel in a snapshot's row stream.
"""

from __future__ import annotations

META = b"m"  # applied index, term, group time, revision base, members
META_END = b"n"
DATA = b"d"
DEDUP = b"q"
TTL = b"t"
TABLES = b"n"

META_STATE = b"ma"
META_MEMBERS = b"mm"

TABLE_NAME_BYTES_MAX = 255


def table_prefix(name: str) -> bytes:
    """The key prefix of a named table; no table's prefix is a prefix of another's."""
    encoded = name.encode()
    if not 0 < len(encoded) <= TABLE_NAME_BYTES_MAX:
        raise ValueError(f"table name must have 1 to {TABLE_NAME_BYTES_MAX} bytes, not {len(encoded)}")
    return TABLES + bytes((len(encoded),)) + encoded


def prefix_end(prefix: bytes) -> bytes | None:
    """The first key after every key with the prefix; None if there is no such key."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return None
    return stripped[:-1] + bytes((stripped[-1] + 1,))
