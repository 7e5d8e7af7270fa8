"""What the leader of a shard has to propose next so that shards grow together as the map asks. Pure.

Each step is decided by the shard's own committed records and the newest map, so it may be taken again, or by another
leader. Invariants: where the map does not have the shard, nothing is decided; a shard is sealed only when the map says
so, for by then nobody can call the order off.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from .absorptions import Absorption, Source, fits
from .replicas import ShardView
from .shard_state import ShardState, Stage


class Step(enum.Enum):
    WAIT = "wait"
    FOLLOW = "follow"  # note changes
    UNFOLLOW = "unfollow"  # and remove the notes
    SEAL = "seal"
    ABSORB = "absorb"  # begin to take others over
    COPY = "copy"
    MERGE = "merge"  # own all of it
    LET_GO = "let go"


def wanted(state: ShardState, shard: ShardView | None, sources: Sequence[ShardView]) -> Absorption | None:
    """What the map wants this shard to take over: None when nothing, or when it has."""
    ours = [source for source in sources if shard is not None and source.order == shard.order]
    if shard is None or not ours or any(source.shard_count != state.shard_count for source in ours):
        return None
    made = tuple(Source(source.shard_id, source.group, source.shard_index) for source in ours)
    asked = Absorption(shard.order, state.shard_count // (len(made) + 1), made)
    return asked if fits(state, asked) else None


def next_step(
    state: ShardState,
    shard: ShardView | None,
    sources: Sequence[ShardView],
    absorption: Absorption | None,
    *,
    noted: bool,
    divided: bool,
) -> Step:
    """`noted`: there are notes of changes; `divided`: a division, or what was let go, is not done with."""
    if shard is None:
        return Step.WAIT
    if state.stage is Stage.FOLLOWED:
        if not shard.into:
            return Step.UNFOLLOW
        return Step.SEAL if shard.sealing else Step.WAIT
    if state.stage is Stage.ABSORBS and absorption is not None:
        asked = wanted(state, shard, sources)
        if asked is None or not asked.is_of(absorption):
            return Step.LET_GO
        return Step.MERGE if absorption.whole else Step.COPY
    if state.stage is not Stage.SERVES:
        return Step.WAIT
    if noted:
        return Step.UNFOLLOW
    if divided:
        return Step.WAIT
    if shard.into:
        return Step.FOLLOW
    return Step.ABSORB if wanted(state, shard, sources) is not None else Step.WAIT
