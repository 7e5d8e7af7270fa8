"""The one door to the next state: `apply(state, command, now_ms)`.

It runs twice for every logged command: on the leader before logging, to refuse what must not reach the log, and on
every member at apply. Both times it sees the same state, so the second answer is the first; should it ever differ
(a batch logged by a leader that lost its place), a rejection at apply changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flotta_coordinator.core import (
    checks,
    copy_transitions,
    job_transitions,
    node_transitions,
    operator_transitions,
    planner_transitions,
    recovery_transitions,
    roster_transitions,
    shard_transitions,
    split_transitions,
)
from flotta_coordinator.core.commands import (
    AdmitCoordinator,
    BeginCompaction,
    BeginCopy,
    CancelJob,
    CancelMove,
    Command,
    CreateForRestore,
    DrainNode,
    EndCopy,
    EndJob,
    FoundCluster,
    GiveUp,
    HandOver,
    HelloNode,
    InitShards,
    MoveReplica,
    MoveShard,
    ObserveNodes,
    Rebalance,
    RecoverCoordinators,
    RecoverShard,
    RegisterNode,
    RemoveNode,
    ReplaceCoordinator,
    ReportCopy,
    ReportShardLeader,
    ReportShards,
    SetNodeStatus,
    SetNotes,
    SetReplicationFactor,
    SetShardCount,
    SetShardLeader,
    SetShardReplicas,
)
from flotta_coordinator.core.draft import Draft
from flotta_coordinator.core.results import Applied, Refused, RejectCode, Result
from flotta_coordinator.core.state import ClusterState


def apply(state: ClusterState, command: Command, now_ms: int) -> Result:
    """The next state with what changed, or a rejection that changes nothing. Deterministic."""
    try:
        return _TRANSITIONS[type(command)](Draft(state, now_ms), command)
    except Refused as refused:
        return refused.rejection


def _found_cluster(draft: Draft, command: FoundCluster) -> Applied:
    checks.check_id("cluster_id", command.cluster_id)
    if draft.cluster_id and draft.cluster_id != command.cluster_id:
        raise Refused(
            RejectCode.ALREADY_EXISTS, "cluster_id", f"cluster_id: this is already cluster {draft.cluster_id}"
        )
    if not draft.cluster_id:
        draft.cluster_id = command.cluster_id
        draft.decide("cluster-founded", command.cluster_id, f"the first leader founded cluster {command.cluster_id}")
    return draft.finish("founded")


_TRANSITIONS: dict[type[Command], Callable[[Draft, Any], Applied]] = {
    FoundCluster: _found_cluster,
    RegisterNode: node_transitions.register_node,
    HelloNode: node_transitions.hello_node,
    ObserveNodes: node_transitions.observe_nodes,
    SetNodeStatus: node_transitions.set_node_status,
    InitShards: shard_transitions.init_shards,
    SetShardReplicas: shard_transitions.set_shard_replicas,
    SetShardLeader: shard_transitions.set_shard_leader,
    ReportShards: shard_transitions.report_shards,
    ReportShardLeader: shard_transitions.report_shard_leader,
    DrainNode: operator_transitions.drain_node,
    RemoveNode: operator_transitions.remove_node,
    SetReplicationFactor: operator_transitions.set_replication_factor,
    SetShardCount: split_transitions.set_shard_count,
    Rebalance: operator_transitions.rebalance,
    MoveReplica: operator_transitions.move_replica,
    RecoverShard: recovery_transitions.recover_shard,
    CancelMove: operator_transitions.cancel_move,
    CancelJob: job_transitions.cancel_job,
    EndJob: job_transitions.end_job,
    BeginCopy: copy_transitions.begin_copy,
    BeginCompaction: copy_transitions.begin_compaction,
    ReportCopy: copy_transitions.report_copy,
    CreateForRestore: copy_transitions.create_for_restore,
    EndCopy: copy_transitions.end_copy,
    MoveShard: planner_transitions.move_shard,
    HandOver: planner_transitions.hand_over,
    GiveUp: planner_transitions.give_up,
    SetNotes: planner_transitions.set_notes,
    RecoverCoordinators: roster_transitions.recover_coordinators,
    ReplaceCoordinator: roster_transitions.replace_coordinator,
    AdmitCoordinator: roster_transitions.admit_coordinator,
}
