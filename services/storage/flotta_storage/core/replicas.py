"""Which replicas this node should create, and which it should ask about.

`decide` is a pure function of the newest shard map and of what this node has durably recorded. Invariants:
- A voter is created only from the birth list of its shard, for as long as the map names it among the members, or from
  the rows of a shard that divided here (`inheritance.py`), once ever per replica id; every other replica starts empty
  and non-voting. However late a birth voter is made: it has never voted, so it begins as it would have at the birth,
  and is to its group a voter that was away. That it never was here is known for certain: records are durable before
  replicas, tombstones stay, and a directory that lost them is refused or somebody else (`identity.py`).
- One group has at most one replica here, and a replica id that was ever removed here is never created again.
- Nothing is deleted because of what a map lacks: a replica that it does not name is a reason to ask the group's leader,
  and only its committed answer removes anything. A shard that was taken over is no more once the map says so, which it
  does of its group for good: every replica of it goes, for there may be no leader left to ask.
- A shard that lost its quorum for good may be given to one heir: the node that has the heir's replica lets it go on
  under a new id, and replicas of before (`replica_floor`) serve nobody any more, from the moment the map says so.
- A map older than one already acted upon, or of another cluster, decides nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from flotta_consensus.api import node_of

from flotta_storage.core.takeover import sequence_of


@dataclass(frozen=True, slots=True)
class Heir:
    """The replica that is to go on alone, and what it is to go on above."""

    node_id: str
    replica: int  # from now on
    from_replica: int
    term_min: int
    epoch_min: int


@dataclass(frozen=True, slots=True)
class ShardView:
    """One shard as the map shows it. `birth`, `members` and `targets` map replica ids to node ids."""

    shard_id: str
    group: int
    creating: bool
    shard_index: int
    shard_count: int
    table: str = "default"
    revision_base: int = 0
    epoch: int = 0
    leader: str = ""
    target_leader: str = ""
    awaited: bool = False  # `parent` has not divided yet, as far as the map knows
    parent: str = ""  # the shard that it is born of; empty once each of its voters has been heard from
    sequence: int = 0  # of the ids of its first voters, if it is born of another
    birth: Mapping[int, str] = field(default_factory=dict)
    members: Mapping[int, str] = field(default_factory=dict)
    targets: Mapping[int, str] = field(default_factory=dict)
    replica_floor: int = 0
    heir: Heir | None = None
    birth_shard_count: int = 0  # `shard_count` at its birth; 0: not on record
    into: str = ""  # the shard that takes its keys over
    order: int = 0  # by which it does, or takes others over
    sealing: bool = False  # it is to be sealed
    absorbed: frozenset[int] = frozenset()  # groups whose keys it took over

    def given_up(self, replica: int) -> bool:
        """Is it a replica of before the shard was taken over?"""
        if self.heir is not None and replica == self.heir.from_replica:
            return False
        return sequence_of(replica) < self.replica_floor


@dataclass(frozen=True, slots=True)
class MapView:
    """What a node needs of the shard map. `nodes` maps node ids to addresses, `numbers` node numbers to node ids."""

    cluster_id: str
    version: int
    shards: Mapping[int, ShardView]  # by group
    nodes: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[int, str] = field(default_factory=dict)

    def absorbed(self) -> frozenset[int]:
        """Groups that are no more: other shards took their keys over."""
        return frozenset().union(*(shard.absorbed for shard in self.shards.values())) - self.shards.keys()


EMPTY_MAP = MapView("", 0, {})


class Origin(enum.Enum):
    """How a replica began."""

    BIRTH = "birth"
    EMPTY = "empty"
    SPLIT = "split"  # from the rows of the shard that divided


@dataclass(frozen=True, slots=True)
class LocalReplica:
    """What this node has recorded of a replica it keeps. Written, durably, before the replica is made.

    `made`: the Raft host holds it too; until then the creation is still to be finished, whatever the map says.
    """

    group: int
    replica: int
    shard_id: str
    origin: Origin
    voters: tuple[int, ...] = ()  # BIRTH and SPLIT: all first voters
    table: str = "default"
    shard_index: int = 0
    shard_count: int = 1
    revision_base: int = 0
    made: bool = False
    parent: int = 0  # SPLIT only: group of the shard that divided
    heir: int = 0  # the id it is about to go on under


@dataclass(frozen=True, slots=True)
class LocalState:
    """The node's durable record. `tombstones`: replica ids that were here and are gone for good."""

    node_id: str
    node_num: int
    cluster_id: str
    acted_version: int = 0
    replicas: Mapping[int, LocalReplica] = field(default_factory=dict)  # by group
    tombstones: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Create:
    """Record, then make this replica."""

    replica: LocalReplica


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Let the replica that is here go on alone, as the heir."""

    group: int
    heir: Heir


@dataclass(frozen=True, slots=True)
class Retire:
    """Serve nobody from this replica any more."""

    group: int
    replica: int


@dataclass(frozen=True, slots=True)
class AskMembership:
    """Ask the leader of the group whether the replica is still a member; `nodes` is where to look for the leader."""

    group: int
    replica: int
    shard_id: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Its shard is no more."""

    group: int


