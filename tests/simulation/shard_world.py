"""A cluster of storage nodes with a few shards each, clients, faults, and everything that must hold.

A run has two parts. While the nemesis works only safety is demanded. Then all faults stop, and within a bound the
cluster must come to rest: every shard leads, every replica holds the same state, every client has its answer, and
new writes go through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from flotta_consensus.api import Members, node_of, replica_id
from flotta_consensus.failpoints import CONSENSUS_FAILPOINTS
from flotta_consensus.sim.checkers import LivenessViolation, SafetyViolation
from flotta_consensus.sim.clock import US_PER_MS, Scheduler, stream
from flotta_consensus.sim.failpoints import SimFailpoints
from flotta_consensus.sim.history import History, Verdict
from flotta_consensus.sim.nemesis import Nemesis
from flotta_consensus.sim.network import Network
from flotta_consensus.sim.observed import ObservedMachine, Observer
from flotta_consensus.sim.process import SimProcess
from flotta_consensus.sim.profile import Profile
from flotta_consensus.sim.transcript import Transcript
from flotta_consensus.sim.world import World
from flotta_embedded.machine import Machine
from flotta_runtime.hashing import shard_index
from flotta_storage.core import keys as shard_keys
from flotta_storage.core.reads import shard_state
from flotta_storage.core.rows import header_of, value_of
from shard_admin import Admin, Configurations
from shard_checks import check_against_log, check_linearizable_keys, tag_of
from shard_clients import Client, draw_keys
from shard_model import ShardModel
from shard_service import ShardService
from shard_store import ShardStore, revision_base_of

SETTLE_MS = 60_000
QUIET_LOAD_MS = 1_500
STATE_FAILPOINTS = (
    "machine.create_created",
    "machine.create_before_flush",
    "machine.create_flushed",
    "machine.restore_created",
    "machine.restore_written",
    "machine.restore_before_flush",
    "machine.restore_flushed",
    "machine.restore_dropped",
    "machine.apply_before_write",
    "machine.apply_written",
    "engine.before_write",
    "engine.after_write",
    "engine.before_flush",
    "engine.in_flush",
    "engine.after_flush",
    "engine.before_drop",
    "engine.after_drop",
)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a seed came to. `violation` empty: everything held."""

    seed: int
    digest: str
    counts: dict[str, int]
    violation: str
    tail: list[str]
    described: str
    steps: int


