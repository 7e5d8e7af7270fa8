"""Reading many keys at once, and checking in the same state that the shard still owns them.

Invariant: the shard's record and the rows come from one multi-get over one state, so a row is never returned under an
epoch or ownership that no longer held when it was read.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from flotta_embedded.api import View
from flotta_embedded.dedup import EXPIRY, EXPIRY_END

from . import keys
from .dedup import next_out_of_window_ms
from .rows import header_of
from .shard_state import ShardState, decode_state


class Miss(enum.Enum):
    """Why there is no row. OVERDUE: its expiry has passed on the leader's clock but not yet in group time."""

    ABSENT = 1
    MOVED = 2
    OVERDUE = 3


Wanted = tuple[bytes, int]
"""(key, the epoch the reader was routed by; 0: it knows none)."""


def read_many(
    view: View, wanted: Sequence[Wanted], group_time_ms: int, wall_ms: int | None = None
) -> tuple[ShardState | None, list[bytes | Miss]]:
    """The stored row or a Miss for each key, and the shard's record (None: an empty replica, so all is MOVED).

    With `wall_ms`, rows that this clock calls expired but group time does not yet are OVERDUE; group time alone decides
    what is absent.
    """
    raw_state, *raw_rows = view.multi_get([keys.SHARD_KEY, *(keys.data_key(key) for key, _ in wanted)])
    if raw_state is None:
        return None, [Miss.MOVED] * len(wanted)
    state = decode_state(raw_state)
    found: list[bytes | Miss] = []
    for (key, epoch), row in zip(wanted, raw_rows, strict=True):
        if not state.admits(epoch, key):
            found.append(Miss.MOVED)
        elif row is None:
            found.append(Miss.ABSENT)
        else:
            found.append(_living(row, group_time_ms, wall_ms))
    return state, found


def _living(row: bytes, group_time_ms: int, wall_ms: int | None) -> bytes | Miss:
    header = header_of(row)
    if not header.expire_ms:
        return row
    if header.expired(group_time_ms):
        return Miss.ABSENT
    if wall_ms is not None and header.expired(wall_ms):
        return Miss.OVERDUE
    return row


def shard_state(view: View) -> ShardState | None:
    """The shard's record; None for a replica that has not been given any state yet."""
    raw = view.get(keys.SHARD_KEY)
    return None if raw is None else decode_state(raw)


def next_expiry_ms(view: View) -> int | None:
    """When the next `kv.expire` has something to sweep: an expired row, or a dedup row out of its window."""
    times = [
        keys.split_expiry_key(row_key)[0] for row_key, _ in view.scan(keys.EXPIRY_PREFIX, keys.EXPIRY_END, limit=1)
    ]
    times += [next_out_of_window_ms(row_key) for row_key, _ in view.scan(EXPIRY, EXPIRY_END, limit=1)]
    return min(times, default=None)
