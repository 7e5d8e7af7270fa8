"""The commands `kv.split@1`, which divides a shard, and `kv.prune@1`, which deletes what went to its children.

`kv.split` decides the whole division in one entry and in constant time: from its revision on the shard owns the smaller
class, under the next epoch, and a division (`divisions.py`) says who gets the rest. `kv.prune` is bounded work; who
proposes it has made sure that every child is whole.

Invariants: a split takes effect once, and only in the configuration that its proposer saw; asked again it changes
nothing. A prune touches no row that the shard owns.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from flotta_embedded.api import Command, Overlay
from flotta_embedded.codec import command_encoder, decode_value, encode_value

from . import keys
from .divisions import Child, Division, decode_division, encode_division, inherited_kinds, some_rows
from .shard_state import ShardState, Stage, decode_state, encode_state

SPLIT: Final = "kv.split"
SPLIT_VERSION: Final = 1
PRUNE: Final = "kv.prune"
PRUNE_VERSION: Final = 1
PRUNE_ROWS_MAX: Final = 1024

_PRUNE_ARGS = struct.Struct(">I")
_encode_split = command_encoder(SPLIT, SPLIT_VERSION)
_encode_prune = command_encoder(PRUNE, PRUNE_VERSION)


@dataclass(frozen=True, slots=True)
class Split:
    """`voters` are those of the configuration at `conf_index`, which must still be the shard's."""

    shard_count: int
    conf_index: int
    voters: tuple[int, ...]
    children: tuple[Child, ...]


class SplitKind(enum.IntEnum):
    """Everything but DIVIDED changed nothing."""

    DIVIDED = 1
    ALREADY = 2
    NOT_NOW = 3  # another configuration by now, or an earlier division, or a merge, is not done with
    MISFIT = 4  # the children are not what this shard divides into


class PruneResult(NamedTuple):
    """`rows` were deleted; `done`: nothing of the division remains."""

    rows: int
    done: bool


def split_payload(stamp_ms: int, split: Split) -> bytes:
    children = [[child.shard_id, child.group, child.shard_index, child.sequence] for child in split.children]
    return _encode_split(stamp_ms, encode_value([split.shard_count, split.conf_index, split.voters, children]))


def prune_payload(stamp_ms: int, rows_max: int = PRUNE_ROWS_MAX) -> bytes:
    """A log entry that looks at no more than `rows_max` rows, and about a mebibyte of them."""
    if not 0 < rows_max <= PRUNE_ROWS_MAX:
        raise ValueError(f"rows_max {rows_max} must be between 1 and {PRUNE_ROWS_MAX}")
    return _encode_prune(stamp_ms, _PRUNE_ARGS.pack(rows_max))


def apply_splits(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    """A run of `kv.split@1`."""
    return [_split(overlay, command) for command in commands]


def _split(overlay: Overlay, command: Command) -> SplitKind:
    raw_state = overlay.get(keys.SHARD_KEY)
    if raw_state is None:
        return SplitKind.NOT_NOW
    state = decode_state(raw_state)
    shard_count, conf_index, voters, children = decode_value(command.args)
    split = Split(shard_count, conf_index, tuple(voters), tuple(Child(*child) for child in children))
    if state.shard_count == split.shard_count:
        return SplitKind.ALREADY
    if not _fits(state, split):
        return SplitKind.MISFIT
    if overlay.get(keys.DIVISION_KEY) is not None or state.conf_index != split.conf_index:
        return SplitKind.NOT_NOW
    if state.stage is not Stage.SERVES or overlay.get(keys.FOLLOWED_KEY) is not None:
        return SplitKind.NOT_NOW
    division = Division(split.shard_count, command.revision, command.now_ms, split.voters, split.children)
    overlay.put(keys.DIVISION_KEY, encode_division(division))
    overlay.put(keys.SHARD_KEY, encode_state(replace(state, epoch=state.epoch + 1, shard_count=split.shard_count)))
    return SplitKind.DIVIDED


def _fits(state: ShardState, split: Split) -> bool:
    """Are the children all classes but the one that stays, each once?"""
    if split.shard_count % state.shard_count or not split.voters:
        return False
    classes = range(state.shard_index + state.shard_count, split.shard_count, state.shard_count)
    return sorted(child.shard_index for child in split.children) == list(classes)


def apply_prunes(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    """A run of `kv.prune@1`."""
    return [_prune(overlay, *_PRUNE_ARGS.unpack(command.args)) for command in commands]


def _prune(overlay: Overlay, rows_max: int) -> PruneResult:
    raw_division, raw_state = overlay.multi_get([keys.DIVISION_KEY, keys.SHARD_KEY])
    if raw_division is None or raw_state is None:
        return PruneResult(0, True)
    division, state = decode_division(raw_division), decode_state(raw_state)
    left, deleted = rows_max, 0
    for kind in inherited_kinds():
        low = max(division.cursor, kind.low)
        if low >= kind.high:
            continue
        rows, ended = some_rows(overlay, low, kind.high, left)
        owned = state.own([kind.key_of(row_key) for row_key, _ in rows])
        for (row_key, row), keep in zip(rows, owned, strict=True):
            if not keep:
                beside = kind.beside(row_key, row)
                if beside is not None:
                    overlay.delete(beside)
                overlay.delete(row_key)
                deleted += 1
        left -= len(rows)
        if not ended:
            overlay.put(keys.DIVISION_KEY, encode_division(replace(division, cursor=rows[-1][0] + b"\x00")))
            return PruneResult(deleted, False)
        division = replace(division, cursor=kind.high)
    overlay.delete(keys.DIVISION_KEY)
    return PruneResult(deleted, True)
