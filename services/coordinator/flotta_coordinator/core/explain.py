"""Why a shard is as it is, and what the planner would do with it next, in sentences. Pure, as the planner is.

What comes next is not guessed: the planner itself is asked, once as it is and once without its limits. What it would
do only without them waits for its turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flotta_coordinator.core.board import Board, Why
from flotta_coordinator.core.commands import Command, GiveUp, HandOver, MoveShard
from flotta_coordinator.core.plan_memory import Progress
from flotta_coordinator.core.plan_view import Policy, ShardView, View
from flotta_coordinator.core.planner import plan
from flotta_coordinator.core.repairs import need_of
from flotta_coordinator.core.state import NodeStatus
from flotta_coordinator.core.wording import count, seconds

_NO_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class Explanation:
    shard_id: str
    health: str  # CREATING, QUORUM_LOST, MOVING, DEGRADED, TOO_FEW, TOO_MANY or HEALTHY
    now: tuple[str, ...]
    next: tuple[str, ...]


def explain(view: View, policy: Policy, shard_id: str, moved_because: str, progress: Progress | None) -> Explanation:
    """`moved_because`: the reason that was given for the move in flight. KeyError for an unknown shard."""
    shard = next((one for one in view.shards if one.shard_id == shard_id), None)
    if shard is None:
        raise KeyError(shard_id)
    now = (_placed(view, shard), *_in_flight(shard, moved_because, progress), *_exempt(shard))
    return Explanation(shard_id, _health(view, shard), now, tuple(_next(view, policy, shard)))


def _health(view: View, shard: ShardView) -> str:
    if not view.has_quorum(shard.members):
        return "QUORUM_LOST"
    if not shard.active:
        return "CREATING"
    if shard.targets:
        return "MOVING"
    if view.alive(shard.members) < len(shard.members):
        return "DEGRADED"
    if len(shard.members) == shard.wanted or shard.replicas_pinned:
        return "HEALTHY"
    return "TOO_FEW" if len(shard.members) < shard.wanted else "TOO_MANY"


def _placed(view: View, shard: ShardView) -> str:
    if shard.awaited:
        return f"{shard.shard_id} of {shard.table} is to be born of {shard.parent}, which has not divided yet"
    where = ", ".join(_named(view, shard, node_id) for node_id in shard.members)
    led = "" if shard.leader else "; nobody is known to lead it"
    return f"{shard.shard_id} of {shard.table} has replicas on {where}; the replication factor is {shard.wanted}{led}"


def _named(view: View, shard: ShardView, node_id: str) -> str:
    node = view.nodes.get(node_id)
    marks = ["leads"] if node_id == shard.leader else []
    if node is not None and node.status is not NodeStatus.ALIVE:
        marks.append(f"{node.status.name} for {seconds(node.age_ms)}")
    if node is not None and node.draining:
        marks.append("being drained")
    return f"{node_id} ({', '.join(marks)})" if marks else node_id


def _in_flight(shard: ShardView, because: str, progress: Progress | None) -> Iterator[str]:
    if shard.heir:
        yield f"it is being recovered by an operator's order: the replica on {shard.heir} is to go on alone"
    if shard.targets:
        why = f", because {because}" if because else ""
        yield f"it is moving to {', '.join(shard.targets)}{why}"
        nodes = dict(zip(shard.target_ids, shard.targets, strict=True))
        for replica, lag in sorted((progress.lags if progress is not None else {}).items()):
            if replica in nodes:
                yield f"the new replica on {nodes[replica]} lacks {lag} entries of the log"
        if progress is not None and progress.copying:
            yield "a snapshot is on its way to a new replica"
        if progress is not None and progress.waits_for:
            yield f"its leader waits: {progress.waits_for}"
    if shard.target_leader:
        yield f"{shard.target_leader} is to lead it"


def _exempt(shard: ShardView) -> Iterator[str]:
    if shard.replicas_pinned:
        yield "an operator chose its nodes, so it is left out of balancing"
    if shard.leader_pinned:
        yield "an operator chose its leader, so its leadership is left where it is"
    if shard.dividing:
        yield "it divides: its replicas stay where they are until those of its children have been made"
    if shard.parent and not shard.awaited:
        yield f"it was born of {shard.parent}, which keeps its rows until each of its replicas has been made"
    if shard.into:
        yield f"its keys go over to {shard.into}, which copies its rows; it is no more then"
    elif shard.merging:
        yield "it takes over the keys of others, and copies their rows"
    if shard.held:
        yield "an operator cancelled a move a short while ago, so it is left alone for now"
    if shard.avoid:
        yield f"left out for now, because they did not become a replica or the leader: {', '.join(sorted(shard.avoid))}"


def _next(view: View, policy: Policy, shard: ShardView) -> Iterator[str]:
    if not view.ready:
        yield "nothing is decided before every node has had the time to be heard by the coordinator that leads now"
        return
    if not view.has_quorum(shard.members):
        if shard.heir:
            yield f"once {shard.heir} has gone on with what it has, new replicas are made"
            return
        yield "nothing can be done before more of its nodes are back: without a quorum no change of replicas commits"
        yield f"if they are lost for good, `flotta recover --unsafe {shard.shard_id}` goes on without them"
        return
    if shard.held:
        yield "nothing, as long as it is left alone"
        return
    unlimited = replace(policy, moves_max=_NO_LIMIT, moves_per_node_max=_NO_LIMIT, hand_overs_max=_NO_LIMIT)
    due, wanted = _about(plan(view, policy), shard), _about(plan(view, unlimited), shard)
    said = False
    for command in wanted:
        said = True
        off = policy.moves_max == 0 if isinstance(command, MoveShard) else policy.hand_overs_max == 0
        when = "it would be, but the planner is set to move nothing" if off else "once it is its turn"
        yield command.reason if due else f"{when}: {command.reason}"
    for sentence in _awaited(view, policy, shard, decided=bool(wanted)):
        said = True
        yield sentence
    if not said and not shard.targets and not shard.target_leader:
        yield "nothing: it is as it should be"


def _about(commands: tuple[Command, ...], shard: ShardView) -> list[MoveShard | HandOver | GiveUp]:
    return [
        command
        for command in commands
        if isinstance(command, MoveShard | HandOver | GiveUp) and command.shard_id == shard.shard_id
    ]


def _awaited(view: View, policy: Policy, shard: ShardView, *, decided: bool) -> Iterator[str]:
    """What the planner waits for before it does more."""
    for node_id in shard.members:
        node = view.nodes.get(node_id)
        if node is not None and node.status is NodeStatus.SUSPECT:
            yield f"{node_id} is SUSPECT: nothing is done about it before it is DEAD, or back"
        elif node is not None and node.dead and not node.lost(policy):
            left = seconds(policy.replace_after_ms - node.age_ms)
            yield f"the replica on {node_id} is replaced in {left}, unless {node_id} comes back"
    if decided or not shard.at_rest:
        return
    board = Board(view, policy)
    need = need_of(board, shard)
    if need is None or not need.coming:
        return
    staying = tuple(node_id for node_id in shard.members if node_id not in need.leaving)
    chosen = board.choose(shard, staying, need.coming)
    if chosen.why in (Why.NONE, Why.UNSETTLED):
        yield f"it needs {count(need.coming, 'new replica')}, but {chosen.why.value}"
