"""A shard that takes others over: what it has of them, and the commands `kv.absorb@1`, `kv.copy@1`, `kv.merge@1`,
`kv.let_go@1`.

Of residue class (j, n) it takes all of (j, m), m a divisor of n: what belongs to the shards j + m, j + 2m, … by then.
Their rows come through its own log, page by page (`follows.py`), beside its own and unseen: a key is owned by its
class, and the class grows in one entry, `kv.merge`, when every source is sealed and copied whole.

Invariants: a page lands only at the cursor it was asked at and under the token it began with, so none lands twice, and
none from before a change after one with it; `kv.merge` comes after all revisions and times that the sources came to,
so no version of a key is given twice, and nothing that has expired comes back. Let go of, the rows are pruned as those
of a division are (`splits.py`), before anything else begins.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from flotta_embedded.api import Command, Overlay
from flotta_embedded.codec import command_encoder, decode_value, encode_value

from . import keys
from .divisions import DATA, DEDUP, Division, encode_division
from .follows import Followed, Phase
from .shard_state import ShardState, Stage, decode_state, encode_state

ABSORB: Final = "kv.absorb"
COPY: Final = "kv.copy"
MERGE: Final = "kv.merge"
LET_GO: Final = "kv.let_go"
VERSION: Final = 1
FORMAT: Final = 1

_encode_absorb = command_encoder(ABSORB, VERSION)
_encode_copy = command_encoder(COPY, VERSION)
_encode_merge = command_encoder(MERGE, VERSION)
_encode_let_go = command_encoder(LET_GO, VERSION)


@dataclass(frozen=True, slots=True)
class Source:
    """A shard that is taken over, and how far the copy of its rows is. `revision`: it had come to that by then."""

    shard_id: str
    group: int
    shard_index: int
    token: int = 0
    phase: Phase = Phase.ROWS
    cursor: bytes = b""
    revision: int = 0

    @property
    def whole(self) -> bool:
        return self.phase is Phase.WHOLE


@dataclass(frozen=True, slots=True)
class Absorption:
    order: int
    shard_count: int  # there will be
    sources: tuple[Source, ...]

    @property
    def whole(self) -> bool:
        return all(source.whole for source in self.sources)

    @property
    def revision(self) -> int:
        """The greatest that any source had come to."""
        return max(source.revision for source in self.sources)

    def source(self, group: int) -> Source | None:
        return next((one for one in self.sources if one.group == group), None)

    def is_of(self, other: Absorption) -> bool:
        """The same shards for the same order, however far."""
        ours = (self.order, self.shard_count, [source.group for source in self.sources])
        return ours == (other.order, other.shard_count, [source.group for source in other.sources])


class MergeKind(enum.IntEnum):
    """Everything but MERGED changed nothing."""

    MERGED = 1
    NOT_WHOLE = 2
    TOO_LOW = 3  # this shard's revisions are not above those of the sources yet


def encode_absorption(absorption: Absorption) -> bytes:
    sources = [
        [one.shard_id, one.group, one.shard_index, one.token, int(one.phase), one.cursor, one.revision]
        for one in absorption.sources
    ]
    return encode_value([FORMAT, absorption.order, absorption.shard_count, sources])


@lru_cache(maxsize=256)
def decode_absorption(row: bytes) -> Absorption:
    found, order, shard_count, sources = decode_value(row)
    if found != FORMAT:
        raise ValueError(f"an absorption has format {found}, this build reads {FORMAT}")
    return Absorption(
        order,
        shard_count,
        tuple(
            Source(shard_id, group, index, token, Phase(phase), cursor, revision)
            for shard_id, group, index, token, phase, cursor, revision in sources
        ),
    )


def absorb_payload(stamp_ms: int, absorption: Absorption) -> bytes:
    return _encode_absorb(stamp_ms, encode_absorption(absorption))


def copy_payload(stamp_ms: int, order: int, source: Source, page: Followed) -> bytes:
    """The page that was asked for when the source stood so. Group time is the source's from then on, at least."""
    rows = [[key, row] for key, row in page.rows]
    before = [source.token or page.token, int(source.phase), source.cursor]
    after = [page.token, int(page.phase), page.cursor, page.revision]
    args = encode_value([order, source.group, before, after, rows])
    return _encode_copy(max(stamp_ms, page.group_time_ms), args)


def merge_payload(stamp_ms: int, order: int) -> bytes:
    return _encode_merge(stamp_ms, encode_value(order))


