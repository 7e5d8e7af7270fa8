"""What the coordinators replicate: nodes, tables, shards, the map version, counters, decisions, standing notes.

Values only. A `ClusterState` is never changed in place; `transitions.apply` makes the next one.

Invariants
 - `map_version` and every counter only grow; node numbers, group ids and replica sequences are never used twice.
 - A shard's `birth` never changes. `members` is what the shard itself last committed and reported (of an AWAITED one,
   what is expected); `targets` is intent.
 - A shard that others took over is gone from `shards`; its group is among the `absorbed` of the one that has its keys.
 - Nothing that a replica below `replica_floor` says of its shard is believed.
 - Every accepted command that changes a node, a shard or the partitioning raises `map_version` by exactly one.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from flotta_runtime.hashing import home_count

DEFAULT_TABLE = "default"
DECISIONS_MAX = 10_000  # kept, oldest dropped first; enough for the birth of the largest table
JOBS_MAX = 200  # under way or kept for the record, those that ended first dropped first
RETURNS_MAX = 8  # of a node, remembered; more tell nothing new


class NodeStatus(enum.IntEnum):
    """Numbers as in kvdb.coordinator.NodeStatus."""

    ALIVE = 1
    SUSPECT = 2
    DEAD = 3


class Phase(enum.IntEnum):
    """Numbers as in kvdb.coordinator.ShardDetail.Phase."""

    CREATING = 1  # the nodes of `birth` may create their voter, once
    ACTIVE = 2  # a leader has reported; a voter of `birth` that is late may still be created, nobody else
    AWAITED = 3  # its parent is to divide: its voters come of the parent's log, nobody creates one by the map


class Purpose(enum.Enum):
    """Why a shard moves: what the move in flight is for."""

    NONE = ""  # it does not move
    OPERATOR = "operator"  # somebody asked for these very nodes
    DEAD = "dead"  # a node that died is replaced
    MISSING = "missing"  # there are fewer replicas than the replication factor
    SURPLUS = "surplus"  # there are more
    DRAIN = "drain"  # a node is to be emptied
    ZONES = "zones"  # the replicas get further apart
    BALANCE = "balance"  # nodes get equal shares


@dataclass(frozen=True, slots=True)
class Node:
    node_id: str
    address: str
    zone: str
    status: NodeStatus
    status_pinned: bool = False  # an operator set it: heartbeats do not overrule
    node_num: int = 0  # 0 until its data directory has said hello
    store_id: str = ""  # "" until its data directory has said hello
    placeable: bool = False  # it has sent a heartbeat of its own
    changed_ms: int = 0  # group time of the last registration, hello or status change
    draining: bool = False  # an operator wants it empty: it gets nothing new, and what it has leaves
    returns_ms: tuple[int, ...] = ()  # group times of its last returns from SUSPECT or DEAD, oldest first


@dataclass(frozen=True, slots=True)
class Replica:
    node_id: str
    replica_id: int


@dataclass(frozen=True, slots=True)
class Heir:
    """The one replica of a shard without a quorum that is to go on alone, and what it is to go on above."""

    node_id: str
    replica_id: int  # a new one
    from_replica: int  # that it is made of
    term_min: int
    epoch_min: int


@dataclass(frozen=True, slots=True)
class Shard:
    shard_id: str
    table: str
    group_id: int
    shard_index: int  # residue class of the key hash
    shard_count: int  # its modulus
    epoch: int
    phase: Phase
    birth: tuple[Replica, ...]
    members: tuple[Replica, ...]  # voters; in the order of `birth` or of the targets they came from
    targets: tuple[Replica, ...] = ()  # empty: as members. Not empty: MOVING
    leader: str = ""  # node id, "" until the first report
    leader_term: int = 0
    conf_index: int = 0  # log index of the configuration in `members`; 0: the birth configuration
    target_leader: str = ""  # intent; cleared when reached or hopeless
    revision_base: int = 0
    purpose: Purpose = Purpose.NONE  # of `targets`
    replicas_pinned: bool = False  # an operator chose the nodes: balancing leaves them
    leader_pinned: bool = False  # an operator chose the leader: balancing leaves it
    cancelled_ms: int = 0  # group time at which an operator cancelled a move; 0: never, or moved since
    parent: str = ""  # the shard it is born of; "" once every voter of it has been heard from by its leader
    sequence: int = 0  # of a shard that is born of another: the low half of the ids of its first voters
    heir: Heir | None = None  # while the shard is being recovered; cleared by the heir's own report
    replica_floor: int = 0  # replicas with a smaller sequence were given up by a recovery, for ever
    birth_shard_count: int = 0  # `shard_count` at its creation, for late voters of `birth`; 0: unknown
    into: str = ""  # the shard that takes its keys over; it is no more then
    order: int = 0  # number of the operation for which it is taken over, or takes others over; 0: neither
    caught_up: bool = False  # it has reported that it has all but the newest rows of those it takes over
    sealing: bool = False  # it is to be sealed, or is
    absorbed: tuple[int, ...] = ()  # groups of shards that it has taken over

    @property
    def moving(self) -> bool:
        return bool(self.targets)

    def member_on(self, node_id: str) -> Replica | None:
        return next((replica for replica in self.members if replica.node_id == node_id), None)


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    num_shards: int
    replication_factor: int  # as asked for; a shard has fewer replicas when there were fewer nodes
    merges_to: int = 0  # how many shards there are to be once all have divided; 0: as many as then


@dataclass(frozen=True, slots=True)
class Decision:
    number: int  # from 1, without gaps
    time_ms: int  # group time
    map_version: int  # of the state that the decision made
    kind: str
    subject: str  # node, shard or table
    reason: str  # one sentence


@dataclass(frozen=True, slots=True)
class Note:
    """Something that stands, and that somebody should know: what the planner cannot mend, or has finished."""

    kind: str
    subject: str
    text: str  # one sentence, the same for as long as it stands
    since_ms: int = 0  # group time

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.subject}"


class JobKind(enum.Enum):
    DRAIN = "drain"  # subject: a node
    DECOMMISSION = "decommission"  # a drain, and the node is removed at its end
    REPLICATION_FACTOR = "replication-factor"  # subject: a table
    SHARD_COUNT = "shard-count"  # subject: a table
    REBALANCE = "rebalance"  # subject: a table
    MOVE = "move"  # subject: a shard
    RECOVER = "recover"  # subject: a shard
    PLACEMENT = "placement"  # subject: a shard
    LEADERSHIP = "leadership"  # subject: a shard
    BACKUP = "backup"  # subject: a directory, as whoever copies calls it
    RESTORE = "restore"  # the same
    COMPACTION = "compaction"  # subject: a table


COPIES = (JobKind.BACKUP, JobKind.RESTORE)
OUTSIDE = (*COPIES, JobKind.COMPACTION)
"""Done outside of the coordinators, which only hear how far they are."""


class JobStatus(enum.Enum):
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Job:
    """Long work that an operator asked for."""

    number: int  # from 1
    kind: JobKind
    subject: str
    text: str  # what was asked for, a sentence
    steps: int  # there were to do at its beginning
    begun_ms: int  # group time
    status: JobStatus = JobStatus.RUNNING
    ended_ms: int = 0
    left: int = 0  # of a job that ended: steps that were not done; of one done OUTSIDE: as last reported
    outcome: str = ""  # of a job that ended, a sentence
    before: int = 0  # REPLICATION_FACTOR, SHARD_COUNT: what it was
    target: str = ""  # SHARD_COUNT: how many; MOVE, RECOVER, LEADERSHIP: the node; PLACEMENT: the nodes, with commas
    reported_ms: int = 0  # OUTSIDE: group time at which whoever does it said how far it is; 0: never yet


@dataclass(frozen=True, slots=True)
class Seat:
    """A coordinator that takes part: the heir of a recovery, or one that was admitted since."""

    node_id: str
    node_num: int
    store_id: str


@dataclass(frozen=True, slots=True)
class Numbers:
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Roster:
    """Who the coordinators are. Before the first recovery they are the configured ones, but those that were replaced;
    afterwards only those with seats."""

    generation: int = 0  # how often they were recovered
    recovered_ms: int = 0  # group time of the last recovery
    admitted: int = 0  # data directories that were given a number since the first one
    seats: tuple[Seat, ...] = ()  # the heir's first
    unseen: tuple[Numbers, ...] = ()  # numbers of nodes that lost coordinators may have welcomed
    replaced: tuple[int, ...] = ()  # coordinators' numbers that were given up one by one since the last recovery


@dataclass(frozen=True, slots=True)
class Counters:
    """The next value of everything that is handed out once."""

    node_num: int = 1
    group_id: int = 1
    replica_sequence: int = 1
    decision: int = 1
    job: int = 1


@dataclass(frozen=True, slots=True)
class ClusterState:
    cluster_id: str = ""
    map_version: int = 0
    sequence: int = 0  # commands that changed something; tells one state from the next
    counters: Counters = Counters()
    nodes: Mapping[str, Node] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    shards: Mapping[str, Shard] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()  # the newest DECISIONS_MAX, oldest first
    notes: Mapping[str, Note] = field(default_factory=dict)  # by `Note.key`
    jobs: Mapping[int, Job] = field(default_factory=dict)  # the newest JOBS_MAX, by number
    gone: Mapping[str, Node] = field(default_factory=dict)  # nodes that were removed; their ids are not used again
    roster: Roster = Roster()

    @property
    def partitioning(self) -> Table | None:
        return self.tables.get(DEFAULT_TABLE)

    def home_of(self, key_hash: int) -> Shard:
        """The shard that owns a key of the default table. KeyError while there are no shards."""
        num_shards = self.tables[DEFAULT_TABLE].num_shards
        first = self.shards[shard_name(key_hash % num_shards)]
        return self.shards[shard_name(key_hash % home_count(num_shards, first.shard_count))]

    def dividing(self) -> frozenset[str]:
        """Shards of which others are being born: their voters stay where they are."""
        return frozenset(shard.parent for shard in self.shards.values() if shard.parent)

    def node_by_num(self, node_num: int) -> Node | None:
        """Removed ones too: a shard may have committed one of them before it heard of the removal."""
        known = (*self.nodes.values(), *self.gone.values())
        return next((node for node in known if node.node_num == node_num), None) if node_num else None

    def node_by_store(self, store_id: str) -> Node | None:
        return next((node for node in self.nodes.values() if node.store_id == store_id), None) if store_id else None


def shard_name(index: int) -> str:
    """The id of a shard of the default table, as KvDB names it."""
    return f"shard-{index}"
