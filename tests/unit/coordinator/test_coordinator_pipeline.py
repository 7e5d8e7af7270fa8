"""The write pipeline over a scripted group: what reaches the log, and what callers are told when it goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from flotta_consensus.api import (
    Committed,
    Entry,
    EntryKind,
    Members,
    Outcome,
    ReadOutcome,
    ReadReady,
    Rejected,
    RejectReason,
    RoleChange,
    Unknown,
)
from flotta_coordinator.core import commands
from flotta_coordinator.core.commands import decode_batch
from flotta_coordinator.core.results import Applied, RejectCode, Rejection
from flotta_coordinator.group import Coordinators, Role
from flotta_coordinator.pipeline import Pipeline
from flotta_coordinator.store import MetadataStore, payload
from flotta_embedded.codec import decode_command
from flotta_embedded.machine import Machine
from flotta_embedded.simulated import SimEngine
from flotta_runtime.clock import ManualClock
from flotta_runtime.errors import NotLeader, RateLimited, Timeout, Unavailable

MEMBERS = Coordinators((("c1", "h:1"), ("c2", "h:2"), ("c3", "h:3")), "c1")


class ScriptedGroup:
    """Commits at once, unless a test scripts the next outcomes."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.payloads: list[bytes] = []
        self.barriers = 0
        self.proposed = asyncio.Event()
        self.next_outcomes: list[Outcome] = []
        self.next_barriers: list[ReadOutcome] = []
        self.gate: Callable[[], Awaitable[object]] | None = None

    async def propose(self, payload: bytes, timeout_ms: int) -> Outcome:
        self.payloads.append(payload)
        self.proposed.set()
        if self.gate is not None:
            await self.gate()
        if self.next_outcomes:
            return self.next_outcomes.pop(0)
        return self.commit(payload)

    def commit(self, payload: bytes) -> Committed:
        index = self.machine.applied_index() + 1
        (result,) = self.machine.apply_many([Entry(index, 2, EntryKind.NORMAL, payload)])
        return Committed(index, 2, result)

    async def read_barrier(self, timeout_ms: int) -> ReadOutcome:
        self.barriers += 1
        return self.next_barriers.pop(0) if self.next_barriers else ReadReady(self.machine.applied_index())

    def applied_index(self) -> int:
        return self.machine.applied_index()

    def logged(self) -> list[list[commands.Command]]:
        return [decode_batch(decode_command(payload).args) for payload in self.payloads]


class Bench:
    def __init__(self) -> None:
        self.store = MetadataStore()
        members = Members(voters=tuple(sorted(MEMBERS.replicas)))
        machine = Machine.create(SimEngine(1), "coordinator", self.store.registry, members=members)
        self.store.attach(machine.view)
        self.group = ScriptedGroup(machine)
        self.role = Role(MEMBERS)
        self.lead(2)
        self.pipeline = Pipeline(self.store, self.group, self.role, ManualClock(), commit_timeout_ms=1000)

    def lead(self, term: int) -> None:
        self.role.take(RoleChange(1, True, term, MEMBERS.replicas[0]))

    def follow(self, term: int, leader: int) -> None:
        self.role.take(RoleChange(1, False, term, MEMBERS.replicas[leader - 1] if leader else 0))


@asynccontextmanager
async def running() -> AsyncIterator[Bench]:
    bench = Bench()
    task = asyncio.create_task(bench.pipeline.run())
    yield bench
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def register(number: int) -> commands.RegisterNode:
    return commands.RegisterNode(f"node-{number}", f"h:{number}", "")


async def test_what_waits_together_is_one_entry_validated_in_order() -> None:
    async with running() as bench:
        submits = [register(1), register(1), commands.SetNodeStatus("node-1", 3), commands.SetNodeStatus("node-2", 3)]
        results = await asyncio.gather(*(bench.pipeline.submit(command) for command in submits))
        # The repeat and the refusal never reach the log; the third sees what the first did.
        assert bench.group.logged() == [[submits[0], submits[2]]]
        assert [isinstance(result, Applied) for result in results] == [True, True, True, False]
        assert isinstance(results[3], Rejection) and results[3].code is RejectCode.NOT_FOUND
        assert bench.store.state().map_version == 2


async def test_a_refusal_and_a_repeat_wait_for_a_barrier_and_log_nothing() -> None:
    async with running() as bench:
        await bench.pipeline.submit(register(1))
        entries, barriers = len(bench.group.payloads), bench.group.barriers
        assert isinstance(await bench.pipeline.submit(register(1)), Applied)
        assert isinstance(await bench.pipeline.submit(commands.InitShards(8, 1)), Rejection)
        assert len(bench.group.payloads) == entries
        assert bench.group.barriers == barriers + 2
        bench.group.next_barriers = [Rejected(RejectReason.NOT_LEADER)]
        with pytest.raises(NotLeader):
            await bench.pipeline.submit(register(1))
        bench.group.next_barriers = [Unknown("deadline")]
        with pytest.raises(Unavailable, match="no quorum"):
            await bench.pipeline.submit(register(1))