def let_go_payload(stamp_ms: int, order: int) -> bytes:
    return _encode_let_go(stamp_ms, encode_value(order))


def apply_absorbs(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    """A run of `kv.absorb@1`: each is answered whether the shard absorbs for this order now."""
    return [_absorb(overlay, command) for command in commands]


def _absorb(overlay: Overlay, command: Command) -> bool:
    wanted = decode_absorption(command.args)
    state, found = _read(overlay)
    if found is not None:
        return found.is_of(wanted)
    if state is None or state.stage is not Stage.SERVES or not fits(state, wanted):
        return False
    if any(row is not None for row in overlay.multi_get([keys.DIVISION_KEY, keys.FOLLOWED_KEY])):
        return False
    overlay.put(keys.ABSORPTION_KEY, command.args)
    overlay.put(keys.SHARD_KEY, encode_state(replace(state, stage=Stage.ABSORBS)))
    return True


def fits(state: ShardState, wanted: Absorption) -> bool:
    """Are the sources all classes that the shard lacks of the greater one, each once?"""
    if not state.shard_index < wanted.shard_count < state.shard_count or state.shard_count % wanted.shard_count:
        return False
    classes = range(state.shard_index + wanted.shard_count, state.shard_count, wanted.shard_count)
    return sorted(source.shard_index for source in wanted.sources) == list(classes)


def apply_copies(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    """A run of `kv.copy@1`: each is answered whether the page landed."""
    return [_copy(overlay, command) for command in commands]


def _copy(overlay: Overlay, command: Command) -> bool:
    order, group, before, after, rows = decode_value(command.args)
    _, found = _read(overlay)
    source = found.source(group) if found is not None and found.order == order else None
    if found is None or source is None:
        return False
    token, phase, cursor, revision = after
    if [source.token or token, int(source.phase), source.cursor] != before or token != before[0]:
        return False
    overlay.multi_get([key for key, _ in rows])
    for key, row in rows:
        _place(overlay, key, row)
    landed = replace(source, token=token, phase=Phase(phase), cursor=cursor, revision=revision)
    sources = tuple(landed if one is source else one for one in found.sources)
    overlay.put(keys.ABSORPTION_KEY, encode_absorption(replace(found, sources=sources)))
    return True


def _place(overlay: Overlay, key: bytes, row: bytes | None) -> None:
    """The row as it is in the source, its index row with it, instead of what was copied before."""
    kind = DATA if key.startswith(DATA.low) else DEDUP
    earlier = overlay.get(key)
    if earlier is not None:
        beside = kind.beside(key, earlier)
        if beside is not None:
            overlay.delete(beside)
    if row is None:
        overlay.delete(key)
        return
    beside = kind.beside(key, row)
    if beside is not None:
        overlay.put(beside, b"")
    overlay.put(key, row)


def apply_merges(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    """A run of `kv.merge@1`."""
    return [_merge(overlay, command) for command in commands]


def _merge(overlay: Overlay, command: Command) -> MergeKind:
    state, found = _read(overlay)
    if state is None or found is None or found.order != decode_value(command.args) or not found.whole:
        return MergeKind.NOT_WHOLE
    if command.revision <= found.revision:
        return MergeKind.TOO_LOW
    after = replace(state, stage=Stage.SERVES, shard_count=found.shard_count, epoch=state.epoch + 1)
    overlay.put(keys.SHARD_KEY, encode_state(after))
    overlay.delete(keys.ABSORPTION_KEY)
    return MergeKind.MERGED


def apply_let_goes(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    """A run of `kv.let_go@1`: each is answered whether the shard let go by it."""
    return [_let_go(overlay, command) for command in commands]


def _let_go(overlay: Overlay, command: Command) -> bool:
    state, found = _read(overlay)
    if state is None or found is None or found.order != decode_value(command.args):
        return False
    overlay.delete(keys.ABSORPTION_KEY)
    overlay.put(keys.SHARD_KEY, encode_state(replace(state, stage=Stage.SERVES)))
    # A division without children, whose pruning has begun: nothing is made of it, and what is not owned goes.
    leftovers = Division(state.shard_count, command.revision, command.now_ms, (), (), cursor=b"\x00")
    overlay.put(keys.DIVISION_KEY, encode_division(leftovers))
    return True


def _read(overlay: Overlay) -> tuple[ShardState | None, Absorption | None]:
    raw, found = overlay.multi_get([keys.SHARD_KEY, keys.ABSORPTION_KEY])
    return (
        None if raw is None else decode_state(raw),
        None if found is None else decode_absorption(found),
    )
