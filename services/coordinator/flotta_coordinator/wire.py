"""The cluster's state as KvDB's messages, and requests as commands. No decisions here."""

from __future__ import annotations

from collections.abc import Iterable

from flotta_proto.flotta import cluster_pb2, operator_pb2
from flotta_proto.kvdb import coordinator_pb2 as pb

from flotta_coordinator.core import commands
from flotta_coordinator.core.deltas import Delta
from flotta_coordinator.core.explain import Explanation
from flotta_coordinator.core.jobs import left
from flotta_coordinator.core.keyrange import key_range
from flotta_coordinator.core.plan_memory import Progress
from flotta_coordinator.core.results import Applied, Rejection, Result
from flotta_coordinator.core.state import ClusterState, Decision, Heir, Job, Node, Replica, Shard, Table


def node_record(node: Node, last_heartbeat_ms: int | None = None) -> pb.NodeRecord:
    """`last_heartbeat_ms` is what the leader knows; elsewhere the time of the node's last recorded change stands in."""
    return pb.NodeRecord(
        node_id=node.node_id,
        address=node.address,
        zone=node.zone,
        status=pb.NodeStatus.ValueType(node.status),
        last_heartbeat_ms=node.changed_ms if last_heartbeat_ms is None else last_heartbeat_ms,
        detail=pb.NodeDetail(
            node_num=node.node_num,
            store_id=node.store_id,
            placeable=node.placeable,
            status_pinned=node.status_pinned,
        ),
    )


def shard_record(shard: Shard) -> pb.ShardRecord:
    start, end = key_range(shard.shard_index, shard.shard_count)
    return pb.ShardRecord(
        shard_id=shard.shard_id,
        epoch=shard.epoch,
        replicas=[member.node_id for member in shard.members],
        leader=shard.leader,
        config_state=pb.MOVING if shard.moving else pb.STABLE,
        key_range=pb.KeyRange(start_key=start, end_key=end),
        detail=pb.ShardDetail(
            group_id=shard.group_id,
            table=shard.table,
            shard_index=shard.shard_index,
            shard_count=shard.shard_count,
            phase=pb.ShardDetail.Phase.ValueType(shard.phase),
            birth=_replicas(shard.birth),
            members=_replicas(shard.members),
            targets=_replicas(shard.targets),
            target_leader=shard.target_leader,
            leader_term=shard.leader_term,
            conf_index=shard.conf_index,
            revision_base=shard.revision_base,
            parent=shard.parent,
            sequence=shard.sequence,
            replica_floor=shard.replica_floor,
            heir=_heir(shard.heir) if shard.heir is not None else None,
            birth_shard_count=shard.birth_shard_count,
            into=shard.into,
            order=shard.order,
            sealing=shard.sealing,
            absorbed=shard.absorbed,
        ),
    )


def cluster_state(state: ClusterState) -> pb.ClusterState:
    made = pb.ClusterState(map_version=state.map_version, cluster_id=state.cluster_id)
    for node_id, node in state.nodes.items():
        made.nodes[node_id].CopyFrom(node_record(node))
    for shard_id, shard in state.shards.items():
        made.shards[shard_id].CopyFrom(shard_record(shard))
    if state.partitioning is not None:
        made.partitioning.CopyFrom(partitioning(state.partitioning))
    return made


def partitioning(table: Table) -> pb.PartitioningConfig:
    return pb.PartitioningConfig(num_shards=table.num_shards, replication_factor=table.replication_factor)


def delta_message(state: ClusterState, delta: Delta, *, records: bool) -> pb.ShardMapDelta:
    """What changed; the records themselves only for clients that asked for them."""
    message = pb.ShardMapDelta(new_map_version=delta.version, changed_shards=delta.shards, changed_nodes=delta.nodes)
    if records:
        message.previous_map_version = delta.previous
        message.shards.extend(shard_record(state.shards[name]) for name in delta.shards if name in state.shards)
        message.removed_shards.extend(name for name in delta.shards if name not in state.shards)
        message.nodes.extend(node_record(state.nodes[name]) for name in delta.nodes if name in state.nodes)
        message.removed_nodes.extend(name for name in delta.nodes if name not in state.nodes)
        if delta.partitioning and state.partitioning is not None:
            message.partitioning.CopyFrom(partitioning(state.partitioning))
    return message


class StateMessages:
    """The full state as a message, made once per version."""

    def __init__(self) -> None:
        self._sequence = -1
        self._message = pb.ClusterState()

    def of(self, state: ClusterState) -> pb.ClusterState:
        if self._sequence != state.sequence:
            self._message = cluster_state(state)
            self._sequence = state.sequence
        return self._message


def rejection(result: Result) -> pb.Rejection | None:
    if isinstance(result, Applied):
        return None
    return pb.Rejection(code=result.code.value, field=result.field)


def outcome(result: Result, map_version: int) -> tuple[bool, str, int]:
    """success, message and map version of a reply."""
    if isinstance(result, Rejection):
        return False, result.message, map_version
    return True, result.reply.message, result.reply.map_version


def decision_message(decision: Decision) -> cluster_pb2.Decision:
    return cluster_pb2.Decision(
        number=decision.number,
        time_ms=decision.time_ms,
        map_version=decision.map_version,
        kind=decision.kind,
        subject=decision.subject,
        reason=decision.reason,
    )


def shard_reports(reports: Iterable[cluster_pb2.ShardReport]) -> tuple[commands.ShardReport, ...]:
    return tuple(
        commands.ShardReport(
            shard_id=report.shard_id,
            group_id=report.group_id,
            epoch=report.epoch,
            term=report.term,
            leader_replica=report.leader_replica,
            voters=tuple(report.voters),
            conf_index=report.conf_index,
            moving=report.moving,
            shard_count=report.shard_count,
            whole=report.whole,
            caught_up=report.caught_up,
            sealed=report.sealed,
        )
        for report in reports
    )


def job(state: ClusterState, found: Job) -> operator_pb2.Job:
    return operator_pb2.Job(
        number=found.number,
        kind=found.kind.value,
        subject=found.subject,
        text=found.text,
        status=found.status.value,
        begun_ms=found.begun_ms,
        ended_ms=found.ended_ms,
        steps=found.steps,
        left=left(state, found),
        outcome=found.outcome,
    )


def progress(report: cluster_pb2.ShardReport) -> Progress | None:
    """What a report says of a change under way."""
    if not report.HasField("progress"):
        return None
    said = report.progress
    return Progress({lag.replica_id: lag.entries for lag in said.lags}, said.copying, said.waits_for)


def explanation(found: Explanation) -> cluster_pb2.ExplainShardResponse:
    return cluster_pb2.ExplainShardResponse(
        shard_id=found.shard_id, health=found.health, now=found.now, next=found.next
    )


def _heir(heir: Heir) -> pb.Heir:
    return pb.Heir(
        node_id=heir.node_id,
        replica_id=heir.replica_id,
        from_replica=heir.from_replica,
        term_min=heir.term_min,
        epoch_min=heir.epoch_min,
    )


def _replicas(replicas: tuple[Replica, ...]) -> list[pb.ReplicaRef]:
    return [pb.ReplicaRef(node_id=item.node_id, replica_id=item.replica_id) for item in replicas]
