"""The planner's decisions as commands: each is checked again, against the state it will be applied to.

The planner looked at one state, and the log may have moved on since. So everything a decision rests on is asked once
more here, the rules that must never be broken among it: distinct nodes, living nodes only, never fewer living replicas
than a quorum, never a step on a shard that has lost its own. A refused decision leaves no trace; the planner looks
again.
"""

from __future__ import annotations

from dataclasses import replace

from flotta_coordinator.core.commands import GiveUp, HandOver, MoveShard, SetNotes
from flotta_coordinator.core.draft import Draft
from flotta_coordinator.core.placement import may_take_replicas
from flotta_coordinator.core.quorum import has_quorum
from flotta_coordinator.core.results import Applied, Refused, RejectCode
from flotta_coordinator.core.shard_transitions import called_off, check_not_recovered
from flotta_coordinator.core.split_transitions import check_not_dividing
from flotta_coordinator.core.state import Node, NodeStatus, Note, Phase, Purpose, Shard

OPTIONAL = (Purpose.ZONES, Purpose.BALANCE)


def move_shard(draft: Draft, command: MoveShard) -> Applied:
    """Give the shard its targets. Nodes that stay keep their replica, new ones get an id that was never used."""
    shard = _at_rest(draft, command.shard_id, command.epoch)
    check_not_dividing(draft.base, shard)
    now_on = tuple(member.node_id for member in shard.members)
    coming = [draft.node(node_id, "nodes") for node_id in command.nodes if node_id not in now_on]
    leaving = [draft.node(node_id, "nodes") for node_id in now_on if node_id not in command.nodes]
    if not command.nodes or len(set(command.nodes)) != len(command.nodes) or not (coming or leaving):
        raise _unmet("nodes", f"nodes: {', '.join(command.nodes)} are no other nodes, or name one twice")
    for node in coming:
        if not may_take_replicas(node):
            raise _unmet("nodes", f"nodes: {node.node_id} cannot take a replica now")
    _check_purpose(draft, command, shard, coming, leaving)
    _check_quorum(draft, "before", now_on)
    _check_quorum(draft, "after", command.nodes)
    targets = tuple(shard.member_on(node_id) or draft.new_replica(draft.node(node_id)) for node_id in command.nodes)
    leader = shard.target_leader if shard.target_leader in command.nodes else ""
    draft.put_shard(replace(shard, targets=targets, target_leader=leader, purpose=command.purpose, cancelled_ms=0))
    draft.decide("shard-move", shard.shard_id, command.reason)
    return draft.finish("moving", new_epoch=shard.epoch + 1)


def hand_over(draft: Draft, command: HandOver) -> Applied:
    """Wish for another leader among the members."""
    shard = _at_rest(draft, command.shard_id, command.epoch)
    node = draft.node(command.leader_node_id, "leader_node_id")
    if shard.member_on(node.node_id) is None or not may_take_replicas(node):
        raise _unmet("leader_node_id", f"leader_node_id: {node.node_id} cannot lead {shard.shard_id} now")
    if shard.target_leader or shard.leader == node.node_id:
        raise _unmet("leader_node_id", f"leader_node_id: {shard.shard_id} has a wish already, or has this leader")
    draft.put_shard(replace(shard, target_leader=node.node_id))
    draft.decide("shard-leader-wanted", shard.shard_id, command.reason)
    return draft.finish("wished")


def give_up(draft: Draft, command: GiveUp) -> Applied:
    """Drop an intent that leads nowhere, if it is still the same one."""
    shard = draft.shard(command.shard_id)
    targets = tuple(target.replica_id for target in shard.targets)
    if command.targets and command.targets == targets:
        draft.put_shard(called_off(shard))
        draft.decide("shard-move-given-up", shard.shard_id, command.reason)
    elif command.target_leader and command.target_leader == shard.target_leader:
        draft.put_shard(replace(shard, target_leader=""))
        draft.decide("shard-leader-given-up", shard.shard_id, command.reason)
    else:
        raise _unmet("shard_id", f"shard_id: {shard.shard_id} has another intent by now")
    return draft.finish("given up")


def set_notes(draft: Draft, command: SetNotes) -> Applied:
    """Keep what stands, tell what is new and what is over."""
    notes = (Note(one.kind, one.subject, one.text) for one in command.standing)
    standing = {note.key: note for note in notes}
    for note in standing.values():
        if draft.put_note(note):
            draft.decide(note.kind, note.subject, note.text)
    for key in sorted(set(command.over) - standing.keys()):
        gone = draft.base.notes.get(key)
        if gone is not None:
            draft.drop_note(key)
            draft.decide(f"{gone.kind}-over", gone.subject, f"no longer so: {gone.text}")
    return draft.finish("noted")


def _at_rest(draft: Draft, shard_id: str, epoch: int) -> Shard:
    shard = draft.shard(shard_id)
    if shard.phase is not Phase.ACTIVE:
        raise _unmet("shard_id", f"shard_id: {shard_id} is still being created")
    check_not_recovered(shard)
    if shard.moving:
        raise _unmet("shard_id", f"shard_id: {shard_id} is moving already")
    if shard.epoch != epoch:
        raise _unmet("epoch", f"epoch: {shard_id} is at epoch {shard.epoch}, not {epoch}")
    return shard


def _check_purpose(draft: Draft, command: MoveShard, shard: Shard, coming: list[Node], leaving: list[Node]) -> None:
    """Does the reason for the move still hold?"""
    purpose, size = command.purpose, len(command.nodes)
    wanted = draft.base.tables[shard.table].replication_factor
    holds = {
        Purpose.DEAD: all(node.status is NodeStatus.DEAD for node in leaving) and len(coming) == len(leaving),
        Purpose.DRAIN: all(node.draining for node in leaving) and len(coming) == len(leaving),
        Purpose.MISSING: not leaving and size <= wanted,
        Purpose.SURPLUS: not coming and size >= wanted,
    }
    if purpose in OPTIONAL:
        members = [draft.node(member.node_id) for member in shard.members]
        healthy = all(node.status is NodeStatus.ALIVE for node in members)
        still = healthy and not shard.replicas_pinned and len(coming) == len(leaving)
    else:
        still = holds.get(purpose, False)
    if not still:
        raise _unmet("purpose", f"purpose: the reason to move {shard.shard_id} ({purpose.value}) is gone")


def _check_quorum(draft: Draft, when: str, node_ids: tuple[str, ...]) -> None:
    living = sum(draft.node(node_id).status is not NodeStatus.DEAD for node_id in node_ids)
    if not has_quorum(living, len(node_ids)):
        raise _unmet(
            "nodes", f"nodes: only {living} of the {len(node_ids)} replicas {when} the move are not on DEAD nodes"
        )


def _unmet(field: str, message: str) -> Refused:
    return Refused(RejectCode.FAILED_PRECONDITION, field, message)
