"""Which replicas of children this node makes from the rows of a shard that divided here.

Pure: from the divisions of the local replicas, and what the node has durably recorded. Invariants: a child's replica is
made once ever, only where the division names this node among the child's first voters, and only from rows that no
pruning has begun to delete; a replica that was recorded and cannot be made from rows any more begins empty and
non-voting, under the same id, which has never voted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from flotta_consensus.api import node_of, sequence_of

from .divisions import Division
from .replicas import LocalReplica, LocalState, MapView, Origin
from .shard_state import ShardState


@dataclass(frozen=True, slots=True)
class Local:
    """A running replica: its shard's record as applied here (None: it is empty), and its division."""

    group: int
    state: ShardState | None
    division: Division | None


@dataclass(frozen=True, slots=True)
class Inheritance:
    """`made_of`: replicas to make, by the group whose rows they are made of. `empty`: those whose rows are gone."""

    made_of: Mapping[int, tuple[LocalReplica, ...]]
    empty: tuple[LocalReplica, ...] = ()


def due(parents: Iterable[Local], local: LocalState) -> Inheritance:
    """What is to be made now."""
    by_group = {parent.group: parent for parent in parents}
    made_of: dict[int, tuple[LocalReplica, ...]] = {}
    for parent in by_group.values():
        wanted = tuple(_wanted(parent, local))
        if wanted:
            made_of[parent.group] = wanted
    begun = (one for one in local.replicas.values() if one.origin is Origin.SPLIT and not one.made)
    lost = [one for one in begun if not _may_come(by_group.get(one.parent), one.group, one.shard_count)]
    return Inheritance(made_of, tuple(replace(one, origin=Origin.EMPTY, voters=(), parent=0) for one in lost))


def heirs(view: MapView, parents: Iterable[Local], node_id: str) -> frozenset[int]:
    """Groups of the map whose replica here is one of the first voters of a child, and may still come of the shard that
    divides: until that is out of the question it need not begin empty."""
    children = [shard for shard in view.shards.values() if shard.parent]
    if not children:
        return frozenset()
    by_group = {parent.group: parent for parent in parents}
    groups = {shard.shard_id: shard.group for shard in view.shards.values()}
    return frozenset(
        shard.group
        for shard in children
        if any(node == node_id and sequence_of(one) == shard.sequence for one, node in shard.members.items())
        and _may_come(by_group.get(groups.get(shard.parent, 0)), shard.group, shard.shard_count)
    )


def _may_come(parent: Local | None, group: int, shard_count: int) -> bool:
    """May the parent's replica here still bring one of the child?"""
    if parent is None or parent.state is None:
        return False
    if parent.state.shard_count < shard_count:
        return True
    division = parent.division
    return division is not None and not division.cursor and division.child_of(group) is not None


def _wanted(parent: Local, local: LocalState) -> Iterable[LocalReplica]:
    state, division = parent.state, parent.division
    if state is None or division is None or division.cursor:
        return
    for child in division.children:
        voters = child.voters(division.voters)
        mine = next((voter for voter in voters if node_of(voter) == local.node_num), 0)
        known = local.replicas.get(child.group)
        if not mine or mine in local.tombstones or (known is not None and (known.made or known.replica != mine)):
            continue
        yield LocalReplica(
            group=child.group,
            replica=mine,
            shard_id=child.shard_id,
            origin=Origin.SPLIT,
            voters=voters,
            table=state.table,
            shard_index=child.shard_index,
            shard_count=division.shard_count,
            revision_base=division.revision,
            parent=parent.group,
        )
