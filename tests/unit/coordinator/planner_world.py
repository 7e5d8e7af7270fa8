"""A cluster that does what the planner decides, as fast as the test lets it: real commands, real transitions, no I/O.

Every command of the planner is checked when it is applied, against rules that are written here once more and not taken
from the planner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from flotta_coordinator.core import commands
from flotta_coordinator.core.job_ends import ended
from flotta_coordinator.core.plan_memory import Memory
from flotta_coordinator.core.plan_view import Policy, View
from flotta_coordinator.core.planner import plan
from flotta_coordinator.core.results import Applied, Rejection
from flotta_coordinator.core.state import ClusterState, NodeStatus, Phase, Purpose, Shard
from flotta_coordinator.core.transitions import apply

POLICY = Policy(
    replace_after_ms=20_000,
    settle_ms=4_000,
    flap_window_ms=120_000,
    moves_max=4,
    moves_per_node_max=2,
    hand_overs_max=3,
    stall_ms=6_000,
    avoid_ms=60_000,
    hold_ms=30_000,
)


@dataclass
class World:
    policy: Policy = POLICY
    now_ms: int = 1_000_000
    state: ClusterState = field(default_factory=ClusterState)
    memory: Memory = field(default_factory=Memory)
    moves: list[commands.MoveShard] = field(default_factory=list)
    hand_overs: list[commands.HandOver] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.do(commands.FoundCluster("c1"))

    # --- what happens to the cluster ------------------------------------------------------------------------------

    def submit(self, command: commands.Command) -> Applied | Rejection:
        result = apply(self.state, command, self.now_ms)
        if isinstance(result, Applied):
            made = result.state.decisions[len(result.state.decisions) - result.decisions :]
            self.sentences += [decision.reason for decision in made]
            self.state = result.state
        return result

    def do(self, command: commands.Command) -> None:
        result = self.submit(command)
        assert isinstance(result, Applied), f"{command}: {result}"

    def join(self, node_id: str, zone: str = "") -> None:
        self.do(commands.HelloNode(node_id, f"{node_id}:1", zone, f"store-{node_id}", ""))
        self.observe(node_id, NodeStatus.ALIVE)

    def observe(self, node_id: str, status: NodeStatus) -> None:
        self.do(commands.ObserveNodes((commands.NodeObservation(node_id, status, 1, 1),)))

    def create(self, shards: int, replication_factor: int) -> None:
        self.do(commands.InitShards(shards, replication_factor))
        for shard_id in self.state.shards:
            self.report(shard_id)

    def report(
        self,
        shard_id: str,
        voters: Iterable[str] = (),
        leader: str = "",
        *,
        shard_count: int = 0,
        whole: bool = False,
        caught_up: int = 0,
        sealed: bool = False,
    ) -> None:
        """What the leader of the shard says: these voters now, and that it leads; that it has divided, or is whole;
        that it has caught up with those it takes over, or has them."""
        shard = self.state.shards[shard_id]
        known = {replica.node_id: replica.replica_id for replica in (*shard.members, *shard.targets)}
        names = list(voters) or [member.node_id for member in shard.members]
        moved = set(names) != {member.node_id for member in shard.members}
        leader = leader or next(name for name in (shard.leader, *names) if name in names)
        report = commands.ShardReport(
            shard_id=shard_id,
            group_id=shard.group_id,
            epoch=shard.epoch + (moved or shard_count not in (0, shard.shard_count)),
            term=shard.leader_term + 1,
            leader_replica=known[leader],
            voters=tuple(known[name] for name in names),
            conf_index=shard.conf_index + moved,
            moving=False,
            shard_count=shard_count or shard.shard_count,
            whole=whole,
            caught_up=caught_up,
            sealed=sealed,
        )
        self.do(commands.ReportShards(leader, (report,)))

    def alive(self, node_ids: Iterable[str]) -> list[str]:
        return [name for name in node_ids if self.state.nodes[name].status is NodeStatus.ALIVE]

    def living(self, node_ids: Iterable[str]) -> list[str]:
        return [name for name in node_ids if self.state.nodes[name].status is not NodeStatus.DEAD]

    def has_quorum(self, shard: Shard) -> bool:
        names = [member.node_id for member in shard.members]
        return len(self.alive(names)) > len(names) // 2

    def progress(self, succeeds: Callable[[str, str], bool] = lambda shard_id, node_id: True) -> None:
        """Shards do what their quorums can: elect, exchange voters, hand over."""
        for shard_id, shard in list(self.state.shards.items()):
            if not self.has_quorum(shard):
                continue
            members = [member.node_id for member in shard.members]
            if shard.leader not in self.alive(members):
                self.report(shard_id, leader=self.alive(members)[0])
            shard = self.state.shards[shard_id]
            coming = [target.node_id for target in shard.targets if target.node_id not in members]
            if shard.targets and all(name in self.alive(coming) and succeeds(shard_id, name) for name in coming):
                targets = [target.node_id for target in shard.targets]
                if len(self.alive(targets)) > len(targets) // 2:
                    stays = [name for name in (shard.leader, *self.alive(targets)) if name in self.alive(targets)]
                    self.report(shard_id, targets, leader=stays[0])
            shard = self.state.shards[shard_id]
            wanted = shard.target_leader
            if wanted in self.alive(member.node_id for member in shard.members) and succeeds(shard_id, wanted):
                self.report(shard_id, leader=wanted)

    # --- the planner ----------------------------------------------------------------------------------------------

    def view(self) -> View:
        return self.memory.view(self.state, self.policy, now_ms=self.now_ms, wall_ms=self.now_ms, ready=True)

    def round(self) -> tuple[commands.Command, ...]:
        """One look of the planner; all it decides is carried out, and checked."""
        view = self.view()
        decided = plan(view, self.policy)
        assert decided == plan(shuffled(view), self.policy), "the same view got another answer"
        ends = ended(self.state, view, self.policy, decided)
        before = self.in_flight()
        for command in decided:
            self._check(command)
            self.do(command)
            if isinstance(command, commands.MoveShard):
                self.moves.append(command)
            if isinstance(command, commands.HandOver):
                self.hand_overs.append(command)
            if isinstance(command, commands.GiveUp):
                shard = next(one for one in view.shards if one.shard_id == command.shard_id)
                self.memory.gave_up(shard, self.policy, self.now_ms)
        for end in ends:
            self.submit(end)
        self._check_limits(before)
        self.check_state()
        return decided

    def tick(self, ms: int = 1_000) -> None:
        self.now_ms += ms

    def run(self, rounds: int, **progress: Callable[[str, str], bool]) -> None:
        for _ in range(rounds):
            self.round()
            self.progress(**progress)
            self.tick()

    def converge(
        self, rounds_max: int, watch: Callable[[tuple[commands.Command, ...]], None] = lambda decided: None
    ) -> int:
        """Rounds until there is nothing more to do, and nothing in flight. `watch` sees what each of them decided."""
        quiet = 0
        for number in range(rounds_max):
            decided = self.round()
            watch(decided)
            self.progress()
            if decided or self.movable_in_flight():
                quiet = 0
                self.tick()
                continue
            # Time alone may still bring something on: nodes settle, holds and avoidances end.
            quiet += 1
            self.tick(10_000)
            if quiet > 10:
                return number
        raise AssertionError(f"still deciding after {rounds_max} rounds: {decided}")

    def in_flight(self) -> int:
        return sum(shard.moving for shard in self.state.shards.values())

    def movable_in_flight(self) -> int:
        return sum(shard.moving and self.has_quorum(shard) for shard in self.state.shards.values())

    # --- rules ----------------------------------------------------------------------------------------------------

    def _check(self, command: commands.Command) -> None:
        if isinstance(command, commands.MoveShard):
            self._check_move(command)
        elif isinstance(command, commands.HandOver):
            shard = self.state.shards[command.shard_id]
            assert self.alive([command.leader_node_id]), command
            assert not self.state.nodes[command.leader_node_id].draining, command
            assert shard.member_on(command.leader_node_id), command
            leads = self.will_lead()
            if not self.state.nodes[shard.leader].draining:
                assert leads[command.leader_node_id] < max(leads.values()), f"makes a new busiest leader: {command}"
        if not isinstance(command, commands.SetNotes):
            assert command.reason and command.shard_id in command.reason, "a decision without a reason"

    def _check_move(self, command: commands.MoveShard) -> None:
        shard = self.state.shards[command.shard_id]
        old, new = [member.node_id for member in shard.members], list(command.nodes)
        assert len(set(new)) == len(new), f"two replicas on one node: {command}"
        assert not shard.moving and shard.phase is Phase.ACTIVE, command
        assert len(self.living(old)) > len(old) // 2, f"a decision on a shard that lost its quorum: {command}"
        if len(self.alive(old)) > len(old) // 2:
            assert len(self.alive(new)) > len(new) // 2, f"below a quorum of healthy replicas: {command}"
        for node_id in set(new) - set(old):
            node = self.state.nodes[node_id]
            assert node.status is NodeStatus.ALIVE and node.placeable and not node.draining, command
        if command.purpose in (Purpose.ZONES, Purpose.BALANCE):
            assert len(self.alive([*old, *new])) == len(old) + len(new), f"not healthy: {command}"
            assert self.shared_zones(new) <= self.shared_zones(old), f"zones are worse: {command}"
            assert not shard.replicas_pinned, command
        if command.purpose is Purpose.ZONES:
            assert self.shared_zones(new) < self.shared_zones(old), command

    def _check_limits(self, before: int) -> None:
        assert self.in_flight() <= max(before, self.policy.moves_max), "too many moves in flight"

    def check_state(self) -> None:
        for shard in self.state.shards.values():
            for replicas in (shard.members, shard.targets):
                names = [replica.node_id for replica in replicas]
                assert len(set(names)) == len(names), f"two replicas of {shard.shard_id} on one node"

    def shared_zones(self, node_ids: Iterable[str]) -> int:
        zones = Counter(self.state.nodes[node_id].zone for node_id in node_ids)
        return sum(size * (size - 1) // 2 for size in zones.values())

    def held(self) -> Counter[str]:
        held = Counter(dict.fromkeys(self.state.nodes, 0))
        for shard in self.state.shards.values():
            held.update(member.node_id for member in shard.members)
        return held

    def leads(self) -> Counter[str]:
        leads = Counter(dict.fromkeys(self.state.nodes, 0))
        leads.update(shard.leader for shard in self.state.shards.values() if shard.leader)
        return leads

    def will_lead(self) -> Counter[str]:
        """Leaderships, once every wish has come true."""
        leads = Counter(dict.fromkeys(self.state.nodes, 0))
        for shard in self.state.shards.values():
            leader = shard.target_leader or shard.leader
            stays = not shard.targets or leader in {target.node_id for target in shard.targets}
            leads[leader] += stays
        return leads

    def takers(self) -> list[str]:
        nodes = self.state.nodes.values()
        return [node.node_id for node in nodes if node.status is NodeStatus.ALIVE and not node.draining]


def shuffled(view: View) -> View:
    """The same, with its nodes in another order."""
    return replace(view, nodes=dict(reversed(view.nodes.items())), notes=dict(reversed(view.notes.items())))