async def test_each_term_begins_with_a_barrier() -> None:
    async with running() as bench:
        await bench.pipeline.submit(register(1))
        assert bench.group.barriers == 1
        await bench.pipeline.submit(register(2))
        assert bench.group.barriers == 1
        bench.lead(5)
        await bench.pipeline.submit(register(3))
        assert bench.group.barriers == 2


async def test_after_an_unknown_outcome_a_fence_decides_what_was_in_front() -> None:
    async with running() as bench:
        bench.group.next_outcomes = [Unknown("deadline")]
        with pytest.raises(Timeout, match="not confirmed by a quorum"):
            await bench.pipeline.submit(register(1))
        # It did happen, just late. Only the fence can show it: the barrier that precedes the next validation must
        # not let the same registration be logged twice.
        bench.group.commit(bench.group.payloads[0])
        result = await bench.pipeline.submit(register(1))
        assert isinstance(result, Applied) and not result.changed
        assert bench.group.logged() == [[register(1)], []]


async def test_a_follower_takes_nothing_and_names_the_leader() -> None:
    async with running() as bench:
        bench.follow(3, 2)
        with pytest.raises(NotLeader, match=r"Leader hint: h:2$"):
            await bench.pipeline.submit(register(1))
        bench.follow(4, 0)
        with pytest.raises(NotLeader, match=r"The leader is not known$"):
            await bench.pipeline.submit(register(1))
        assert bench.group.payloads == []


async def test_a_leader_deposed_while_proposing_says_that_nothing_happened() -> None:
    async with running() as bench:
        bench.group.next_outcomes = [Rejected(RejectReason.LOST)]
        with pytest.raises(NotLeader):
            await bench.pipeline.submit(register(1))
        bench.group.next_outcomes = [Rejected(RejectReason.OVERLOADED)]
        with pytest.raises(RateLimited):
            await bench.pipeline.submit(register(1))
        assert bench.store.state().map_version == 0


async def test_a_caller_that_gave_up_while_waiting_is_withdrawn() -> None:
    async with running() as bench:
        opened = asyncio.Event()
        bench.group.gate = opened.wait
        first = asyncio.create_task(bench.pipeline.submit(register(1)))
        await bench.group.proposed.wait()
        second = asyncio.create_task(bench.pipeline.submit(register(2)))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        third = asyncio.create_task(bench.pipeline.submit(register(3)))
        await asyncio.sleep(0)
        opened.set()
        await asyncio.gather(first, third)
        assert bench.group.logged() == [[register(1)], [register(3)]]


async def test_stopping_answers_everybody() -> None:
    bench = Bench()
    never = asyncio.Event()
    bench.group.gate = never.wait
    task = asyncio.create_task(bench.pipeline.run())
    first = asyncio.create_task(bench.pipeline.submit(register(1)))
    await bench.group.proposed.wait()
    second = asyncio.create_task(bench.pipeline.submit(register(2)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(Timeout):
        await first
    with pytest.raises(Unavailable):
        await second


async def test_a_rejection_at_apply_leaves_no_trace() -> None:
    bench = Bench()
    bench.group.commit(_entry([register(1)]))
    state = bench.store.state()
    before = list(bench.group.machine.view().scan(b"d", b"e"))
    # As if a leader that had lost its place logged something on the ground of an older state.
    outcome = bench.group.commit(_entry([commands.SetNodeStatus("node-9", 3), register(1)]))
    assert [isinstance(result, Rejection) for result in outcome.result] == [True, False]
    assert bench.store.state() is state
    assert list(bench.group.machine.view().scan(b"d", b"e")) == before


async def test_the_state_is_rebuilt_from_rows_after_a_restore() -> None:
    source, target = Bench(), Bench()
    for number in range(1, 4):
        source.group.commit(_entry([register(number)]))
    snapshot = source.group.machine.snapshot()
    sink = target.group.machine.restore()
    for chunk in snapshot.chunks(1 << 16):
        sink.write(chunk)
    sink.commit(snapshot.index, 2, source.group.machine.members())
    snapshot.close()
    assert target.store.state() == source.store.state()
    assert target.store.history().since(1) is None, "a jump must force a resync"
    assert target.store.history().since(3) is not None
    target.group.commit(_entry([register(4)]))
    delta = target.store.history().since(3)
    assert delta is not None and delta.nodes == ("node-4",)


def _entry(batch: list[commands.Command]) -> bytes:
    return payload(batch, 1_000)
