"""One simulated node: the disk and files that survive, and the process that does not.

The process is the production `Driver` over a manual `RaftHost`; this is its front end, in place of asyncio. A turn
runs some time after something arrived, as an event loop would; a pause holds everything back, a crash drops all
that is in memory, and a power cut also what the disk had not synced.

Invariants: nothing of a dead incarnation runs again; a process dies only by an injected fault, and any other
exception out of the code under test ends the simulation as a violation.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial

import flotta_native

from flotta_consensus.core.compaction import LogPolicy
from flotta_consensus.core.driver import Driver, DriverLimits
from flotta_consensus.core.effects import Effects
from flotta_consensus.core.host import HostCodes
from flotta_consensus.sim.checkers import SafetyViolation
from flotta_consensus.sim.clock import US_PER_MS, stream
from flotta_consensus.sim.failpoints import ProcessKilled, SimFailpoints
from flotta_consensus.sim.files import SimFiles
from flotta_consensus.sim.observed import Observer
from flotta_consensus.sim.shipping import SnapshotShipping
from flotta_consensus.sim.world import Durable, World

INBOX_MAX = 512
TURNS_IN_A_ROW_MAX = 4
TICKS_CAUGHT_UP_MAX = 2
"""A process that stalled must not let its timers fire all at once (it would start elections for nothing)."""


class SimNode(ABC):
    """A node by its number on the network. What it holds, and what its process does first, is a subclass's."""

    def __init__(
        self,
        world: World,
        number: int,
        store: Durable,
        failpoints: SimFailpoints,
        *,
        name: str = "",
        observer: Observer | None = None,
    ) -> None:
        self.world = world
        self.number = number
        self.name = name or f"node {number}"
        self.observer = observer or world.observer
        self.rng = stream(world.seed, f"node/{number}")
        self.store = store
        self.disk = flotta_native.SimDisk(self.rng.getrandbits(63))
        self.files = SimFiles(random.Random(self.rng.getrandbits(63)))
        self.failpoints = failpoints
        self.wall_offset_ms = self.rng.randint(-200, 200)
        self.incarnation = 0
        self.paused = False
        self.turn_delay_us = 0  # a slow disk: every turn takes this much longer
        self.disk_faulty = False
        self.on_effects: Callable[[Effects], None] | None = None
        self.on_crash: Callable[[SimNode], None] | None = None
        self.shipping = SnapshotShipping(self)
        self._host: flotta_native.RaftHost | None = None
        self._driver: Driver | None = None
        self._inbox: deque[Callable[[], None]] = deque()
        self._turn_scheduled = False
        self._delays = False  # the host keeps things back
        self._due_us: int | None = None  # the last time that was set for it to let them go
        self._at_rest = False  # nothing happened since the host last did all it had to do
        drift = 1 + (self.rng.random() - 0.5) * 0.04
        period_us = int(world.raft.tick_ms * US_PER_MS * drift)
        self._ticks_missed = 0
        world.nodes[number] = self
        world.scheduler.every(period_us, self._tick, first_us=self.rng.randrange(1, period_us))

    # -- what it is now -----------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return self._host is not None

    @property
    def driver(self) -> Driver:
        if self._driver is None:
            raise RuntimeError(f"{self.name} is dead")
        return self._driver

    @property
    def host(self) -> flotta_native.RaftHost:
        if self._host is None:
            raise RuntimeError(f"{self.name} is dead")
        return self._host

    def leads(self) -> bool:
        """Does any replica here believe to lead?"""
        driver = self._driver
        return driver is not None and any((role := driver.role(group)) and role.is_leader for group in driver.groups())

    def arm_native(self, name: str, hits: int) -> bool:
        """Let the native host die at a failpoint; False while there is no host."""
        if self._host is not None:
            self._host.arm_failpoint(name, hits)
        return self._host is not None

    @property
    def now_ms(self) -> int:
        return self.world.scheduler.now_ms

    def wall_ms(self) -> int:
        """What this node's wall clock says; it may jump."""
        return self.world.wall_ms + self.wall_offset_ms

    def note(self, what: str) -> None:
        self.world.transcript.note(self.name, what)

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open what the disk holds, and finish what `intents` asks for. May die of an armed failpoint."""
        if self.alive:
            return
        self.incarnation += 1
        self.world.transcript.count("starts")
        if self._guard(self._open):
            self.note(f"started, incarnation {self.incarnation}, {self.holdings()}")
            self.wake()

    def holdings(self) -> str:
        """What it has at its start, for the transcript."""
        return f"groups {self.driver.groups()}"

    @abstractmethod
    def _open(self) -> None:
        """What the process does first. May die of an armed failpoint."""

    @abstractmethod
    def replica_of(self, group: int) -> int:
        """The replica of a group that this node has."""

    @abstractmethod
    def peer(self, node_num: int) -> SimNode | None:
        """The node that Raft frames for a number are sent to; None where nobody is known under it."""

    def open_host(self, node_num: int, applied: dict[int, int], *, apply_delay_ms: int = 0) -> Driver:
        """Open the log, given the applied indexes of the state machines by group."""
        raft = self.world.raft
        self._delays = apply_delay_ms > 0
        try:
            self._host = flotta_native.RaftHost(
                node_num,
                "raft",
                applied=applied,
                mode="manual",
                disk=self.disk,
                seed=self.rng.getrandbits(63),
                tick_ms=raft.tick_ms,
                election_ticks=raft.election_ticks,
                heartbeat_ticks=raft.heartbeat_ticks,
                segment_bytes=raft.segment_bytes,
                message_bytes_max=raft.message_bytes_max,
                inflight_messages_max=raft.inflight_messages_max,
                snapshot_timeout_ticks=raft.snapshot_timeout_ticks,
                apply_delay_ms=apply_delay_ms,
                in_step=raft.in_step,
            )
        except flotta_native.LogCorruption as damage:
            raise SafetyViolation(f"{self.name} refuses its own log after a crash: {damage}") from damage
        policy = LogPolicy(
            bytes_max=1 << 20, entries_max=raft.compact_entries, reserve_entries=raft.compact_entries // 4,
            kept_bytes_max=2 << 10,
        )  # fmt: skip
        self._driver = Driver(
            self._host,
            HostCodes.of(flotta_native),
            send=self._send,
            limits=DriverLimits(
                waiters_max=500, reads_max=500, apply_entries_max=self.rng.choice((1, 7, 4096)), log=policy
            ),
            failpoints=self.failpoints,
        )
        for status in self._host.status():
            self.observer.promises.kept(status.group, status.replica, status.term, status.vote)
        return self._driver

    def crash(self, *, power: bool, why: str) -> None:
        """End the process; with a power cut, what was not synced is at the disk's mercy. A process that died while
        it started is taken down too."""
        if self._host is not None and self._at_rest:
            for status in self._host.status():
                self.observer.promises.given(status.group, status.replica, status.term, status.vote)
        self._at_rest = False
        self._host = None
        self._driver = None
        self._inbox.clear()
        self.dropped()
        self.failpoints.disarm()
        self.shipping.crashed()
        self._turn_scheduled = self.paused = False
        self._due_us = None
        self._ticks_missed = 0
        self.turn_delay_us = 0
        lost = self.store.crash()
        counts = self.world.transcript
        counts.count("crashes")
        counts.count("states_reverted", lost)
        told = ""
        if power:
            counts.count("power_cuts")
            self.files.crash()
            fates = self.disk.crash()
            for fate in ("lost", "torn", "kept"):
                counts.count(f"writes_{fate}", fates.get(fate, 0))
            told = f", unsynced {sorted(fates.items())}"
        self.note(f"{'power cut' if power else 'killed'}: {why}{told}")
        if self.on_crash is not None:
            self.on_crash(self)

    @abstractmethod
    def dropped(self) -> None:
        """Everything in memory is gone: a subclass lets go of its own."""

    def pause(self) -> None:
        if self.alive and not self.paused:
            self.paused = True
            self.world.transcript.count("pauses")
            self.note("paused")

    def resume(self) -> None:
        if not self.paused:
            return
        self.paused = False
        self.note(f"resumed, {len(self._inbox)} waiting, {self._ticks_missed} ticks missed")
        ticks = min(self._ticks_missed, TICKS_CAUGHT_UP_MAX)
        self._ticks_missed = 0
        waiting, self._inbox = self._inbox, deque()
        # What waited in sockets is read either before or after the timers of the loop fire.
        if self.rng.random() < 0.5:
            self._run_ticks(ticks)
        for arrived in waiting:
            self.run(arrived)
        self._run_ticks(ticks)

    def fill_disk(self, log_bytes: int, state_bytes: int) -> None:
        self.disk_faulty = True
        self.files.full = self.rng.random() < 0.5
        self.disk.fill_up_after(log_bytes)
        self.store.fill_up_after(state_bytes)

    def fail_sync(self, after: int) -> None:
        self.disk_faulty = True
        self.disk.fail_sync_after(after)

    def mend_disk(self) -> None:
        self.disk_faulty = False
        self.files.full = False
        self.disk.reset_faults()
        self.store.reset_faults()

    # -- events -------------------------------------------------------------------------------------------------

    def run(self, action: Callable[[], None]) -> None:
        """Do something inside the process, now or when it is resumed; nothing if it is dead."""
        if not self.alive:
            return
        if self.paused:
            if len(self._inbox) < INBOX_MAX:
                self._inbox.append(action)
            return
        self._at_rest = False
        self._guard(action)
        self.wake()

    def wake(self) -> None:
        if not self.alive or self._turn_scheduled:
            return
        self._turn_scheduled = True
        incarnation = self.incarnation
        delay_us = 20 + self.rng.randrange(200) + self.turn_delay_us

        def turn() -> None:
            if self.incarnation == incarnation and self.alive:
                self._turn_scheduled = False
                self.run_turn()

        self.world.scheduler.after(delay_us, turn)

    def run_turn(self) -> None:
        if self.paused:
            self._inbox.append(lambda: None)  # resuming wakes it
            return
        self._guard(self._turns)

    def _turns(self) -> None:
        self._at_rest = False
        for _ in range(TURNS_IN_A_ROW_MAX):
            if not self.turn_once():
                self._at_rest = True
                return
        self.wake()

    def turn_once(self) -> bool:
        """All that is to be done now; False if that was nothing."""
        driver = self.driver
        driver.submit(self.now_ms)
        rounds = self._drive(self.host)
        effects = driver.turn(self.now_ms)
        self._carry_out(effects)
        self._watch_due()
        return bool(rounds or effects)

    def _drive(self, host: flotta_native.RaftHost) -> int:
        """What a host let go before it died is on its way: nobody calls a packet back."""
        try:
            return host.drive(self.world.scheduler.now_us)
        except (flotta_native.FailpointReached, flotta_native.HostFailed):
            for node, frame in host.salvage().messages:
                self.world.transcript.count("packets_of_the_dead")
                self._send(node, frame)
            raise

    def _watch_due(self) -> None:
        """Look again when something that the host kept back is due."""
        due_us = self.host.due_us() if self._delays else None
        if due_us is None or due_us == self._due_us:
            return
        self._due_us = due_us
        incarnation = self.incarnation

        def due() -> None:
            if self.incarnation == incarnation:
                self.world.transcript.count("delays_ended")
                self.run(lambda: None)

        self.world.scheduler.at(due_us, due)

    def _carry_out(self, effects: Effects) -> None:
        transcript = self.world.transcript
        for role in effects.roles:
            if role.is_leader:
                replica = self.replica_of(role.group)
                if self.observer.elections.saw_leader(role.group, role.term, replica):
                    transcript.count("elections")
                    self.note(f"leads group {role.group} in term {role.term}")
        for event in effects.events:
            transcript.count(f"event_{event.name}")
        if self.on_effects is not None:
            self.on_effects(effects)
        for flush in effects.flushes:
            self.later(1, 30, partial(self.shipping.flush, flush))
        self.shipping.carry_out(effects)
        if effects.checks:
            self.driver.checked(effects.checks, self.host.status(effects.checks))

    def later(self, low_ms: int, high_ms: int, action: Callable[[], None]) -> None:
        """Work that a thread would do: it takes a while, longer on a slow disk, and dies with the process."""
        incarnation = self.incarnation
        delay_us = self.rng.randrange(low_ms * US_PER_MS, high_ms * US_PER_MS) + self.turn_delay_us

        def due() -> None:
            if self.incarnation == incarnation:
                self.run(action)

        self.world.scheduler.after(delay_us, due)

    def _tick(self) -> None:
        if self.paused:
            self._ticks_missed += 1
        elif self.alive:
            self._run_ticks(1)

    def _run_ticks(self, ticks: int) -> None:
        if ticks and self._host is not None:
            self.run(lambda: self.host.tick(ticks))

    def _send(self, node: int, frame: bytes) -> None:
        target = self.peer(node)
        sent = target is not None and self.world.network.send(
            self.number, target.number, lambda: target.run(lambda: target.receive(self, node, frame))
        )
        if not sent and self.rng.random() < 0.2:
            self.later(1, 5, lambda: self.driver.unreachable(node))

    def takes(self, node_num: int) -> bool:
        """Is this the node that Raft knows by this number, ready to hear from its peers?"""
        return True

    def receive(self, source: SimNode, node_num: int, frame: bytes) -> None:
        """Raft messages of a peer, for a node number."""
        if self.takes(node_num):
            self.driver.receive(frame)

    def _guard(self, action: Callable[[], None]) -> bool:
        """Run code under test: an injected fault may end the process, anything else is a finding. True: it lives."""
        try:
            action()
            return True
        except (ProcessKilled, flotta_native.FailpointReached) as death:
            self.world.transcript.count("failpoint_deaths")
            point = str(death).removeprefix("failpoint ").removesuffix(" was reached")
            self.world.transcript.count(f"died_at {point}")
            self._die(f"failpoint {point}")
        except (flotta_native.HostFailed, OSError) as failure:
            if not self.disk_faulty:
                raise SafetyViolation(f"{self.name} failed without a fault: {failure!r}") from failure
            self.world.transcript.count("disk_deaths")
            self._die(f"disk: {type(failure).__name__}")
        return False

    def _die(self, why: str) -> None:
        self.crash(power=self.rng.random() < 0.7, why=why)
