"""Every change of the cluster's metadata, as a value; a log entry carries a batch of them.

A command says what was asked or observed; what follows from it (placement, ids, epochs, sentences) is worked out by
`transitions.apply`, the same on every member. Commands are versioned by name: a changed meaning gets a new name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flotta_embedded.codec import decode_value, encode_value

from flotta_coordinator.core import codec
from flotta_coordinator.core.state import JobStatus, Purpose


@dataclass(frozen=True, slots=True)
class FoundCluster:
    """The first leader puts the name of the cluster, agreed on at formation, on record."""

    cluster_id: str


@dataclass(frozen=True, slots=True)
class RegisterNode:
    """An operator makes a node known, or says that it is back, or where it is now."""

    node_id: str
    address: str
    zone: str


@dataclass(frozen=True, slots=True)
class HelloNode:
    """A storage process introduces its data directory."""

    node_id: str
    address: str
    zone: str
    store_id: str
    cluster_id: str  # "" on the first start of the data directory
    node_num: int = 0  # that the data directory was given then; 0: not said


@dataclass(frozen=True, slots=True)
class NodeObservation:
    node_id: str
    status: int
    silent_ms: int  # since its last heartbeat, 0 when one just came
    limit_ms: int  # the timeout it exceeded, 0 when a heartbeat came


@dataclass(frozen=True, slots=True)
class ObserveNodes:
    """What the leader's failure detector saw. A status ALIVE here means that a heartbeat came."""

    observations: tuple[NodeObservation, ...]


@dataclass(frozen=True, slots=True)
class InitShards:
    num_shards: int
    replication_factor: int
    revision_base: int = 0  # of a restore: no version is to be met again


@dataclass(frozen=True, slots=True)
class SetNodeStatus:
    """An operator overrules the failure detector (SUSPECT, DEAD) or hands the node back to it (ALIVE)."""

    node_id: str
    status: int


@dataclass(frozen=True, slots=True)
class SetShardReplicas:
    shard_id: str
    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetShardLeader:
    shard_id: str
    epoch: int
    leader_node_id: str


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What the leader of a shard says of it. `voters` empty: it only says who leads."""

    shard_id: str
    group_id: int  # 0: not stated
    epoch: int
    term: int
    leader_replica: int
    voters: tuple[int, ...]
    conf_index: int
    moving: bool
    shard_count: int = 0  # modulus of the keys it owns; 0: not stated
    whole: bool = False  # of a shard with a parent: its leader has heard from every voter
    sealed: bool = False  # it refuses all keys from now on
    caught_up: int = 0  # the order for which it has all but the newest rows of the shards it takes over


@dataclass(frozen=True, slots=True)
class ReportShards:
    """Reports of one node about the shards it leads."""

    node_id: str
    reports: tuple[ShardReport, ...]


@dataclass(frozen=True, slots=True)
class ReportShardLeader:
    """KvDB's report: no replica, no membership."""

    shard_id: str
    epoch: int
    term: int
    leader_node_id: str


@dataclass(frozen=True, slots=True)
class DrainNode:
    """An operator wants a node empty, or (`draining` false) takes that back."""

    node_id: str
    draining: bool
    remove: bool = False  # once it is empty


@dataclass(frozen=True, slots=True)
class RemoveNode:
    """An operator takes an empty node off the map, for good."""

    node_id: str


@dataclass(frozen=True, slots=True)
class SetReplicationFactor:
    replication_factor: int


@dataclass(frozen=True, slots=True)
class SetShardCount:
    table: str
    num_shards: int


@dataclass(frozen=True, slots=True)
class Rebalance:
    """An operator gives shards that were placed by hand back to the planner."""


@dataclass(frozen=True, slots=True)
class MoveReplica:
    """An operator moves one replica of a shard from one node to another."""

    shard_id: str
    from_node_id: str
    to_node_id: str


@dataclass(frozen=True, slots=True)
class RecoverShard:
    """An operator lets a shard that lost its quorum for good go on from one surviving replica."""

    shard_id: str
    epoch: int  # as the operator saw it
    node_id: str
    replica_id: int
    last_index: int
    seen_term: int
    seen_epoch: int
    lost_after_ms: int  # a node that has been DEAD for less may come back
    unsure: tuple[str, ...] = ()  # nodes that have been DEAD for less by the leader's own, monotonic clock


@dataclass(frozen=True, slots=True)
class CancelMove:
    """An operator calls off what a shard is about to become."""

    shard_id: str


@dataclass(frozen=True, slots=True)
class CancelJob:
    """An operator calls off long work."""

    number: int


@dataclass(frozen=True, slots=True)
class EndJob:
    """Long work has come to its end."""

    number: int
    status: JobStatus
    outcome: str


@dataclass(frozen=True, slots=True)
class BeginCopy:
    """Somebody is about to copy the rows of the cluster to a directory, or (`restore`) from one."""

    restore: bool
    directory: str


@dataclass(frozen=True, slots=True)
class BeginCompaction:
    """Nodes were given the order to compact so many replicas."""

    steps: int


