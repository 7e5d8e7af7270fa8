"""Runs a coordinator transcript: text commands in, what the core answered out.

A file is a list of blocks, each a few command lines, `----`, and what they answered. Lines that start with `#` are
comments. Time is a number that only `wait` moves. `voters=` names nodes; their replica ids are looked up in the
shard's members and targets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flotta_coordinator.core import codec, commands, liveness
from flotta_coordinator.core.deltas import Change, History
from flotta_coordinator.core.results import Applied
from flotta_coordinator.core.state import ClusterState, NodeStatus, Shard
from flotta_coordinator.core.transitions import apply
from planner_script import PLANNER_COMMANDS, Planning


class Script:
    """One coordinator core, driven by words."""

    def __init__(self) -> None:
        self.state = ClusterState()
        self.now_ms = 1_000_000
        self.liveness = liveness.Liveness(liveness.Timeouts(), self.now_ms)
        self.history = History(0)
        self.planning = Planning()
        self.out: list[str] = []

    def run(self, lines: list[str]) -> list[str]:
        self.out = []
        for line in lines:
            name, *words = line.split()
            plain = [word for word in words if "=" not in word]
            options = dict(word.split("=", 1) for word in words if "=" in word)
            _COMMANDS[name](self, plain, options)
        return self.out

    def apply(self, command: commands.Command) -> None:
        # Through the codec: what a follower decodes must be what the leader meant.
        (decoded,) = commands.decode_batch(commands.encode_batch([command]))
        result = apply(self.state, decoded, self.now_ms)
        if not isinstance(result, Applied):
            self.out.append(f"refused {result.code.value} [{result.field}] {result.message}")
            return
        before = self.state
        self.state = result.state
        reply = result.reply
        extra = "".join(
            f" {name}={getattr(reply, name)}" for name in ("node_num", "new_epoch", "taken") if getattr(reply, name)
        )
        self.out.append(
            f"ok v{reply.map_version}: {reply.message}{extra}{'' if result.changed else ' (nothing to log)'}"
        )
        for kind, ids in (("nodes", result.nodes), ("shards", result.shards), ("tables", result.tables)):
            if ids:
                self.out.append(f"  changed {kind}: {' '.join(ids)}")
        for decision in self.state.decisions[len(self.state.decisions) - result.decisions :]:
            self.out.append(f"  {decision.kind}: {decision.reason}")
        if result.visible:
            self.history.record(Change(self.state.map_version, result.nodes, result.shards, bool(result.tables)))
        if self.state.map_version < before.map_version:
            self.out.append("  BROKEN: the map version went back")

    def replica(self, shard: Shard, node_id: str) -> int:
        known = {replica.node_id: replica.replica_id for replica in (*shard.members, *shard.targets)}
        return known[node_id] if node_id in known else int(node_id)


def _found(script: Script, words: list[str], options: dict[str, str]) -> None:
    script.apply(commands.FoundCluster(words[0]))


def _register(script: Script, words: list[str], options: dict[str, str]) -> None:
    script.apply(commands.RegisterNode(words[0], words[1], options.get("zone", "")))


def _hello(script: Script, words: list[str], options: dict[str, str]) -> None:
    zone, cluster = options.get("zone", ""), options.get("cluster", "")
    script.apply(commands.HelloNode(words[0], words[1], zone, options["store"], cluster))


def _heartbeat(script: Script, words: list[str], options: dict[str, str]) -> None:
    for node_id in words:
        script.liveness.heard(node_id, script.now_ms)
        if liveness.is_news(script.state.nodes[node_id]):
            seen = commands.NodeObservation(node_id, NodeStatus.ALIVE, 0, 0)
            script.apply(commands.ObserveNodes((seen,)))
        else:
            script.out.append(f"{node_id}: no news")


def _wait(script: Script, words: list[str], options: dict[str, str]) -> None:
    """Time passes in steps of 500 ms, each with a check; nodes in `beating` send heartbeats all along."""
    beating = [node_id for node_id in options.get("beating", "").split(",") if node_id]
    for _ in range(int(words[0]) // 500):
        script.now_ms += 500
        for node_id in beating:
            script.liveness.heard(node_id, script.now_ms)
        due = script.liveness.verdicts(script.state.nodes.values(), script.now_ms)
        if due:
            script.apply(commands.ObserveNodes(due))
        script.planning.view(script)  # looked at, not acted on


def _pause(script: Script, words: list[str], options: dict[str, str]) -> None:
    """The coordinator itself stops for a while; then one check."""
    script.now_ms += int(words[0])
    due = script.liveness.verdicts(script.state.nodes.values(), script.now_ms)
    script.out.append(f"{len(due)} verdicts")


def _new_leader(script: Script, words: list[str], options: dict[str, str]) -> None:
    script.liveness = liveness.Liveness(liveness.Timeouts(), script.now_ms)
    script.planning.forget()
    script.out.append("every node has a full timeout again")


def _init(script: Script, words: list[str], options: dict[str, str]) -> None:
    script.apply(commands.InitShards(int(words[0]), int(words[1])))


def _status(script: Script, words: list[str], options: dict[str, str]) -> None:
    status = NodeStatus[words[1]] if words[1] in NodeStatus.__members__ else int(words[1])
    script.apply(commands.SetNodeStatus(words[0], status))


def _replicas(script: Script, words: list[str], options: dict[str, str]) -> None:
    script.apply(commands.SetShardReplicas(words[0], tuple(words[1:])))


def _leader(script: Script, words: list[str], options: dict[str, str]) -> None:
    script.apply(commands.SetShardLeader(words[0], int(options["epoch"]), words[1]))


def _report(script: Script, words: list[str], options: dict[str, str]) -> None:
    node_id, shard_id = words[:2]
    shard = script.state.shards[shard_id]
    voters = tuple(script.replica(shard, name) for name in options["voters"].split(","))
    leads = script.replica(shard, options.get("leader", node_id))
    report = commands.ShardReport(
        shard_id=shard_id,
        group_id=int(options.get("group", shard.group_id)),
        epoch=int(options["epoch"]),
        term=int(options["term"]),
        leader_replica=leads,
        voters=voters,
        conf_index=int(options["conf"]),
        moving="moving" in words,
    )
    script.apply(commands.ReportShards(node_id, (report,)))


def _report_leader(script: Script, words: list[str], options: dict[str, str]) -> None:
    script.apply(commands.ReportShardLeader(words[1], int(options["epoch"]), int(options.get("term", 0)), words[0]))


def _show(script: Script, words: list[str], options: dict[str, str]) -> None:
    """Records as the coordinator holds them."""
    for name in words:
        record = script.state.nodes.get(name) or script.state.shards.get(name)
        if record is None:
            script.out.append(f"{name}: unknown")
            continue
        plain = {key: value for key, value in codec.to_plain(record).items() if value not in ("", [], False)}
        script.out.append(f"{name}: " + " ".join(f"{key}={_short(value)}" for key, value in plain.items()))


def _short(value: object) -> object:
    if isinstance(value, list):
        return ",".join(f"{item['node_id']}#{item['replica_id'] & 0xFFFFFFFF}" for item in value)
    return value


def _counters(script: Script, words: list[str], options: dict[str, str]) -> None:
    script.out.append(" ".join(f"{key}={value}" for key, value in codec.to_plain(script.state.counters).items()))


def _since(script: Script, words: list[str], options: dict[str, str]) -> None:
    delta = script.history.since(int(words[0]))
    if delta is None:
        script.out.append("full state")
        return
    parts = [f"({delta.previous}, {delta.version}]", f"nodes {' '.join(delta.nodes) or '-'}"]
    parts.append(f"shards {' '.join(delta.shards) or '-'}")
    script.out.append("; ".join(parts) + ("; partitioning" if delta.partitioning else ""))


def _why(script: Script, words: list[str], options: dict[str, str]) -> None:
    script.out += [
        f"#{decision.number} v{decision.map_version} {decision.reason}"
        for decision in script.state.decisions
        if decision.subject in words
    ]


_COMMANDS: dict[str, Callable[[Any, list[str], dict[str, str]], None]] = {
    "found": _found,
    "register": _register,
    "hello": _hello,
    "heartbeat": _heartbeat,
    "wait": _wait,
    "pause": _pause,
    "new-leader": _new_leader,
    "init": _init,
    "status": _status,
    "replicas": _replicas,
    "leader": _leader,
    "report": _report,
    "report-leader": _report_leader,
    "show": _show,
    "counters": _counters,
    "since": _since,
    "why": _why,
    **PLANNER_COMMANDS,
}
