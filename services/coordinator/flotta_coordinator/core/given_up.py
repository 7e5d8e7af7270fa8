"""Which intents in flight lead nowhere, or are not wanted any more.

Dropping one is safe at any moment: the shard removes what it had added, and what it committed before the news reached
it is taken as committed. A shard without a quorum keeps its intents: it can neither fulfil nor drop them.
"""

from __future__ import annotations

from flotta_coordinator.core.board import Board
from flotta_coordinator.core.commands import GiveUp
from flotta_coordinator.core.plan_view import ShardView
from flotta_coordinator.core.state import Purpose
from flotta_coordinator.core.wording import seconds

COPYING_PATIENCE = 10  # a snapshot on its way shows no progress for as many times longer


def give_up(board: Board) -> None:
    for shard in board.view.shards:
        if not shard.active or shard.heir or board.view.margin(shard.members) < 0:
            continue
        if shard.targets:
            reason = _why_not_move(board, shard)
            if reason:
                where = ", ".join(shard.targets)
                sentence = f"the move of {shard.shard_id} to {where} is given up: {reason}"
                board.actions.append(GiveUp(shard.shard_id, shard.target_ids, "", sentence))
        elif shard.target_leader:
            reason = _why_not_lead(board, shard)
            if reason:
                sentence = f"{shard.target_leader} need not lead {shard.shard_id}: {reason}"
                board.actions.append(GiveUp(shard.shard_id, (), shard.target_leader, sentence))


def _why_not_move(board: Board, shard: ShardView) -> str:
    coming = [node_id for node_id in shard.targets if node_id not in shard.members]
    for node_id in coming:
        node = board.nodes.get(node_id)
        if node is None or node.dead:
            return f"{node_id} is DEAD"
        if node.draining:
            return f"{node_id} is being drained"
    gone = _purpose_gone(board, shard)
    if gone:
        return gone
    patience_ms = board.policy.stall_ms * (COPYING_PATIENCE if shard.copying else 1)
    return f"it has not come closer for {seconds(shard.idle_ms)}" if shard.idle_ms >= patience_ms else ""


def _purpose_gone(board: Board, shard: ShardView) -> str:
    """Why the planner would not begin the move today, if it was its own."""
    leaving = [node for node_id in shard.members if node_id not in shard.targets and (node := board.nodes.get(node_id))]
    if shard.purpose is Purpose.DRAIN and not any(node.draining for node in leaving):
        return "nothing is being drained there any more"
    if shard.purpose is Purpose.DEAD and leaving and all(node.settled(board.policy) for node in leaving):
        return f"{' and '.join(node.node_id for node in leaving)} came back and stayed"
    if shard.purpose is Purpose.MISSING and len(shard.targets) > shard.wanted:
        return f"the replication factor is {shard.wanted} now"
    if shard.purpose is Purpose.SURPLUS and len(shard.targets) < shard.wanted:
        return f"the replication factor is {shard.wanted} now"
    return ""


def _why_not_lead(board: Board, shard: ShardView) -> str:
    node = board.nodes.get(shard.target_leader)
    if node is None or node.dead:
        return f"{shard.target_leader} is DEAD"
    if node.draining:
        return f"{shard.target_leader} is being drained"
    if shard.idle_ms >= board.policy.stall_ms:
        return f"it has not come to lead within {seconds(shard.idle_ms)}"
    return ""
