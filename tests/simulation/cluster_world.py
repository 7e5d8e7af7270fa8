"""A whole cluster in one thread from one seed: coordinators, storage nodes, gateways and clients, all production code
on virtual loops, over the simulated network, disks and clocks.

A run has two parts. While the nemesis and the operators work only safety is demanded. Then all faults stop, and within
a bound every shard must be whole again, every view of the map the coordinators' own, and every client answered.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog
from cluster_checks import MapRules, ShardRules, Views
from cluster_clients import Client, Keys, Outsider
from cluster_coordinator import CoordinatorNode
from cluster_gateway import GatewayProcess
from cluster_history import Effects, check_keys, check_order, check_outcomes, replay
from cluster_node import ClusterNode
from cluster_operator import Operator
from cluster_profile import ClusterProfile
from cluster_reshaped import check_versions
from cluster_rest import unsettled
from cluster_rpc import TOKEN
from cluster_scans import ScanClient
from cluster_storage import StorageProcess
from cluster_wires import Wires
from flotta_consensus.api import Members
from flotta_consensus.failpoints import CONSENSUS_FAILPOINTS
from flotta_consensus.sim.checkers import LivenessViolation, SafetyViolation
from flotta_consensus.sim.clock import US_PER_MS, Scheduler, stream
from flotta_consensus.sim.history import History, Operation, Verdict
from flotta_consensus.sim.loop import SimLoop
from flotta_consensus.sim.nemesis import Nemesis
from flotta_consensus.sim.network import Network
from flotta_consensus.sim.observed import Observer
from flotta_consensus.sim.transcript import Transcript
from flotta_consensus.sim.world import World
from flotta_coordinator.core.state import ClusterState, shard_name
from flotta_coordinator.settings import CoordinatorSettings
from flotta_embedded.dedup import ROWS as DEDUP_ROWS
from flotta_embedded.dedup import split_row_key
from flotta_embedded.keys import prefix_end
from flotta_gateway.settings import GatewaySettings
from flotta_runtime.hashing import shard_index
from flotta_storage.core import keys as shard_keys
from flotta_storage.core.reads import shard_state
from flotta_storage.core.rows import header_of, value_of
from flotta_storage.settings import StorageSettings
from shard_model import ShardModel
from shard_world import STATE_FAILPOINTS, RunResult

SETTLE_MS = 120_000
QUIET_LOAD_MS = 1_000
CHECK_MS = 50
DEDUP_ROWS_END = prefix_end(DEDUP_ROWS)
FIRST_STORAGE, FIRST_GATEWAY, FIRST_OUTSIDER = 11, 31, 1_001
COORDINATORS = 3


class Cluster:
    """One run of one seed."""

    def __init__(self, profile: ClusterProfile, echo: Callable[[str], None] | None = None) -> None:
        self.profile = profile
        seed = profile.seed
        scheduler = Scheduler()
        transcript = Transcript(scheduler, echo=echo)
        storages = range(FIRST_STORAGE, FIRST_STORAGE + profile.nodes + profile.spares)
        gateways = range(FIRST_GATEWAY, FIRST_GATEWAY + profile.gateways)
        numbers = [*range(1, COORDINATORS + 1), *storages, *gateways]
        network = Network(scheduler, transcript, stream(seed, "cluster/weather"), numbers, profile.network)
        self.observer = Observer(scheduler)
        self.coordination = Observer(scheduler)
        self.world = World(scheduler, transcript, network, self.observer, profile.raft, seed)
        self.wires = Wires(self.world)
        self.history = History()
        self.dead_loops: list[SimLoop] = []
        self.failure: BaseException | None = None
        transcript.note("world", profile.describe())
        self._peers = tuple(
            (f"coordinator-{number}", f"coordinator-{number}:1") for number in range(1, COORDINATORS + 1)
        )
        self.coordinator_addresses = tuple(address for _, address in self._peers)
        self.coordinators = [CoordinatorNode(self, n, self._coordinator(n)) for n in range(1, COORDINATORS + 1)]
        self.storages = [StorageProcess(self, n, self._storage(n)) for n in storages]
        self.gateways = [GatewayProcess(self, n, f"gateway-{n}", self._gateway()) for n in gateways]
        self.map_rules, self.shard_rules, self.views = MapRules(self), ShardRules(self), Views(self)
        self.coordination.on_applied = self.map_rules.applied
        self.observer.on_applied = self.shard_rules.applied
        for node in (*self.coordinators, *self.gateways, *self.storages[: profile.nodes]):
            node.start()
        spares = self.storages[profile.nodes :]
        for spare in spares:  # machines that nobody has bought yet
            del self.world.nodes[spare.number]
        self.nemesis = Nemesis(self.world, profile.faults, (*CONSENSUS_FAILPOINTS, *STATE_FAILPOINTS))
        outsider = Outsider(self, FIRST_OUTSIDER)
        self.keys = Keys.draw(profile.shards, 2)
        self.operator = Operator(self, Outsider(self, FIRST_OUTSIDER - 1), spares)
        self.clients = [Client(self, outsider, number, self.keys) for number in range(1, profile.clients + 1)]
        self.scans = ScanClient(self, outsider, profile.clients + 1, self.keys)
        scheduler.every(100 * US_PER_MS, self.views.look)

    # -- what the parts are given ---------------------------------------------------------------------------------

    def _coordinator(self, number: int) -> CoordinatorSettings:
        return CoordinatorSettings(
            node_id=f"coordinator-{number}",
            peers=self._peers,
            internal_token=TOKEN,
            data_dir=Path("/nonexistent"),
            suspect_after_ms=1_500,
            dead_after_ms=4_000,
            liveness_check_ms=250,
            watch_heartbeat_ms=2_000,
            commit_timeout_ms=3_000,
            plan_every_ms=500,
            replace_after_ms=3_000,
            settle_ms=400,
            flap_window_ms=10_000,
            move_stall_ms=8_000,
            move_avoid_ms=10_000,
            move_hold_ms=4_000,
        )

    def _storage(self, number: int) -> StorageSettings:
        return StorageSettings(
            node_id=f"node-{number}",
            coordinators=self.coordinator_addresses,
            internal_token=TOKEN,
            data_dir=Path("/nonexistent"),
            heartbeat_ms=400,
            report_ms=2_000,
            map_poll_ms=800,
            map_idle_ms=5_000,
            duties_ms=150,
            catch_up_entries=self.profile.catch_up_entries,
        )

    def _gateway(self) -> GatewaySettings:
        return GatewaySettings(
            coordinators=self.coordinator_addresses, internal_token=TOKEN, attempt_ms=800, map_idle_ms=3_000
        )

    def spawn(self, outsider: Outsider, work: Coroutine[Any, Any, None]) -> None:
        """Run something outside of the cluster. What it raises ends the run."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                self.failure = self.failure or error

        if outsider.loop is None:
            raise RuntimeError("an outsider has a loop")
        outsider.loop.create_task(guarded())

    def gone_numbers(self) -> set[int]:
        """The Raft numbers of machines that never come back."""
        return {node.node_num for node in self.storages if node.gone}

    def leader(self) -> CoordinatorNode | None:
        """The coordinator that leads and is ready to."""
        return next((node for node in self.coordinators if node.alive and not node.paused and node.leader), None)

    # -- the run ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises SafetyViolation, LivenessViolation, or whatever the code under test raised."""
        scheduler = self.world.scheduler
        self._pass(self.profile.run_ms)
        self.operator.stop()
        self.nemesis.stop()
        for node in (*self.coordinators, *self.storages, *self.gateways):
            node.wall_offset_ms = node.rng.randint(-100, 100)  # somebody sets the clocks right
        self.settle(idle=False)
        before, until_us = self._acknowledged(), scheduler.now_us + SETTLE_MS * US_PER_MS
        self._pass(QUIET_LOAD_MS)
        while self._acknowledged() < before + len(self.clients):
            if scheduler.now_us >= until_us:
                raise LivenessViolation("next to nothing was acknowledged after the faults had stopped")
            self._pass(CHECK_MS)
        for client in (*self.clients, self.scans):
            client.stop()
        self.settle(idle=True)
        self.check()

    def _pass(self, ms: int) -> None:
        scheduler = self.world.scheduler
        until_us = scheduler.now_us + ms * US_PER_MS
        while scheduler.now_us < until_us:
            scheduler.run_until(min(until_us, scheduler.now_us + CHECK_MS * US_PER_MS))
            if self.failure is not None:
                raise self.failure

    def _acknowledged(self) -> int:
        return sum(1 for _ in self.history.with_verdict(Verdict.OK))

    def settle(self, *, idle: bool) -> None:
        """Run until the cluster is whole and at rest, or raise with what is not."""
        scheduler = self.world.scheduler
        until_us = scheduler.now_us + SETTLE_MS * US_PER_MS
        trouble = "never looked"
        while scheduler.now_us < until_us:
            self._pass(CHECK_MS * 2)
            trouble = unsettled(self, idle=idle)
            if not trouble:
                self.world.transcript.note("world", "whole and at rest")
                return
        raise LivenessViolation(f"not whole {SETTLE_MS} ms after the faults stopped: {trouble}")

    # -- the checks at the end ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Histories against logs and registers, states against the model."""
        self.history.close()
        transcript, state = self.world.transcript, self.map_rules.newest
        timed = frozenset(self.keys.timed)
        if self.profile.any_count:
            transcript.count("keys_checked", check_versions(self.history, timed))
            transcript.count("shards_merged", sum(len(shard.absorbed) for shard in state.shards.values()))
        else:
            self._check_logs(state, timed)
        transcript.count("states_compared", self.observer.states.compared + self.coordination.states.compared)
        transcript.count("membership_changes", self.shard_rules.changes)
        transcript.count("moves_planned", self.map_rules.decided)
        transcript.count("views_looked_at", self.views.looks)
        transcript.count("decisions", len(state.decisions))

    def _check_logs(self, state: ClusterState, timed: frozenset[bytes]) -> None:
        """Of shards that at most divide."""
        transcript = self.world.transcript
        for index in range(self.profile.shards):
            shard = state.shards[shard_name(index)]
            operations = [operation for operation in self.history if operation.group == index]
            birth = Members(tuple(sorted(replica.replica_id for replica in shard.birth)))
            model = ShardModel(birth, self._owner_of(index), shard.revision_base)
            model.residue = (index, self.profile.shards)
            effects = self._replayed(state, shard.group_id, model, operations)
            check_outcomes(shard.group_id, operations, effects)
            for residue in (model.residue[0], *model.children):
                count = model.residue[1]
                check_order([one for one in operations if shard_index(one.key, count) == residue])
            keys, undecided = check_keys(operations, effects, timed)
            transcript.count("keys_checked", keys)
            transcript.count("keys_undecided", undecided)
            transcript.count("unknown_outcomes", sum(one.verdict is Verdict.UNKNOWN for one in operations))
            self._check_states(shard.group_id, model)
            for residue, child in model.children.items():
                self._check_states(state.shards[shard_name(residue)].group_id, child)
                transcript.count("children_checked")
            transcript.note("check", f"{shard.shard_id}: {len(operations)} operations, log to {model.index}")

    def _replayed(self, state: ClusterState, group: int, model: ShardModel, operations: list[Operation]) -> Effects:
        """What came of the log of a shard, and of the logs of its children. What was read at a later revision than
        that of the division was read where the key went."""
        everything = self.observer.log(group)
        scout = ShardModel(model.members, model.owns, model.revision_base)
        scout.residue = model.residue
        for entry in everything.in_order(2):
            scout.apply(entry)

        def home(operation: Operation) -> int:
            later = scout.divided_at and operation.revision > scout.divided_at
            return shard_index(operation.key, scout.residue[1]) if later else scout.residue[0]

        effects = replay(everything, model, [one for one in operations if home(one) == model.residue[0]])
        for residue, child in model.children.items():
            log = self.observer.log(state.shards[shard_name(residue)].group_id)
            theirs = replay(log, child, [one for one in operations if home(one) == residue])
            for tag, found in theirs.items():
                effects[tag].extend(found)
        return effects

    def _owner_of(self, index: int) -> Callable[[bytes], bool]:
        return lambda key: shard_index(key, self.profile.shards) == index

    def _check_states(self, group: int, model: ShardModel) -> None:
        """Every replica of the group holds what the model holds."""
        expected = {key: (row.value, row.version) for key, row in model.living().items()}
        for node in self.storages:
            replica = node.table.of_group(group) if node.alive else None
            if replica is None:
                continue
            machine, state = replica.machine, replica.state()
            told = f"group {group} on {node.name} at {machine.applied_index()}"
            held = shard_state(machine.view())
            if machine.applied_index() != model.index or state is None or held != state or state.epoch != model.epoch:
                raise SafetyViolation(f"{told}: {state}, the log ends at {model.index} with epoch {model.epoch}")
            found = {
                key[1:]: (value_of(row), header_of(row).version)
                for key, row in machine.view().scan(shard_keys.DATA_PREFIX, shard_keys.DATA_END)
                if not header_of(row).expired(machine.group_time_ms())
            }
            if found != expected:
                raise SafetyViolation(f"{told}: rows {found}, by the log {expected}")
            known = {split_row_key(row)[1:] for row, _ in machine.view().scan(DEDUP_ROWS, DEDUP_ROWS_END)}
            forgotten = model.remembered() - known
            if forgotten:
                raise SafetyViolation(f"{told}: requests {sorted(forgotten)[:4]} are forgotten")

    def bury(self) -> None:
        """Nothing of this run may run again, when the collector finds it."""
        alive = [node.loop for node in self.world.nodes.values() if isinstance(node, ClusterNode) and node.loop]
        outside = [self.operator.outsider.loop, *(client.outsider.loop for client in self.clients)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines whose process died before they began
            for loop in (*self.dead_loops, *alive, *outside):
                if loop is not None:
                    loop.kill()
                    loop.bury()


def _unheard(logger: Any, name: str, event: Any) -> Any:
    """What processes log is not what a run is judged by."""
    raise structlog.DropEvent


def run_cluster(profile: ClusterProfile, echo: Callable[[str], None] | None = None) -> RunResult:
    """Run one seed to its end, or to the step that broke something."""
    before = structlog.get_config()
    structlog.configure(processors=[_unheard], wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    cluster = Cluster(profile, echo)
    transcript, violation = cluster.world.transcript, ""
    try:
        cluster.run()
    except (SafetyViolation, LivenessViolation) as broken:
        violation = f"{type(broken).__name__}: {broken}"
    except BaseException as crashed:
        # A panic of the native half is no Exception; it is a finding all the same.
        if isinstance(crashed, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        violation = f"{type(crashed).__name__} out of the code under test: {crashed}"
        if echo is not None:
            raise
    finally:
        cluster.bury()
        structlog.configure(**before)
    if violation:
        transcript.note("world", violation)
    return RunResult(
        profile.seed,
        transcript.digest(),
        dict(sorted(transcript.counts.items())),
        violation,
        transcript.tail(),
        profile.describe(),
        cluster.world.scheduler.steps,
    )