class ShardWorld:
    """One run of one seed."""

    def __init__(self, profile: Profile, echo: Callable[[str], None] | None = None) -> None:
        self.profile = profile
        seed = profile.seed
        scheduler = Scheduler()
        transcript = Transcript(scheduler, echo=echo)
        numbers = list(range(1, profile.nodes + 1))
        network = Network(scheduler, transcript, stream(seed, "network"), numbers, profile.network)
        self.observer = Observer(scheduler)
        self.world = World(scheduler, transcript, network, self.observer, profile.raft, seed)
        self.history = History()
        self.configurations = Configurations()
        self.observer.on_applied = self.configurations.applied
        transcript.note("world", profile.describe())
        self.services: dict[int, ShardService] = {}
        self.processes: dict[int, SimProcess] = {}
        rng = stream(seed, "world")
        background_flush_one_in = rng.choice((0, 3, 20))
        for number in numbers:
            failpoints = SimFailpoints()
            store = ShardStore(
                number, profile.groups, self.observer, failpoints, rng.getrandbits(63), background_flush_one_in
            )
            process = self.processes[number] = SimProcess(self.world, number, store, failpoints)
            self.services[number] = ShardService(process)
        for number in numbers:
            self.world.nodes[number].start()
        self.births = self._place_births()
        self.admin = Admin(self.world, self.processes, self.services, self.configurations, stream(seed, "admin"), 1_000)
        self.nemesis = Nemesis(self.world, profile.faults, (*CONSENSUS_FAILPOINTS, *STATE_FAILPOINTS))
        self._schedule_changes()
        self.keys = draw_keys(profile.groups, rows=rng.choice((2, 4)), timed=1, chains=1)
        clients = rng.choice((3, 5, 7))
        think_mean_ms = rng.choice((30, 80, 160))
        self.clients = [
            Client(
                number,
                self.world,
                self.services,
                self.history,
                self.keys,
                stream(seed, f"client/{number}"),
                think_mean_ms,
            )
            for number in range(1, clients + 1)
        ]
        scheduler.every(1_000 * US_PER_MS, self.compare_logs)

    def _place_births(self) -> dict[int, tuple[int, ...]]:
        """Voters of every group at its creation: any size that the cluster can hold."""
        rng = stream(self.profile.seed, "births")
        births: dict[int, tuple[int, ...]] = {}
        sequence = 0
        for group in range(1, self.profile.groups + 1):
            size = min(rng.choice((1, 3, 3, 3, 3, 5)), self.profile.nodes)
            voters = []
            for node in sorted(rng.sample(sorted(self.world.nodes), size)):
                sequence += 1
                voters.append(replica_id(node, sequence))
            births[group] = tuple(voters)
            self.configurations.born(group, voters)
            # No node hears of a new shard at the same moment as another, and some are down just then.
            for voter in voters:
                self.world.scheduler.after(rng.randrange(800 * US_PER_MS), partial(self._bear, group, voter, voters))
        return births

    def _bear(self, group: int, voter: int, voters: list[int]) -> None:
        """A voter that the others have removed before its node heard of it is never made."""
        if voter in self.configurations.members(group):
            self.processes[node_of(voter)].place(group, voter, voters)

    def _schedule_changes(self) -> None:
        faults, nemesis, admin = self.profile.faults, self.nemesis, self.admin
        groups = sorted(self.births)
        rng = stream(self.profile.seed, "changes")
        if faults.members_every_ms:
            wild = rng.random() < 0.3
            nemesis.repeat("members", faults.members_every_ms, lambda: admin.retarget(rng.choice(groups)))
            nemesis.repeat("steps", 150, lambda: admin.step(rng.choice(groups)))
            if wild:
                nemesis.repeat("wild", faults.members_every_ms * 2, lambda: admin.wild_change(rng.choice(groups)))
        if faults.transfer_every_ms:
            nemesis.repeat("transfer", faults.transfer_every_ms, lambda: admin.transfer(rng.choice(groups)))
        self.world.scheduler.every(300 * US_PER_MS, admin.sweep)

    # -- the run ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises SafetyViolation, LivenessViolation, or whatever the code under test raised."""
        scheduler = self.world.scheduler
        scheduler.run_until(self.profile.run_ms * US_PER_MS)
        self.nemesis.stop()
        self.admin.abandon()
        self.settle()
        before = self.acknowledged()
        until_us = scheduler.now_us + SETTLE_MS * US_PER_MS
        scheduler.run_until(scheduler.now_us + QUIET_LOAD_MS * US_PER_MS)
        # A client may still be waiting for the answer to what it asked of a dead node.
        while self.acknowledged() < before + len(self.clients):
            if scheduler.now_us >= until_us:
                raise LivenessViolation("next to nothing was acknowledged after the faults had stopped")
            scheduler.run_until(scheduler.now_us + 50 * US_PER_MS)
        for client in self.clients:
            client.stop()
        self.settle(idle=True)
        self.check()

    def acknowledged(self) -> int:
        return sum(1 for _ in self.history.with_verdict(Verdict.OK))

    def settle(self, *, idle: bool = False) -> None:
        """Run until the cluster is at rest, or raise with what is not."""
        scheduler = self.world.scheduler
        until_us = scheduler.now_us + SETTLE_MS * US_PER_MS
        trouble = "never looked"
        while scheduler.now_us < until_us:
            scheduler.run_until(scheduler.now_us + 50 * US_PER_MS)
            trouble = self.unsettled(idle)
            if not trouble:
                return
        self.tell_statuses()
        raise LivenessViolation(f"not at rest {SETTLE_MS} ms after the faults stopped: {trouble}")

    def tell_statuses(self) -> None:
        """For the transcript of a failure: what every replica thinks."""
        for number in sorted(self.world.nodes):
            node = self.world.nodes[number]
            for status in node.host.status() if node.alive else ():
                found = node.driver.machine(status.group)
                node.note(
                    f"group {status.group} replica {status.replica:#x} role {status.role} term {status.term} "
                    f"vote {status.vote:#x} leader {status.leader:#x} committed {status.committed} "
                    f"delivered {status.delivered} log {status.first_index}..{status.last_index} "
                    f"applied {found.applied_index()} members {found.members()} "
                    f"installing {node.driver.installing(status.group)} matched {sorted(status.matched.items())} "
                    f"snapshots {sorted(status.pending_snapshot.items())} waiting {node.driver.waiting()}"
                )

    def unsettled(self, idle: bool) -> str:
        """What is not at rest yet; empty if everything is."""
        for group in sorted(self.births):
            members = self.configurations.members(group)
            if members.outgoing:
                return f"group {group} is in a joint configuration: {members}"
            if self.admin.leader_of(group) is None:
                return f"group {group} has no leader"
            indices = set()
            for replica in (*members.voters, *members.learners):
                node = self.processes[node_of(replica)]
                if not node.alive or node.intents.get(group, (0,))[0] != replica or group not in node.driver.groups():
                    return f"group {group}: {node.name} does not hold replica {replica:#x}"
                if node.driver.machine(group).members() != members:
                    return f"group {group}: {node.name} has members {node.driver.machine(group).members()}"
                indices.add(node.driver.machine(group).applied_index())
            if idle and len(indices) != 1:
                return f"group {group}: applied indices {sorted(indices)}"
            for node in self.processes.values():
                replica = node.intents.get(group, (0,))[0]
                if replica in self.configurations.ever[group] and replica not in members:
                    return f"group {group}: {node.name} still holds the removed replica {replica:#x}"
        if idle and not all(client.idle for client in self.clients):
            return "a client still waits"
        waiting = {node.name: node.driver.waiting() for node in self.processes.values()}
        return f"requests without an answer: {waiting}" if idle and any(waiting.values()) else ""

    # -- the checks ---------------------------------------------------------------------------------------------

    def compare_logs(self) -> None:
        """Log matching, over every log that can be read now."""
        for number in sorted(self.world.nodes):
            node = self.world.nodes[number]
            if not node.alive:
                continue
            for status in node.host.status():
                entries = node.host.log_entries(status.group, status.first_index, status.last_index + 1)
                self.observer.logs.saw_log(number, status.group, entries)

    def check(self) -> None:
        """At the end: histories against logs and registers, states against the model."""
        self.compare_logs()
        self.history.close()
        transcript = self.world.transcript
        for group in sorted(self.births):
            operations = [operation for operation in self.history if operation.group == group]
            model = ShardModel(
                Members(tuple(sorted(self.births[group]))), self._owner_of(group), revision_base_of(group)
            )
            placed = check_against_log(self.observer.log(group), model, operations)
            unknown = [op for op in operations if op.verdict is Verdict.UNKNOWN and op.kind not in ("get", "chain")]
            transcript.count("unknown_outcomes", len(unknown))
            transcript.count("unknown_that_happened", sum(tag_of(op) in placed for op in unknown))
            keys, undecided = check_linearizable_keys(
                operations, placed, self.keys.all_timed(), revision_base_of(group)
            )
            transcript.count("keys_checked", keys)
            transcript.count("keys_undecided", undecided)
            self._check_states(group, model)
            transcript.note("check", f"group {group}: {len(operations)} operations, log to {model.index}")
        transcript.count("promises_compared", self.observer.promises.compared)
        transcript.count("states_compared", self.observer.states.compared)
        transcript.count("log_entries_compared", self.observer.logs.compared)

    def _owner_of(self, group: int) -> Callable[[bytes], bool]:
        groups = self.profile.groups
        return lambda key: shard_index(key, groups) == group - 1

    def _check_states(self, group: int, model: ShardModel) -> None:
        """Every replica of the group holds what the model holds."""
        members = self.configurations.members(group)
        expected = {key: (row.value, row.version) for key, row in model.living().items()}
        for replica in (*members.voters, *members.learners):
            observed = self.processes[node_of(replica)].driver.machine(group)
            if not isinstance(observed, ObservedMachine) or not isinstance(observed.inner, Machine):
                raise TypeError("every machine of the simulation is an observed one")
            machine = observed.inner
            state = shard_state(machine.view())
            told = f"group {group} replica {replica:#x} at {machine.applied_index()}"
            if machine.applied_index() != model.index or state is None or state.epoch != model.epoch:
                raise SafetyViolation(f"{told}: state {state}, the log ends at {model.index} with epoch {model.epoch}")
            found = {
                key[1:]: (value_of(row), header_of(row).version)
                for key, row in machine.view().scan(shard_keys.DATA_PREFIX, shard_keys.DATA_END)
                if not header_of(row).expired(machine.group_time_ms())
            }
            if found != expected:
                raise SafetyViolation(f"{told}: rows {found}, by the log {expected}")


def run_seed(profile: Profile, echo: Callable[[str], None] | None = None) -> RunResult:
    """Run one seed to its end, or to the step that broke something."""
    world = ShardWorld(profile, echo)
    violation = ""
    try:
        world.run()
    except (SafetyViolation, LivenessViolation) as broken:
        violation = f"{type(broken).__name__}: {broken}"
    except BaseException as crashed:
        # A panic of the native half is no Exception; it is a finding all the same.
        if isinstance(crashed, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        violation = f"{type(crashed).__name__} out of the code under test: {crashed}"
        world.world.transcript.note("world", violation)
        if echo is not None:
            raise
    transcript = world.world.transcript
    if violation:
        transcript.note("world", violation)
    return RunResult(
        profile.seed,
        transcript.digest(),
        dict(sorted(transcript.counts.items())),
        violation,
        transcript.tail(),
        profile.describe(),
        world.world.scheduler.steps,
    )
