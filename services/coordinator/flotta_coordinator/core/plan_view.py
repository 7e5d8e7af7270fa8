"""What the planner looks at: one moment of the cluster, as plain values.

Every age is in ms and was measured by whoever made the view (`plan_memory.py`); the planner has no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flotta_coordinator.core.quorum import has_quorum, quorum
from flotta_coordinator.core.state import NodeStatus, Purpose

FLAP_DOUBLINGS_MAX = 6


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient and how fast the planner is."""

    replace_after_ms: int = 300_000  # a node DEAD for longer is not waited for
    settle_ms: int = 30_000  # a node ALIVE for less gets nothing new
    flap_window_ms: int = 3_600_000  # returns within this window count together
    moves_max: int = 8  # shards moving at once; 0: the planner moves nothing
    moves_per_node_max: int = 2  # of these, on one node, as the one that gets or loses a replica
    hand_overs_max: int = 4  # leaderships changing hands at once; 0: none by the planner's will
    stall_ms: int = 120_000  # a move without progress for longer is given up
    avoid_ms: int = 600_000  # and its destination left out, for that shard, for so long
    hold_ms: int = 600_000  # a shard whose move was cancelled is left alone for so long
    copy_silent_ms: int = 60_000  # a backup or restore that nobody reports on for longer has failed


@dataclass(frozen=True, slots=True)
class NodeView:
    node_id: str
    zone: str
    status: NodeStatus
    age_ms: int  # how long its record has been as it is
    placeable: bool = True
    draining: bool = False
    flaps: int = 0  # returns from SUSPECT or DEAD, up to the last one and within the flap window before it

    @property
    def alive(self) -> bool:
        return self.status is NodeStatus.ALIVE

    @property
    def dead(self) -> bool:
        return self.status is NodeStatus.DEAD

    @property
    def takes(self) -> bool:
        """May be given replicas and leaderships, once it has settled."""
        return self.alive and self.placeable and not self.draining

    def settle_ms(self, policy: Policy) -> int:
        """For how long it must have been ALIVE before it is given anything; doubled with every repeated return."""
        return policy.settle_ms << min(max(self.flaps - 1, 0), FLAP_DOUBLINGS_MAX)

    def settled(self, policy: Policy) -> bool:
        return self.takes and self.age_ms >= self.settle_ms(policy)

    def lost(self, policy: Policy) -> bool:
        """DEAD, and nobody waits for it any more."""
        return self.dead and (self.draining or self.age_ms >= policy.replace_after_ms)


@dataclass(frozen=True, slots=True)
class ShardView:
    shard_id: str
    table: str
    epoch: int
    active: bool  # a leader has reported
    wanted: int  # the table's replication factor
    members: tuple[str, ...]  # node ids of the voters, as last reported
    leader: str = ""
    targets: tuple[str, ...] = ()  # node ids; empty: it does not move
    target_ids: tuple[int, ...] = ()  # the replica ids of `targets`
    target_leader: str = ""
    purpose: Purpose = Purpose.NONE
    replicas_pinned: bool = False
    leader_pinned: bool = False
    held: bool = False  # an operator cancelled a move a short while ago
    avoid: frozenset[str] = frozenset()  # nodes that lately failed to become a replica, or the leader
    idle_ms: int = 0  # since the intent in flight last came closer
    copying: bool = False  # a snapshot is on its way to a new replica
    dividing: bool = False  # others are being born of it: its voters stay where they are
    parent: str = ""  # the shard it is being born of
    into: str = ""  # the shard that takes its keys over
    merging: bool = False  # it takes over those of others, or another its own
    awaited: bool = False  # which has not divided yet
    heir: str = ""  # the node whose replica is to go on alone: the shard is being recovered

    @property
    def placed(self) -> tuple[str, ...]:
        """Where it will be once it has moved."""
        return self.targets or self.members

    @property
    def led_by(self) -> str:
        """Who will lead it once every wish has come true; empty: whoever is elected when the leader has left."""
        leader = self.target_leader or self.leader
        return leader if leader in self.placed else ""

    @property
    def at_rest(self) -> bool:
        return self.active and not self.targets and not self.held and not self.dividing and not self.heir


@dataclass(frozen=True, slots=True)
class View:
    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    shards: tuple[ShardView, ...] = ()  # in an order that is always the same
    notes: Mapping[str, str] = field(default_factory=dict)  # what is noted as standing: key -> sentence
    copies: Mapping[int, int] = field(default_factory=dict)  # job under way -> ms since it was last heard of
    ready: bool = True  # every node has had its chance to be heard by this leader

    def living(self, node_ids: tuple[str, ...]) -> int:
        """How many of them are not DEAD."""
        return sum(node_id in self.nodes and not self.nodes[node_id].dead for node_id in node_ids)

    def alive(self, node_ids: tuple[str, ...]) -> int:
        return sum(node_id in self.nodes and self.nodes[node_id].alive for node_id in node_ids)

    def has_quorum(self, node_ids: tuple[str, ...]) -> bool:
        return has_quorum(self.living(node_ids), len(node_ids))

    def margin(self, node_ids: tuple[str, ...]) -> int:
        """How many more of them may fail before nothing can commit."""
        return self.alive(node_ids) - quorum(len(node_ids))