@dataclass(frozen=True, slots=True)
class ReportCopy:
    """Whoever copies, or follows a compaction, is still at it, and so far."""

    number: int
    steps: int
    left: int


@dataclass(frozen=True, slots=True)
class CreateForRestore:
    """A restore whose backup was found whole creates the shards it is to fill."""

    number: int
    num_shards: int
    replication_factor: int
    revision_base: int


@dataclass(frozen=True, slots=True)
class EndCopy:
    """Whoever copies is done, or has failed."""

    number: int
    failed: bool
    outcome: str
    steps: int
    left: int


@dataclass(frozen=True, slots=True)
class MoveShard:
    """The planner moves a shard; refused unless everything the decision rests on still holds."""

    shard_id: str
    epoch: int
    nodes: tuple[str, ...]  # all that should hold it
    purpose: Purpose
    reason: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """The planner wants another member to lead a shard."""

    shard_id: str
    epoch: int
    leader_node_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The planner drops an intent of a shard: exactly these targets, or exactly this leader."""

    shard_id: str
    targets: tuple[int, ...]
    target_leader: str
    reason: str


@dataclass(frozen=True, slots=True)
class Standing:
    kind: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class SetNotes:
    """What the planner finds standing, and the keys of what it no longer finds."""

    standing: tuple[Standing, ...]
    over: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RecoverCoordinators:
    """The coordinators lost their quorum for good: this one goes on alone from what it has. It is in no batch that a
    leader made, but the entry by which the heir takes over."""

    node_id: str
    node_num: int
    store_id: str
    last_index: int  # of its log, before
    gone: tuple[str, ...]
    given_up: tuple[str, ...]  # that answered, and hold no more
    seen_map_version: int


@dataclass(frozen=True, slots=True)
class ReplaceCoordinator:
    """One coordinator is lost for good, and the others go on without its data directory."""

    node_id: str
    place: int  # among the configured ones, from 1
    node_num: int  # of the directory that is given up


@dataclass(frozen=True, slots=True)
class AdmitCoordinator:
    """An empty data directory takes the place of a coordinator that was given up."""

    node_id: str
    place: int  # among the configured ones, from 1
    store_id: str


Command = (
    FoundCluster
    | RegisterNode
    | HelloNode
    | ObserveNodes
    | InitShards
    | SetNodeStatus
    | SetShardReplicas
    | SetShardLeader
    | ReportShards
    | ReportShardLeader
    | DrainNode
    | RemoveNode
    | SetReplicationFactor
    | SetShardCount
    | Rebalance
    | MoveReplica
    | RecoverShard
    | CancelMove
    | CancelJob
    | EndJob
    | BeginCopy
    | BeginCompaction
    | ReportCopy
    | CreateForRestore
    | EndCopy
    | MoveShard
    | HandOver
    | GiveUp
    | SetNotes
    | RecoverCoordinators
    | ReplaceCoordinator
    | AdmitCoordinator
)

NAMES: dict[str, type[Command]] = {
    "found_cluster.1": FoundCluster,
    "register_node.1": RegisterNode,
    "hello_node.1": HelloNode,
    "observe_nodes.1": ObserveNodes,
    "init_shards.1": InitShards,
    "set_node_status.1": SetNodeStatus,
    "set_shard_replicas.1": SetShardReplicas,
    "set_shard_leader.1": SetShardLeader,
    "report_shards.1": ReportShards,
    "report_shard_leader.1": ReportShardLeader,
    "drain_node.1": DrainNode,
    "remove_node.1": RemoveNode,
    "set_replication_factor.1": SetReplicationFactor,
    "set_shard_count.1": SetShardCount,
    "rebalance.1": Rebalance,
    "move_replica.1": MoveReplica,
    "recover_shard.1": RecoverShard,
    "cancel_move.1": CancelMove,
    "cancel_job.1": CancelJob,
    "end_job.1": EndJob,
    "begin_copy.1": BeginCopy,
    "begin_compaction.1": BeginCompaction,
    "report_copy.1": ReportCopy,
    "create_for_restore.1": CreateForRestore,
    "end_copy.1": EndCopy,
    "move_shard.1": MoveShard,
    "hand_over.1": HandOver,
    "give_up.1": GiveUp,
    "set_notes.1": SetNotes,
    "recover_coordinators.1": RecoverCoordinators,
    "replace_coordinator.1": ReplaceCoordinator,
    "admit_coordinator.1": AdmitCoordinator,
}
_NAME_OF = {kind: name for name, kind in NAMES.items()}


def encode_batch(commands: Sequence[Command]) -> bytes:
    """The payload of one log entry. An empty batch is a fence: it changes nothing."""
    plain = [[_NAME_OF[type(command)], codec.to_plain(command)] for command in commands]
    return encode_value(plain)


def decode_batch(payload: bytes) -> list[Command]:
    """The inverse of `encode_batch`; ValueError for a command this version does not know."""
    batch: list[Command] = []
    for name, plain in decode_value(payload):
        kind = NAMES.get(name)
        if kind is None:
            raise ValueError(f"the log holds the command {name!r}, which this version does not know")
        batch.append(codec.from_plain(kind, plain))
    return batch
