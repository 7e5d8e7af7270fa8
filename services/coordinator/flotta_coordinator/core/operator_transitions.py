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
from flotta_coordinator.core.placement import candidates
from flotta_coordinator.core.results import Applied, Refused, RejectCode
from flotta_coordinator.core.shard_transitions import moved_by_hand, taking
from flotta_coordinator.core.state import ClusterState, NodeStatus, Phase, Purpose, Shard, Table
from flotta_coordinator.core.wording import count


def drain_node(draft: Draft, command: DrainNode) -> Applied:
    """Let the planner empty a node, or stop it from doing so. What has left by then stays away until balance asks."""
    checks.check_id("node_id", command.node_id)
    node = draft.node(command.node_id)
    if not command.draining:
        if not node.draining:
            raise _unmet("node_id", f"node_id: {node.node_id} is not being drained")
        draft.put_node(replace(node, draining=False))
        draft.decide("node-undrained", node.node_id, f"an operator ended the drain of {node.node_id}")
        return draft.finish(f"the drain of {node.node_id} is ended; it may take replicas again")
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
    return draft.finish(f"{node.node_id} is being drained: it leads {count(leads, 'shard')} and holds {replicas}{hint}")


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
    if table.replication_factor == wanted:
        return draft.finish(f"the replication factor is {wanted} already{capped}")
    draft.put_table(replace(table, replication_factor=wanted))
    _unpin(draft, (shard for shard in draft.base.shards.values() if shard.table == table.name))
    draft.decide(
        "replication-factor",
        table.name,
        f"an operator changed the replication factor from {table.replication_factor} to {wanted}{capped}",
    )
    return draft.finish(f"the replication factor is {wanted} now, it was {table.replication_factor}{capped}")


def rebalance(draft: Draft, command: Rebalance) -> Applied:
    """Hand shards that were placed by hand back to the planner, which balances all others anyway."""
    table = _table(draft)
    freed = _unpin(draft, draft.base.shards.values())
    if freed:
        draft.decide("rebalance", table.name, f"an operator lets {count(freed, 'shard')} placed by hand be balanced")
    return draft.finish(f"{count(freed, 'shard')} placed by hand may be moved again; all others are balanced anyway")


def move_replica(draft: Draft, command: MoveReplica) -> Applied:
    """Move one replica; the others stay."""
    checks.check_id("shard_id", command.shard_id)
    checks.check_id("from_node_id", command.from_node_id)
    checks.check_id("to_node_id", command.to_node_id)
    shard = draft.shard(command.shard_id)
    leaving, coming = command.from_node_id, command.to_node_id
    draft.node(leaving, "from_node_id")
    draft.node(coming, "to_node_id")
    if shard.phase is not Phase.ACTIVE:
        raise _unmet("shard_id", f"shard_id: {shard.shard_id} is still being created")
    if shard.moving:
        raise _unmet("shard_id", f"shard_id: {shard.shard_id} is moving already; cancel that first")
    if shard.member_on(leaving) is None:
        raise _unmet("from_node_id", f"from_node_id: {leaving} holds no replica of {shard.shard_id}")
    if shard.member_on(coming) is not None:
        raise _unmet("to_node_id", f"to_node_id: {coming} already holds a replica of {shard.shard_id}")
    fresh = draft.new_replica(taking(draft, coming, "to_node_id"))
    targets = tuple(fresh if member.node_id == leaving else member for member in shard.members)
    after = moved_by_hand(shard, targets, "" if shard.target_leader == leaving else shard.target_leader)
    draft.put_shard(replace(after, leader_pinned=shard.leader_pinned))
    draft.decide("shard-move", shard.shard_id, f"an operator moves {shard.shard_id} from {leaving} to {coming}")
    return draft.finish(f"{shard.shard_id} moves from {leaving} to {coming}", new_epoch=shard.epoch + 1)


def cancel_move(draft: Draft, command: CancelMove) -> Applied:
    """Call off what the shard has not become yet. The planner leaves the shard alone for a while then."""
    checks.check_id("shard_id", command.shard_id)
    shard = draft.shard(command.shard_id)
    if not shard.moving and not shard.target_leader:
        raise _unmet("shard_id", f"shard_id: {shard.shard_id} is not moving, there is nothing to cancel")
    targets = ", ".join(target.node_id for target in shard.targets)
    what = f"the move of {shard.shard_id} to {targets}" if targets else f"the hand-over of {shard.shard_id}"
    draft.put_shard(
        replace(shard, targets=(), target_leader="", purpose=Purpose.NONE, cancelled_ms=max(1, draft.now_ms))
    )
    draft.decide("shard-move-cancelled", shard.shard_id, f"an operator cancelled {what}")
    return draft.finish(f"cancelled {what}; what the shard committed before this reached it stays")


def holdings(state: ClusterState, node_id: str) -> tuple[int, int]:
    """On how many shards the node has a replica, or is to get one, and how many of them it leads."""
    held = [shard for shard in state.shards.values() if _holds(shard, node_id)]
    return len(held), sum(shard.leader == node_id for shard in held)


def _holds(shard: Shard, node_id: str) -> bool:
    return any(replica.node_id == node_id for replica in (*shard.members, *shard.targets))


def _unpin(draft: Draft, shards: Iterable[Shard]) -> int:
    return sum(draft.put_shard(replace(shard, replicas_pinned=False, leader_pinned=False)) for shard in shards)


def _table(draft: Draft) -> Table:
    if draft.base.partitioning is None:
        raise _unmet("replication_factor", "no shards yet: initialize the shards first")
    return draft.base.partitioning


def _unmet(field: str, message: str) -> Refused:
    return Refused(RejectCode.FAILED_PRECONDITION, field, message)
