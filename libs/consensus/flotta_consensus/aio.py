"""Replicated groups for an asyncio process: the driver, the native host's thread, the files and the transport.

Everything that decides runs in the event loop's thread; flushing and snapshot files run in a few worker threads.
`run` is the one supervised task: it ends when `close` is called and raises when anything fails that the process
must not survive (the host, a flush, a state machine); by then every waiter has been answered. Time is monotonic, and
a loop that stalled continues from now: nothing is made up for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import flotta_native
from flotta_runtime.turns import Turns

from flotta_consensus.api import (
    Failpoints,
    NoFailpoints,
    Outcome,
    ProposeDone,
    ReadDone,
    ReadOutcome,
    RoleChange,
    StateMachine,
)
from flotta_consensus.core.effects import Effects, HostEvent
from flotta_consensus.core.host import MembershipChange
from flotta_consensus.core.waiters import ProposeManyDone
from flotta_consensus.jobs import Job, Jobs, Threads
from flotta_consensus.opening import HostOptions, MissingMachine, Opened, open_replicas
from flotta_consensus.transport import HostTransport, Transport

__all__ = ["GroupHost", "HostClosed", "HostOptions", "MissingMachine"]

T = TypeVar("T")

SETTLING_SECONDS = 0.005
IDLE_BEATS = 10
"""Of the timer, between two turns that nobody asked for."""


class HostClosed(RuntimeError):
    """The host was closed, or failed, while something was waiting that has no other answer."""


class GroupHost:
    """All replicas of this process. Make it with `open`, then keep `run` going."""

    def __init__(
        self, opened: Opened, transport: Transport, options: HostOptions, failpoints: Failpoints, turns: Turns
    ) -> None:
        self.orphans = opened.orphans  # machines given to `open` whose group the log does not know
        self._host = opened.host
        self._driver = opened.driver
        self._incoming_dir = opened.files.incoming_dir
        self._transport = transport
        self._options = options
        self._turns = turns
        self._threads = Threads()
        self._jobs = Jobs(opened, transport, self._threads, failpoints, self._report)
        self._role_callbacks: list[Callable[[RoleChange], None]] = []
        self._event_callbacks: list[Callable[[HostEvent], None]] = []
        self._lifecycle: set[asyncio.Future[None]] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._ending = asyncio.Event()
        self._closed_because: str | None = None
        self._ended = asyncio.Event()
        self._error: BaseException | None = None
        self._started = False
        self._asked = False
        self._scheduled = False

    @classmethod
    def open(
        cls,
        data_dir: Path,
        node_num: int,
        machines: Mapping[int, StateMachine],
        transport: Transport,
        *,
        options: HostOptions | None = None,
        failpoints: Failpoints | None = None,
        turns: Turns | None = None,
    ) -> GroupHost:
        """Open the log under `data_dir` and attach every replica's machine, opened before this. Blocking.

        Machines of groups the log does not know come back in `orphans`: created but not yet in the log
        (`create_group` them again), or removed but not yet destroyed (`tombstones` tells). MissingMachine,
        LogCorruption, SnapshotDamaged and OSError stop the start. With the `turns` of the caller, what is asked within
        one of its turns crosses to the host at the end of it.
        """
        chosen, points = options or HostOptions(), failpoints or NoFailpoints()
        opened = open_replicas(data_dir, node_num, machines, transport.send, chosen, points)
        return cls(opened, transport, chosen, points, turns or Turns())

    # -- requests -----------------------------------------------------------------------------------------------

    async def propose(self, group: int, payload: bytes, timeout_ms: int) -> Outcome:
        """Replicate one payload. A cancelled caller's proposal may still commit."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.propose_with(group, payload, _setter(future), timeout_ms)
        return await future

    async def propose_many(self, group: int, payloads: Sequence[bytes], timeout_ms: int) -> list[Outcome]:
        """Replicate payloads in this order (others may come between); one outcome each, when all are decided."""
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self.propose_many_with(group, payloads, _setter(future), timeout_ms)
        return await future

    async def read_barrier(self, group: int, timeout_ms: int) -> ReadOutcome:
        """After `ReadReady` the local machine holds everything committed before this call."""
        future: asyncio.Future[ReadOutcome] = asyncio.get_running_loop().create_future()
        self.read_barrier_with(group, _setter(future), timeout_ms)
        return await future

    async def change_membership(self, group: int, changes: Sequence[MembershipChange], timeout_ms: int) -> Outcome:
        """See `Driver.change_membership`: the result of `Committed` is the `Members` from that entry on."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._driver.change_membership(group, changes, _setter(future), self.now_ms() + timeout_ms)
        self._wake()
        return await future

    def propose_with(self, group: int, payload: bytes, done: ProposeDone, timeout_ms: int) -> None:
        """`propose` for callers with their own batches: `done` runs in the loop's thread, inside a turn, and must
        not block. It may run before this returns."""
        self._driver.propose(group, payload, done, self.now_ms() + timeout_ms)
        self._ask()

    def propose_many_with(self, group: int, payloads: Sequence[bytes], done: ProposeManyDone, timeout_ms: int) -> None:
        """`propose_many` with a callback."""
        self._driver.propose_many(group, payloads, done, self.now_ms() + timeout_ms)
        self._ask()

    def read_barrier_with(self, group: int, done: ReadDone, timeout_ms: int) -> None:
        """`read_barrier` with a callback."""
        self._driver.read_barrier(group, done, self.now_ms() + timeout_ms)
        self._ask()

    def transfer_leader(self, group: int, to_replica: int) -> None:
        """A wish; watch the roles. ValueError for an unknown group."""
        self._driver.transfer_leader(group, to_replica)

    def campaign(self, group: int) -> None:
        """Start an election now. ValueError for an unknown group."""
        self._driver.campaign(group)

    # -- replicas -----------------------------------------------------------------------------------------------

    async def create_group(self, group: int, replica: int, voters: Sequence[int], machine: StateMachine) -> None:
        """See `Driver.create_group`; returns once the replica is durable. ValueError changes nothing."""
        await self._until(lambda done: self._driver.create_group(group, replica, voters, machine, done))

    async def remove_group(self, group: int) -> None:
        """Tombstone the replica durably, then destroy its machine's state."""
        await self._until(lambda done: self._driver.remove_group(group, done))

    def groups(self) -> list[int]:
        return self._driver.groups()

    def tombstones(self) -> dict[int, list[int]]:
        """group -> replica ids of this node that were removed for good."""
        return self._host.tombstones()

    def machine(self, group: int) -> StateMachine:
        """KeyError if there is no such replica."""
        return self._driver.machine(group)

    def role(self, group: int) -> RoleChange | None:
        """The last role told, None before the first."""
        return self._driver.role(group)

    def installing(self, group: int) -> bool:
        """The state is about to be replaced by a newer snapshot. KeyError if there is no such replica."""
        return self._driver.installing(group)

    def fresh_ms(self, group: int) -> int | None:
        """On the clock of `now_ms`: when the last completed read barrier of this replica was issued."""
        return self._driver.fresh_ms(group)

    async def status(self, group: int) -> flotta_native.GroupStatus | None:
        """The host's own view of a replica, or None. Taken in a thread: it may have to wait for a sync."""
        found = await self.statuses([group]) if group in self._driver.groups() else []
        return found[0] if found else None

    async def statuses(self, groups: Sequence[int] | None = None) -> list[flotta_native.GroupStatus]:
        """Of all replicas, or of some (those that are gone are missing). HostClosed says why there are none."""
        try:
            return await self._jobs.statuses(groups)
        except (RuntimeError, asyncio.CancelledError) as error:
            # The threads may have ended before this host's own task could tell why.
            task = asyncio.current_task()
            if self._closed_because is None or (task is not None and task.cancelling()):
                raise
            raise HostClosed(self._closed_because) from error

    def sync_times(self) -> tuple[list[int], int, int]:
        """`flotta_native.RaftHost.sync_times`: answers while the disk hangs."""
        return self._host.sync_times()

    def waiting(self) -> int:
        """Proposals and barriers without an answer."""
        return self._driver.waiting()

    async def settled(self, timeout_ms: int) -> None:
        """Return once every proposal and barrier has its answer, or after `timeout_ms`."""
        end_ms = self.now_ms() + timeout_ms
        while self.waiting() and self.now_ms() < end_ms:  # noqa: ASYNC110 - waiters are many, nobody is the last
            await asyncio.sleep(SETTLING_SECONDS)

    def on_role(self, callback: Callable[[RoleChange], None]) -> None:
        """Called in the loop's thread after the entries that came with the change are applied."""
        self._role_callbacks.append(callback)

    def on_event(self, callback: Callable[[HostEvent], None]) -> None:
        """What the host reports beside its work: unknown_group, bad_message, …"""
        self._event_callbacks.append(callback)

    def now_ms(self) -> int:
        """The monotonic clock that all deadlines here are on."""
        return time.monotonic_ns() // 1_000_000

    # -- life ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until closed. Raises the reason if the process must end."""
        if self._started:
            raise RuntimeError("a GroupHost runs once")
        self._started = True
        loop = asyncio.get_running_loop()
        descriptor = self._host.notify_fd()
        self._host.start()
        loop.add_reader(descriptor, self._turn)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._transport.attach(self, self._incoming_dir)
                if isinstance(self._transport, HostTransport):
                    self._transport.attach_host(self._host)
                children = [tasks.create_task(self._transport.run()), tasks.create_task(self._keep_time())]
                self._turn()
                await self._ending.wait()
                self._tasks = None
                for child in children:
                    child.cancel()
        except BaseExceptionGroup as group:
            self._error = self._error or group.exceptions[0]
        finally:
            self._end("closed")
            loop.remove_reader(descriptor)
            self._transport.detach()
            await self._stop_for_good()
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """Answer every waiter now, end `run`, and stop the host. The machines stay open and are the caller's."""
        self._end("closed")
        if self._started:
            await self._ended.wait()
        else:
            await asyncio.to_thread(self._stop_threads)

    def receive(self, frame: bytes) -> None:
        """From the transport."""
        if not self._ending.is_set():
            self._guard(lambda: self._driver.receive(frame))

    def unreachable(self, node_num: int) -> None:
        """From the transport."""
        if not self._ending.is_set():
            self._guard(lambda: self._driver.unreachable(node_num))

    # -- inside -------------------------------------------------------------------------------------------------

    async def _stop_for_good(self) -> None:
        """However often this is cancelled, the threads end first: `close` waits for that, and so do the machines."""
        stopping = asyncio.get_running_loop().run_in_executor(None, self._stop_threads)
        cancelled: asyncio.CancelledError | None = None
        try:
            while not stopping.done():
                try:
                    await asyncio.wait({stopping})
                except asyncio.CancelledError as again:
                    cancelled = again
            stopping.result()
        finally:
            self._ended.set()
        if cancelled is not None:
            raise cancelled

    def _stop_threads(self) -> None:
        self._threads.shutdown()
        self._host.stop()

    def _end(self, reason: str) -> None:
        if self._ending.is_set():
            return
        self._ending.set()
        self._closed_because = reason
        self._driver.close(reason)
        for future in self._lifecycle:
            if not future.done():
                future.set_exception(HostClosed(reason))

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._end(f"the host failed: {error}")

    def _guard(self, action: Callable[[], None]) -> None:
        """Whatever goes wrong in the driver ends `run`, never only a callback."""
        try:
            action()
        except BaseException as error:
            self._fail(error)

    def _ask(self) -> None:
        """Hand everything that was asked at about the same time to the host; its news will wake us."""
        if not self._asked and not self._ending.is_set():
            self._asked = True
            self._turns.soon(self._submit)

    def _submit(self) -> None:
        self._asked = False
        if self._tasks is not None and not self._ending.is_set():
            self._guard(lambda: self._driver.submit(self.now_ms()))

    def _wake(self) -> None:
        """One turn for everything that is asked at about the same time."""
        if not self._scheduled and not self._ending.is_set():
            self._scheduled = True
            self._turns.at_end(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._tasks is not None and not self._ending.is_set():
            with self._turns:
                self._guard(self._turn_once)

    def _turn_once(self) -> None:
        effects = self._driver.turn(self.now_ms())
        if effects:
            self._carry_out(effects)

    def _carry_out(self, effects: Effects) -> None:
        for job in self._jobs.of(effects):
            self._spawn(job)
        for event in effects.events:
            self._report(event)
        for change in effects.roles:
            for notify in self._role_callbacks:
                notify(change)

    def _spawn(self, work: Job) -> None:
        if self._tasks is None:
            work.close()
            return
        self._tasks.create_task(self._supervised(work))

    async def _supervised(self, work: Job) -> None:
        try:
            await work
        except Exception as error:
            self._fail(error)
        self._wake()

    async def _keep_time(self) -> None:
        """A deadline is noticed `timer_ms` late at most. While nobody waits there is none."""
        beats = 0
        while True:
            await asyncio.sleep(self._options.timer_ms / 1000)
            beats += 1
            if self._driver.waiting() or beats % IDLE_BEATS == 0:
                self._turn()

    def _report(self, event: HostEvent) -> None:
        for report in self._event_callbacks:
            report(event)

    async def _until(self, start: Callable[[Callable[[], None]], None]) -> None:
        """Run something that calls back once; HostClosed if it never can."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        start(lambda: None if future.done() else future.set_result(None))
        self._lifecycle.add(future)
        future.add_done_callback(self._lifecycle.discard)
        self._wake()
        await future


def _setter(future: asyncio.Future[T]) -> Callable[[T], None]:
    def done(value: T) -> None:
        if not future.done():
            future.set_result(value)

    return done
