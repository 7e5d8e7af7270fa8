"""Where the rows of a shard replica lie inside its space.

The embedded machine owns the prefixes `m` (its own state), `d` (data), `q` (dedup), `t` (expiry index) and `n` (named
tables). A shard keeps user rows under `d`, one empty row per expiring key under `t`, its own record in the single row
`SHARD_KEY`, and, after it has divided, what remains to be done of that in `DIVISION_KEY`. While its keys go over to
another shard `FOLLOWED_KEY` says since when its changes are noted under `TOUCHED_PREFIX`, by revision; the other one
has `ABSORPTION_KEY`. Invariant: a `t` row exists exactly for those `d` rows whose `expire_ms` is not zero.
"""

from __future__ import annotations

from flotta_embedded import keys as space_keys

DATA_PREFIX = space_keys.DATA
DATA_END = space_keys.prefix_end(space_keys.DATA)
EXPIRY_PREFIX = space_keys.TTL
EXPIRY_END = space_keys.prefix_end(space_keys.TTL)
SHARD_KEY = space_keys.table_prefix("flotta.shard")
DIVISION_KEY = space_keys.table_prefix("flotta.division")
FOLLOWED_KEY = space_keys.table_prefix("flotta.followed")
ABSORPTION_KEY = space_keys.table_prefix("flotta.absorption")
TOUCHED_PREFIX = space_keys.table_prefix("flotta.touched")
TOUCHED_END = space_keys.prefix_end(TOUCHED_PREFIX)

_TIME_BYTES = 8


def data_key(key: bytes) -> bytes:
    return DATA_PREFIX + key


def expiry_key(expire_ms: int, key: bytes) -> bytes:
    """Index rows sort by time, then by key."""
    return EXPIRY_PREFIX + expire_ms.to_bytes(_TIME_BYTES, "big") + key


def split_expiry_key(row_key: bytes) -> tuple[int, bytes]:
    """(expire_ms, user key) of an index row."""
    return int.from_bytes(row_key[1 : 1 + _TIME_BYTES], "big"), row_key[1 + _TIME_BYTES :]


def expiry_bounds(now_ms: int) -> tuple[bytes, bytes]:
    """The range of index rows that are due at `now_ms`, that instant included."""
    return EXPIRY_PREFIX, EXPIRY_PREFIX + (now_ms + 1).to_bytes(_TIME_BYTES, "big")


def touched_key(revision: int) -> bytes:
    """Of the note that the write of this revision leaves."""
    return TOUCHED_PREFIX + revision.to_bytes(8, "big")
