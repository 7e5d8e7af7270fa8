"""The planner's part of a coordinator transcript: what operators ask, what the planner decides, what shards then do.

`nodes` and `shards` make a cluster without a word. `plan` is one look of the planner: its decisions are applied, and
their sentences printed. `carry` lets shards become what they were asked to; `carry but=n4` all whose move needs no n4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flotta_coordinator.core import commands
from flotta_coordinator.core.explain import explain
from flotta_coordinator.core.job_ends import ended
from flotta_coordinator.core.plan_memory import Memory, Progress
from flotta_coordinator.core.plan_view import Policy, View
from flotta_coordinator.core.planner import plan
from flotta_coordinator.core.results import Applied
from flotta_coordinator.core.state import NodeStatus, Shard
from flotta_coordinator.core.transitions import apply


class Planning:
    def __init__(self) -> None:
        self.policy = Policy()
        self.memory = Memory()

    def forget(self) -> None:
        self.memory = Memory()

    def view(self, script: Any) -> View:
        ready = script.liveness.round_is_over(script.state.nodes.values(), script.now_ms)
        return self.memory.view(script.state, self.policy, now_ms=script.now_ms, wall_ms=script.now_ms, ready=ready)


def _quietly(script: Any, command: commands.Command) -> Applied:
    result = apply(script.state, command, script.now_ms)
    assert isinstance(result, Applied), result
    script.state = result.state
    return result


def _nodes(script: Any, words: list[str], options: dict[str, str]) -> None:
    """`nodes n1:a n2:b`: joined, in these zones."""
    if not script.state.cluster_id:
        _quietly(script, commands.FoundCluster("c1"))
    for word in words:
        name, _, zone = word.partition(":")
        _quietly(script, commands.HelloNode(name, f"{name}:1", zone, f"store-{name}", ""))
        script.liveness.heard(name, script.now_ms)
        _quietly(script, commands.ObserveNodes((commands.NodeObservation(name, NodeStatus.ALIVE, 0, 0),)))
    script.out.append(f"{len(script.state.nodes)} nodes")


def _shards(script: Any, words: list[str], options: dict[str, str]) -> None:
    """`shards 4 3`: created, and led by their first replicas."""
    _quietly(script, commands.InitShards(int(words[0]), int(words[1])))
    for shard in script.state.shards.values():
        _report(script, shard, [member.node_id for member in shard.members], shard.members[0].node_id)
    _place(script, list(script.state.shards), {})


def _report(script: Any, shard: Shard, voters: list[str], leader: str) -> None:
    known = {replica.node_id: replica.replica_id for replica in (*shard.members, *shard.targets)}
    moved = set(voters) != {member.node_id for member in shard.members}
    report = commands.ShardReport(
        shard_id=shard.shard_id,
        group_id=shard.group_id,
        epoch=shard.epoch + moved,
        term=shard.leader_term + 1,
        leader_replica=known[leader],
        voters=tuple(known[name] for name in voters),
        conf_index=shard.conf_index + 1,
        moving=False,
    )
    _quietly(script, commands.ReportShards(leader, (report,)))


def _place(script: Any, words: list[str], options: dict[str, str]) -> None:
    """Where shards are, the leader with a star."""
    for name in words or script.state.shards:
        shard = script.state.shards[name]
        members = [f"{one.node_id}*" if one.node_id == shard.leader else one.node_id for one in shard.members]
        target = f" -> {' '.join(one.node_id for one in shard.targets)}" if shard.targets else ""
        leader = f" (wants {shard.target_leader})" if shard.target_leader else ""
        script.out.append(f"{name}: {' '.join(members)}{target}{leader}")


def _plan(script: Any, words: list[str], options: dict[str, str]) -> None:
    view = script.planning.view(script)
    decided = plan(view, script.planning.policy)
    decided += ended(script.state, view, script.planning.policy, decided)
    if not decided:
        script.out.append("nothing to do" if view.ready else "not ready")
    for command in decided:
        (decoded,) = commands.decode_batch(commands.encode_batch([command]))
        result = apply(script.state, decoded, script.now_ms)
        if not isinstance(result, Applied):
            script.out.append(f"refused {result.message}")
            continue
        script.state = result.state
        made = result.state.decisions[len(result.state.decisions) - result.decisions :]
        script.out += [f"{decision.kind}: {decision.reason}" for decision in made]
        if isinstance(command, commands.GiveUp):
            shard = next(one for one in view.shards if one.shard_id == command.shard_id)
            script.planning.memory.gave_up(shard, script.planning.policy, script.now_ms)


def _carry(script: Any, words: list[str], options: dict[str, str]) -> None:
    but = set(options.get("but", "").split(","))
    for shard_id in words or list(script.state.shards):
        shard = script.state.shards[shard_id]
        members = [member.node_id for member in shard.members]
        living = [name for name in members if script.state.nodes[name].status is NodeStatus.ALIVE]
        if len(living) <= len(members) // 2:
            continue
        if shard.leader not in living:
            _report(script, shard, members, living[0])
        shard = script.state.shards[shard_id]
        targets = [target.node_id for target in shard.targets]
        if targets and not but & (set(targets) - set(members)):
            able = [name for name in targets if script.state.nodes[name].status is NodeStatus.ALIVE]
            _report(script, shard, targets, shard.leader if shard.leader in able else able[0])
        shard = script.state.shards[shard_id]
        if shard.target_leader and shard.target_leader not in but:
            _report(script, shard, [member.node_id for member in shard.members], shard.target_leader)
        if script.state.shards[shard_id] != shard or targets:
            _place(script, [shard_id], {})


def _policy(script: Any, words: list[str], options: dict[str, str]) -> None:
    """`policy settle_ms=1000`."""
    script.planning.policy = replace(script.planning.policy, **{name: int(value) for name, value in options.items()})
    script.out.append("ok")


def _progress(script: Any, words: list[str], options: dict[str, str]) -> None:
    """`progress shard-0 n4=1200`: the new replica on n4 lacks so many entries."""
    shard = script.state.shards[words[0]]
    known = {target.node_id: target.replica_id for target in shard.targets}
    lags = {known[name]: int(value) for name, value in options.items() if name in known}
    script.planning.memory.reported(words[0], Progress(lags, "copying" in words))
    script.planning.view(script)  # a look at it
    script.out.append("heard")


def _explain(script: Any, words: list[str], options: dict[str, str]) -> None:
    for name in words:
        reasons = [one.reason for one in script.state.decisions if one.subject == name and one.kind == "shard-move"]
        because = reasons[-1] if reasons and script.state.shards[name].moving else ""
        memory, policy = script.planning.memory, script.planning.policy
        found = explain(script.planning.view(script), policy, name, because, memory.progress(name))
        script.out.append(f"{name} is {found.health}")
        script.out += [f"  now: {sentence}" for sentence in found.now]
        script.out += [f"  next: {sentence}" for sentence in found.next]


def _spread(script: Any, words: list[str], options: dict[str, str]) -> None:
    """Replicas and leaderships of every node."""
    parts = []
    for node_id in script.state.nodes:
        shards = script.state.shards.values()
        held = sum(shard.member_on(node_id) is not None for shard in shards)
        leads = sum(shard.leader == node_id for shard in shards)
        parts.append(f"{node_id} {held}/{leads}")
    script.out.append(", ".join(parts))


def _until(script: Any, words: list[str], options: dict[str, str]) -> None:
    """`settle`: looks and carries out until nothing is left to do, a second each; says what it took."""
    counts, said = {"shard-move": 0, "shard-leader-wanted": 0}, len(script.out)
    for _ in range(200):
        before = script.state
        _plan(script, [], {})
        for decision in script.state.decisions[len(before.decisions) :]:
            counts[decision.kind] = counts.get(decision.kind, 0) + 1
        _carry(script, [], options)
        if script.state == before:
            break
        script.now_ms += 1_000
        for node in script.state.nodes.values():
            if node.status is NodeStatus.ALIVE:
                script.liveness.heard(node.node_id, script.now_ms)
    if "quiet" in words:
        del script.out[said:]
    script.out.append(f"{counts['shard-move']} moves, {counts['shard-leader-wanted']} hand-overs")


def _asks(make: Callable[[list[str]], commands.Command]) -> Callable[[Any, list[str], dict[str, str]], None]:
    def run(script: Any, words: list[str], options: dict[str, str]) -> None:
        script.apply(make(words))

    return run


PLANNER_COMMANDS: dict[str, Callable[[Any, list[str], dict[str, str]], None]] = {
    "nodes": _nodes,
    "shards": _shards,
    "place": _place,
    "plan": _plan,
    "carry": _carry,
    "settle": _until,
    "policy": _policy,
    "progress": _progress,
    "explain": _explain,
    "spread": _spread,
    "drain": _asks(lambda words: commands.DrainNode(words[0], True)),
    "undrain": _asks(lambda words: commands.DrainNode(words[0], False)),
    "remove": _asks(lambda words: commands.RemoveNode(words[0])),
    "factor": _asks(lambda words: commands.SetReplicationFactor(int(words[0]))),
    "rebalance": _asks(lambda words: commands.Rebalance()),
    "move": _asks(lambda words: commands.MoveReplica(words[0], words[1], words[2])),
    "cancel": _asks(lambda words: commands.CancelMove(words[0])),
}
