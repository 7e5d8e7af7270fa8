"""What the services ask of the replicas of their process: proposals, barriers, changes, roles, as coroutines.

It stands on the driver alone and knows neither threads nor files nor sockets: who subclasses it brings the loop, in
production `aio.GroupHost`, in the simulator its own. Every waiter gets an answer, at the latest when the process ends.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import flotta_native

from flotta_consensus.api import Outcome, ProposeDone, ReadDone, ReadOutcome, RoleChange, Seizure, StateMachine
from flotta_consensus.core.driver import Driver
from flotta_consensus.core.effects import Effects, HostEvent
from flotta_consensus.core.host import MembershipChange
from flotta_consensus.core.waiters import ProposeManyDone

T = TypeVar("T")

SETTLING_SECONDS = 0.005


class HostClosed(RuntimeError):
    """The host was closed, or failed, while something was waiting that has no other answer."""


class Groups(ABC):
    """All replicas of this process, over a driver that somebody else turns."""

    def __init__(self, host: flotta_native.RaftHost, driver: Driver) -> None:
        self._host = host
        self._driver = driver
        self._role_callbacks: list[Callable[[RoleChange], None]] = []
        self._event_callbacks: list[Callable[[HostEvent], None]] = []
        self._lifecycle: set[asyncio.Future[None]] = set()
        self._closed_because: str | None = None

    # -- what a subclass brings -----------------------------------------------------------------------------------

    @abstractmethod
    def now_ms(self) -> int:
        """The monotonic clock that all deadlines here are on."""

    @abstractmethod
    async def run(self) -> None:
        """Serve until closed. Raises the reason if the process must end."""

    @abstractmethod
    async def close(self) -> None:
        """Answer every waiter now, end `run`, and stop the host. The machines stay open and are the caller's."""

    @abstractmethod
    async def statuses(self, groups: Sequence[int] | None = None) -> list[flotta_native.GroupStatus]:
        """Of all replicas, or of some (those that are gone are missing). HostClosed says why there are none."""

    @abstractmethod
    def _ask(self) -> None:
        """Requests wait: hand everything that was asked at about the same time to the host."""

    @abstractmethod
    def _wake(self) -> None:
        """One turn for everything that is asked at about the same time."""

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

    async def seize_group(self, group: int, seizure: Seizure) -> None:
        """See `Driver.seize_group`; returns once it is durable. ValueError changes nothing."""
        await self._until(lambda done: self._driver.seize_group(group, seizure, done))

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

    def waiting(self) -> int:
        """Proposals and barriers without an answer."""
        return self._driver.waiting()

    async def settled(self, timeout_ms: int) -> None:
        """Return once every proposal and barrier has its answer, or after `timeout_ms`."""
        end_ms = self.now_ms() + timeout_ms
        while self.waiting() and self.now_ms() < end_ms:  # noqa: ASYNC110 - waiters are many, nobody is the last
            await asyncio.sleep(SETTLING_SECONDS)

    def sync_times(self) -> tuple[list[int], int, int]:
        """`flotta_native.RaftHost.sync_times`: answers while the disk hangs."""
        return self._host.sync_times()

    def on_role(self, callback: Callable[[RoleChange], None]) -> None:
        """Called in the loop's thread after the entries that came with the change are applied."""
        self._role_callbacks.append(callback)

    def on_event(self, callback: Callable[[HostEvent], None]) -> None:
        """What the host reports beside its work: unknown_group, bad_message, …"""
        self._event_callbacks.append(callback)

    # -- inside -------------------------------------------------------------------------------------------------

    def _tell(self, effects: Effects) -> None:
        """Events and roles, to whoever asked for them."""
        for event in effects.events:
            self._report(event)
        for change in effects.roles:
            for notify in self._role_callbacks:
                notify(change)

    def _report(self, event: HostEvent) -> None:
        for report in self._event_callbacks:
            report(event)

    def _end_lifecycle(self, reason: str) -> None:
        """Nothing that waits for a replica to be made or removed is answered any more."""
        for future in self._lifecycle:
            if not future.done():
                future.set_exception(HostClosed(reason))

    async def _until(self, start: Callable[[Callable[[], None]], None]) -> None:
        """Run something that calls back once; HostClosed if it never can."""
        if self._closed_because is not None:
            raise HostClosed(self._closed_because)
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
