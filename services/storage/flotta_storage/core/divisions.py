"""What remains to be done of a shard that has divided, as one replicated row: the division.

A shard of residue class (i, n) that divides into k keeps the class (i, k·n); the classes i + n, i + 2n, … go to
children, which are born on the nodes of the shard's voters. The entry that divides it changes only who owns which key:
the rows of the children stay where they are, untouched, until every child is whole, and are pruned then.

Invariants: from the division to the begin of the pruning (`cursor` empty) the rows that the shard does not own are
exactly those of the entry's state, so a child is a function of the division and these rows, and the same on every node,
whenever it is made; nothing sweeps meanwhile. A row and the index row beside it go the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from flotta_consensus.api import node_of, replica_id
from flotta_embedded.api import View
from flotta_embedded.codec import decode_value, encode_value
from flotta_embedded.dedup import ROWS as DEDUP_ROWS
from flotta_embedded.dedup import index_of as index_of_dedup_row
from flotta_embedded.dedup import split_row_key as split_dedup_key
from flotta_embedded.keys import prefix_end
from flotta_runtime.hashing import key_hashes

from . import keys
from .rows import header_of
from .shard_state import ShardState, birth_state, encode_state

FORMAT: Final = 1
SLICE_ROWS: Final = 512
SLICE_BYTES: Final = 1 << 20

Row = tuple[bytes, bytes]


class Scannable(Protocol):
    """A view, or the overlay of a command."""

    def scan(
        self, low: bytes, high: bytes | None, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Row]: ...


@dataclass(frozen=True, slots=True)
class Child:
    """A shard that is born of another. `sequence`: the low half of the ids of all its first voters."""

    shard_id: str
    group: int
    shard_index: int
    sequence: int

    def voters(self, parents: Sequence[int]) -> tuple[int, ...]:
        """Its first voters: one on each node of the parent's."""
        return tuple(sorted(replica_id(node_of(parent), self.sequence) for parent in parents))


@dataclass(frozen=True, slots=True)
class Division:
    shard_count: int  # from now on
    revision: int  # of the entry: no row of a child has a greater version
    group_time_ms: int  # at the entry
    voters: tuple[int, ...]  # of the shard at the entry
    children: tuple[Child, ...]
    cursor: bytes = b""  # no row below it is left to prune; empty: pruning has not begun

    def child_of(self, group: int) -> Child | None:
        return next((child for child in self.children if child.group == group), None)


def encode_division(division: Division) -> bytes:
    children = [[child.shard_id, child.group, child.shard_index, child.sequence] for child in division.children]
    fields = [FORMAT, division.shard_count, division.revision, division.group_time_ms, division.voters, children]
    return encode_value([*fields, division.cursor])


@lru_cache(maxsize=1024)
def decode_division(row: bytes) -> Division:
    found, shard_count, revision, group_time_ms, voters, children, cursor = decode_value(row)
    if found != FORMAT:
        raise ValueError(f"a division has format {found}, this build reads {FORMAT}")
    return Division(
        shard_count, revision, group_time_ms, tuple(voters), tuple(Child(*child) for child in children), cursor
    )


class RowKind(NamedTuple):
    """Rows that belong to a user's key, one after the other from `low` to `high`. Index rows stand beside them."""

    low: bytes
    high: bytes
    key_of: Callable[[bytes], bytes]
    beside: Callable[[bytes, bytes], bytes | None]  # the key of the index row of (key, row), which is empty


def _key_of_data(row_key: bytes) -> bytes:
    return row_key[len(keys.DATA_PREFIX) :]


def _key_of_dedup(row_key: bytes) -> bytes:
    return split_dedup_key(row_key)[1]


def _expiry_of(row_key: bytes, row: bytes) -> bytes | None:
    expire_ms = header_of(row).expire_ms
    return keys.expiry_key(expire_ms, _key_of_data(row_key)) if expire_ms else None


DATA: Final = RowKind(keys.DATA_PREFIX, prefix_end(keys.DATA_PREFIX) or b"", _key_of_data, _expiry_of)
DEDUP: Final = RowKind(DEDUP_ROWS, prefix_end(DEDUP_ROWS) or b"", _key_of_dedup, index_of_dedup_row)


def inherited_kinds() -> tuple[RowKind, ...]:
    """Everything that a child gets of its keys, in the order of the rows."""
    return DATA, DEDUP


def inherited(view: View, division: Division) -> Iterator[dict[int, list[Row]]]:
    """All rows of the children, by residue class, in slices. For a division whose pruning has not begun."""
    wanted = {child.shard_index for child in division.children}
    for kind in inherited_kinds():
        for rows in _slices(view, kind.low, kind.high):
            found: dict[int, list[Row]] = {}
            hashes = key_hashes([kind.key_of(row_key) for row_key, _ in rows])
            for (row_key, row), hashed in zip(rows, hashes, strict=True):
                index = hashed % division.shard_count
                if index in wanted:
                    theirs = found.setdefault(index, [])
                    theirs.append((row_key, row))
                    beside = kind.beside(row_key, row)
                    if beside is not None:
                        theirs.append((beside, b""))
            yield found


def first_rows(state: ShardState, division: Division, child: Child) -> list[Row]:
    """The child's own record, as it begins."""
    born = birth_state(child.shard_id, state.table, child.shard_index, division.shard_count)
    return [(keys.SHARD_KEY, encode_state(born))]


def some_rows(view: Scannable, low: bytes, high: bytes, rows_max: int) -> tuple[list[Row], bool]:
    """The first rows of a range, no more than can lie in memory together, and whether they are all of it."""
    rows: list[Row] = []
    size = 0
    for row in view.scan(low, high, limit=rows_max):
        rows.append(row)
        size += len(row[0]) + len(row[1])
        if size >= SLICE_BYTES:
            return rows, False
    return rows, len(rows) < rows_max


def _slices(view: View, low: bytes, high: bytes) -> Iterator[list[Row]]:
    ended = False
    while not ended:
        rows, ended = some_rows(view, low, high, SLICE_ROWS)
        if rows:
            yield rows
            low = rows[-1][0] + b"\x00"
