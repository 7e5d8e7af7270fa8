"""What an operator asks of the planner: empty a node, another replication factor, a move, calling one off.

These are intents. The planner carries them out at its own rate (`planner.py`), and each reply says how far they can be
carried out at present. Asking for what is so already changes nothing; calling off what is not there is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from flotta_coordinator.core import checks
from flotta_coordinator.core.commands import (
    CancelMove,
    DrainNode,
    MoveReplica,
    Rebalance,
    RemoveNode,
    SetReplicationFactor,
)
from flotta_coordinator.core.draft import Draft
from flotta_coordinator.core.jobs import holdings, running, uneven
from flotta_coordinator.core.placement import candidates
from flotta_coordinator.core.results import Applied, Refused, RejectCode
from flotta_coordinator.core.shard_transitions import called_off, check_not_recovered, moved_by_hand, taking
from flotta_coordinator.core.split_transitions import check_not_dividing
from flotta_coordinator.core.state import JobKind, JobStatus, NodeStatus, Phase, Shard, Table
from flotta_coordinator.core.wording import count

DRAINS = (JobKind.DRAIN, JobKind.DECOMMISSION)


def drain_node(draft: Draft, command: DrainNode) -> Applied:
    """Let the planner empty a node, or stop it from doing so. What has left by then stays away until balance asks."""
    checks.check_id("node_id", command.node_id)
    node = draft.node(command.node_id)
    job = running(draft.base, DRAINS, node.node_id)
    if not command.draining:
        if not node.draining:
            raise _unmet("node_id", f"node_id: {node.node_id} is not being drained")
        if job is not None and not draft.has_job(job.number):
            draft.end_job(job, JobStatus.CANCELLED, "an operator ended the drain")
        draft.put_node(replace(node, draining=False))
        draft.decide("node-undrained", node.node_id, f"an operator ended the drain of {node.node_id}")
        number = job.number if job is not None else 0
        return draft.finish(f"the drain of {node.node_id} is ended; it may take replicas again", job=number)
    kind = JobKind.DECOMMISSION if command.remove else JobKind.DRAIN
    if job is not None and job.kind is not kind:
        draft.end_job(job, JobStatus.CANCELLED, f"an operator asked for a {kind.value} instead")
        job = None
    replicas, leads = holdings(draft.base, node.node_id)
    if draft.put_node(replace(node, draining=True)):
        draft.decide(
            "node-draining",
            node.node_id,
            f"an operator drains {node.node_id}: {count(leads, 'leadership')}, then {count(replicas, 'replica')} "
            "are to leave it",
        )
    left = [found for found in candidates(draft.base.nodes.values()) if found != node.node_id]
    hint = "" if left or not replicas else "; no other node can take replicas yet, so add one"
    if job is None:
        job = draft.begin_job(kind, node.node_id, f"the {kind.value} of {node.node_id}", replicas)
    return draft.finish(
        f"{node.node_id} is being drained: it leads {count(leads, 'shard')} and holds {replicas}{hint}", job=job.number
    )


def remove_node(draft: Draft, command: RemoveNode) -> Applied:
    """Take a node that holds nothing off the map. Its id and its data directory are never welcomed again."""
    checks.check_id("node_id", command.node_id)
    node = draft.node(command.node_id)
    replicas, _ = holdings(draft.base, node.node_id)
    if replicas:
        raise _unmet(
            "node_id", f"node_id: {node.node_id} still holds replicas of {count(replicas, 'shard')}; drain it first"
        )
    if node.status is not NodeStatus.DEAD and not node.draining:
        raise _unmet("node_id", f"node_id: {node.node_id} is {node.status.name}; drain it first, or stop it")
    draft.remove_node(node.node_id)
    for note in draft.base.notes.values():
        if note.subject == node.node_id:
            draft.drop_note(note.key)
    draft.decide("node-removed", node.node_id, f"an operator removed {node.node_id}, which held nothing")
    return draft.finish(f"{node.node_id} is removed")


def set_replication_factor(draft: Draft, command: SetReplicationFactor) -> Applied:
    """Change how many replicas each shard should have. Shards placed by hand follow too."""
    wanted = command.replication_factor
    checks.check_range("replication_factor", wanted, 1, checks.REPLICATION_FACTOR_MAX)
    table = _table(draft)
    takers = len(candidates(draft.base.nodes.values()))
    capped = (
        f"; only {takers} nodes can take replicas, so shards get {takers} until there are more"
        if takers < wanted
        else ""
    )
    job = running(draft.base, (JobKind.REPLICATION_FACTOR,), table.name)
    if table.replication_factor == wanted:
        number = job.number if job is not None else 0
        return draft.finish(f"the replication factor is {wanted} already{capped}", job=number)
    if job is not None:
        draft.end_job(job, JobStatus.CANCELLED, f"an operator changed the replication factor to {wanted} instead")
    change_factor(draft, table, wanted, capped)
    was = table.replication_factor
    shards = sum(shard.table == table.name for shard in draft.base.shards.values())
    text = f"the change of the replication factor from {was} to {wanted}"
    job = draft.begin_job(JobKind.REPLICATION_FACTOR, table.name, text, shards, before=was)
    return draft.finish(f"the replication factor is {wanted} now, it was {was}{capped}", job=job.number)


def change_factor(draft: Draft, table: Table, wanted: int, remark: str = "") -> None:
    """From here on this many replicas are wanted; the planner gets there."""
    draft.put_table(replace(table, replication_factor=wanted))
    _unpin(draft, (shard for shard in draft.base.shards.values() if shard.table == table.name))
    draft.decide(
        "replication-factor",
        table.name,
        f"an operator changed the replication factor from {table.replication_factor} to {wanted}{remark}",
    )


def rebalance(draft: Draft, command: Rebalance) -> Applied:
    """Hand shards that were placed by hand back to the planner, which balances all others anyway."""
    table = _table(draft)
    freed = _unpin(draft, draft.base.shards.values())
    if freed:
        draft.decide("rebalance", table.name, f"an operator lets {count(freed, 'shard')} placed by hand be balanced")
    job = running(draft.base, (JobKind.REBALANCE,), table.name)
    if job is None:
        job = draft.begin_job(JobKind.REBALANCE, table.name, f"the rebalance of {table.name}", uneven(draft.base))
    message = f"{count(freed, 'shard')} placed by hand may be moved again; all others are balanced anyway"
    return draft.finish(message, job=job.number)


def move_replica(draft: Draft, command: MoveReplica) -> Applied:
    """Move one replica; the others stay."""
    checks.check_id("shard_id", command.shard_id)
    checks.check_id("from_node_id", command.from_node_id)
    checks.check_id("to_node_id", command.to_node_id)
    shard = draft.shard(command.shard_id)
    leaving, coming = command.from_node_id, command.to_node_id
    draft.node(leaving, "from_node_id")
    draft.node(coming, "to_node_id")
    check_not_dividing(draft.base, shard)
    if shard.phase is not Phase.ACTIVE:
        raise _unmet("shard_id", f"shard_id: {shard.shard_id} is still being created")
    check_not_recovered(shard)
    if shard.moving:
        raise _unmet("shard_id", f"shard_id: {shard.shard_id} is moving already; cancel that first")
    if shard.member_on(leaving) is None:
        raise _unmet("from_node_id", f"from_node_id: {leaving} holds no replica of {shard.shard_id}")
    if shard.member_on(coming) is not None:
        raise _unmet("to_node_id", f"to_node_id: {coming} already holds a replica of {shard.shard_id}")
    fresh = draft.new_replica(taking(draft, coming, "to_node_id"))
    targets = tuple(fresh if member.node_id == leaving else member for member in shard.members)
    after = moved_by_hand(shard, targets, "" if shard.target_leader == leaving else shard.target_leader)
    # A shard that has not reached the replication factor must still get there, so it stays the planner's.
    whole = len(targets) == draft.base.tables[shard.table].replication_factor
    pinned = shard.replicas_pinned or whole
    draft.put_shard(replace(after, leader_pinned=shard.leader_pinned, replicas_pinned=pinned))
    draft.decide("shard-move", shard.shard_id, f"an operator moves {shard.shard_id} from {leaving} to {coming}")
    text = f"the move of {shard.shard_id} from {leaving} to {coming}"
    job = draft.begin_job(JobKind.MOVE, shard.shard_id, text, 1, target=coming)
    message = f"{shard.shard_id} moves from {leaving} to {coming}"
    return draft.finish(message, new_epoch=shard.epoch + 1, job=job.number)


def cancel_move(draft: Draft, command: CancelMove) -> Applied:
    """Call off what the shard has not become yet. The planner leaves the shard alone for a while then."""
    checks.check_id("shard_id", command.shard_id)
    shard = draft.shard(command.shard_id)
    if not shard.moving and not shard.target_leader:
        raise _unmet("shard_id", f"shard_id: {shard.shard_id} is not moving, there is nothing to cancel")
    targets = ", ".join(target.node_id for target in shard.targets)
    what = f"the move of {shard.shard_id} to {targets}" if targets else f"the hand-over of {shard.shard_id}"
    draft.put_shard(replace(called_off(shard), target_leader="", cancelled_ms=max(1, draft.now_ms)))
    draft.decide("shard-move-cancelled", shard.shard_id, f"an operator cancelled {what}")
    return draft.finish(f"cancelled {what}; what the shard committed before this reached it stays")


def _unpin(draft: Draft, shards: Iterable[Shard]) -> int:
    return sum(draft.put_shard(replace(shard, replicas_pinned=False, leader_pinned=False)) for shard in shards)


def _table(draft: Draft) -> Table:
    if draft.base.partitioning is None:
        raise _unmet("replication_factor", "no shards yet: initialize the shards first")
    return draft.base.partitioning


def _unmet(field: str, message: str) -> Refused:
    return Refused(RejectCode.FAILED_PRECONDITION, field, message)