@dataclass(frozen=True, slots=True)
class Complain:
    """The map asks for something that must not be done; a person should know."""

    group: int
    reason: str


Action = Create | TakeOver | Retire | AskMembership | Drop | Complain


def decide(view: MapView, local: LocalState, heirs: Container[int] = ()) -> list[Action]:
    """What to do about `view`, in the order of group ids. `heirs`: groups of which a replica is to come here from a
    shard that divides."""
    if view.version == 0 or view.version < local.acted_version or view.cluster_id != local.cluster_id:
        return []
    actions: list[Action] = []
    for group in sorted(view.shards):
        shard = view.shards[group]
        if not shard.awaited and (group in local.replicas or group not in heirs):
            actions += _for_shard(shard, local)
    absorbed = view.absorbed()
    for group in sorted(local.replicas.keys() - view.shards.keys()):
        kept = local.replicas[group]
        if group in absorbed:
            actions.append(Drop(group))
            continue
        actions.append(AskMembership(group, kept.replica, kept.shard_id, tuple(sorted(view.nodes))))
    return actions


def _for_shard(shard: ShardView, local: LocalState) -> list[Action]:
    wanted = _wanted(shard, local.node_id)
    kept = local.replicas.get(shard.group)
    if kept is not None:
        return _for_kept(shard, kept, local)
    if not wanted:
        return []
    if len(wanted) > 1:
        ids = ", ".join(str(replica) for replica in sorted(wanted))
        return [Complain(shard.group, f"the map places replicas {ids} of shard {shard.shard_id} on this one node")]
    (replica,) = wanted
    if replica in local.tombstones:
        return [Complain(shard.group, f"replica {replica} of shard {shard.shard_id} was removed here for good")]
    if node_of(replica) != local.node_num:
        text = f"replica {replica} of shard {shard.shard_id} is not numbered for node {local.node_num}"
        return [Complain(shard.group, text)]
    return [Create(_new_replica(shard, replica, wanted[replica]))]


def _for_kept(shard: ShardView, kept: LocalReplica, local: LocalState) -> list[Action]:
    heir, given_up = shard.heir, shard.given_up(kept.replica)
    if heir is not None and heir.node_id == local.node_id and kept.replica in (heir.from_replica, heir.replica):
        return [TakeOver(shard.group, heir)] if kept.replica == heir.from_replica else []
    named = {*shard.members, *shard.targets, *(shard.birth if shard.creating else ())}
    if kept.replica in named and not given_up:
        return []
    # Whatever else is wanted here has to wait until the old replica is known to be out, and is gone.
    nodes = {*shard.members.values(), *shard.targets.values(), *((heir.node_id,) if heir is not None else ())}
    question = AskMembership(shard.group, kept.replica, kept.shard_id, tuple(sorted(nodes - {local.node_id})))
    return [Retire(shard.group, kept.replica), question] if given_up else [question]


def _wanted(shard: ShardView, node_id: str) -> dict[int, Origin]:
    """The replicas the map wants here, and how each must begin."""
    if shard.creating:
        return {replica: Origin.BIRTH for replica, node in shard.birth.items() if node == node_id}
    wanted = {replica: Origin.EMPTY for replica, node in (shard.targets or shard.members).items() if node == node_id}
    if shard.birth_shard_count and shard.heir is None:
        # A voter whose birth this node missed while the others went ahead. Without its vote the group is one short
        # until it has caught up, and may lose its quorum for good with the next node; whether it is to stay does
        # not matter. A shard that is being taken over leaves all of these behind.
        late = shard.birth.keys() & shard.members.keys()
        wanted |= {one: Origin.BIRTH for one in late if shard.birth[one] == node_id and not shard.given_up(one)}
    return wanted


def _new_replica(shard: ShardView, replica: int, origin: Origin) -> LocalReplica:
    return LocalReplica(
        group=shard.group,
        replica=replica,
        shard_id=shard.shard_id,
        origin=origin,
        voters=tuple(sorted(shard.birth)) if origin is Origin.BIRTH else (),
        table=shard.table,
        shard_index=shard.shard_index,
        # A late voter takes part in the shard's divisions by its log.
        shard_count=shard.birth_shard_count or shard.shard_count if origin is Origin.BIRTH else shard.shard_count,
        revision_base=shard.revision_base,
    )


@dataclass(frozen=True, slots=True)
class MembershipAnswer:
    """What a node said about a replica. `known`: it led the group and its read barrier completed."""

    group: int
    replica: int
    known: bool
    member: bool


def may_remove(answer: MembershipAnswer, local: LocalState) -> bool:
    """Only the leader's own committed configuration removes a replica, and only the very one that was asked about."""
    kept = local.replicas.get(answer.group)
    return answer.known and not answer.member and kept is not None and kept.replica == answer.replica
