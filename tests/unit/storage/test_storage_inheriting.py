"""Children's machines are made of the parent's rows: whole or not at all, whatever stops it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from flotta_consensus.api import Entry, EntryKind, Members, NoFailpoints, replica_id
from flotta_embedded.generations import generations, machines
from flotta_embedded.machine import Machine
from flotta_embedded.simulated import SimEngine
from flotta_runtime.hashing import key_hash
from flotta_storage.core import keys
from flotta_storage.core.commands import birth_rows, new_registry
from flotta_storage.core.divisions import Child, decode_division
from flotta_storage.core.replicas import LocalReplica, Origin
from flotta_storage.core.shard_state import decode_state
from flotta_storage.core.splits import Split, SplitKind, prune_payload, split_payload
from flotta_storage.core.writes import write_payload
from flotta_storage.inheriting import Abandoned, Estate, bear, bear_in_thread

T0 = 1_700_000_000_000
VOTERS = (replica_id(1, 1), replica_id(2, 2), replica_id(3, 3))
REGISTRY = new_registry()
CHILDREN = tuple(Child(f"shard-{index}", 20 + index, index, 50 + index) for index in (1, 2))


class Crash(Exception):
    """The process ends here."""


class CrashAt:
    def __init__(self, name: str, passes: int) -> None:
        self._name, self._left = name, passes

    def reach(self, name: str) -> None:
        if name == self._name:
            self._left -= 1
            if not self._left:
                raise Crash(name)


def entry(index: int, payload: bytes) -> Entry:
    return Entry(index, 2, EntryKind.NORMAL, payload)


def parent(engine: SimEngine) -> Machine:
    """A shard that has just divided into three, with sixty keys."""
    rows = birth_rows("shard-0", "default", 0, 1)
    machine = Machine.create(engine, "group-10", REGISTRY, members=Members(VOTERS), rows=rows)
    put = [
        write_payload(
            T0, b"k%d" % number, b"v%d" % number, False, 0, 0 if number % 2 else 9_000, 0, False, f"id-{number}"
        )
        for number in range(60)
    ]
    put.append(split_payload(T0 + 7, Split(3, 1, VOTERS, CHILDREN)))
    results = machine.apply_many([entry(2 + position, payload) for position, payload in enumerate(put)])
    assert results[-1] is SplitKind.DIVIDED
    return machine


def estate_of(machine: Machine) -> Estate:
    state, division = machine.kept_row(keys.SHARD_KEY), machine.kept_row(keys.DIVISION_KEY)
    assert state is not None and division is not None
    return Estate(machine.freeze(), decode_state(state), decode_division(division))


def records(machine: Machine) -> list[LocalReplica]:
    base = estate_of(machine).division.revision
    return [
        LocalReplica(
            one.group,
            one.voters(VOTERS)[0],
            one.shard_id,
            Origin.SPLIT,
            one.voters(VOTERS),
            shard_index=one.shard_index,
            shard_count=3,
            revision_base=base,
            parent=10,
        )
        for one in CHILDREN
    ]


def make(engine: SimEngine, machine: Machine, failpoints: Any = None) -> list[Machine]:
    points = failpoints or NoFailpoints()
    return bear(engine, estate_of(machine), records(machine), REGISTRY, points, threading.Event())


def content(machine: Machine) -> list[tuple[bytes, bytes]]:
    return list(machine.view().scan(b"", None))


def test_children_begin_where_the_division_was() -> None:
    engine = SimEngine(1)
    machine = parent(engine)
    division = estate_of(machine).division
    machine.apply_many([entry(63, write_payload(T0 + 500, b"k0", b"later", False, 0, 0, 0, False, ""))])
    for child, made in zip(CHILDREN, make(engine, machine), strict=True):
        assert (made.applied_index(), made.durable_index(), made.applied_term()) == (1, 1, 1)
        assert made.members() == Members(child.voters(VOTERS))
        assert (made.revision_base, made.group_time_ms()) == (division.revision, T0 + 7)
        found = [row[0][1:] for row in made.view().scan(keys.DATA_PREFIX, keys.DATA_END)]
        assert found == sorted(b"k%d" % one for one in range(60) if key_hash(b"k%d" % one) % 3 == child.shard_index)
    again = SimEngine(2)
    assert [content(one) for one in make(again, parent(again))] == [content(one) for one in make_again(engine)]


def make_again(engine: SimEngine) -> list[Machine]:
    return [Machine.open(engine, f"group-{child.group}", REGISTRY) for child in CHILDREN]


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("point", ["machine.create_created", "machine.create_before_flush", "machine.create_flushed"])
def test_after_a_power_cut_anywhere_the_rest_is_made_and_is_the_same(point: str, passes: int) -> None:
    engine = SimEngine(7)
    machine = parent(engine)
    machine.flush()()
    with pytest.raises(Crash):
        make(engine, machine, CrashAt(point, passes))
    engine.crash()
    machine = Machine.open(engine, "group-10", REGISTRY)
    there = set(machines(engine))
    left = [one for one in records(machine) if f"group-{one.group}" not in there]
    assert bool(left) is not (point == "machine.create_flushed" and passes == 2)
    bear(engine, estate_of(machine), left, REGISTRY, NoFailpoints(), threading.Event())
    other = SimEngine(8)
    assert [content(one) for one in make_again(engine)] == [content(one) for one in make(other, parent(other))]
    assert all(len(generations(engine, f"group-{child.group}")) == 1 for child in CHILDREN)


def test_what_nobody_waits_for_is_left_off_and_can_be_made_later() -> None:
    engine = SimEngine(1)
    machine = parent(engine)
    abandoned = threading.Event()
    abandoned.set()
    with pytest.raises(Abandoned):
        bear(engine, estate_of(machine), records(machine), REGISTRY, NoFailpoints(), abandoned)
    assert machines(engine) == ["group-10"]
    assert len(make(engine, machine)) == 2


async def test_the_view_is_closed_once_the_thread_is_done_with_it_cancelled_or_not() -> None:
    engine = SimEngine(1)
    machine = parent(engine)
    begun, may_end = threading.Event(), threading.Event()

    class Waits:
        def reach(self, name: str) -> None:
            begun.set()
            may_end.wait(60)

    estate = estate_of(machine)
    task = asyncio.create_task(bear_in_thread(engine, estate, records(machine), REGISTRY, Waits()))
    await asyncio.to_thread(begun.wait, 60)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done() and estate.view.get(keys.SHARD_KEY)
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ValueError):
        estate.view.get(keys.SHARD_KEY)


def test_a_view_of_a_pruned_parent_still_has_it_all() -> None:
    engine = SimEngine(1)
    machine = parent(engine)
    estate, wanted = estate_of(machine), records(machine)
    machine.apply_many([entry(63, prune_payload(0))])
    assert machine.kept_row(keys.DIVISION_KEY) is None
    made = bear(engine, estate, wanted, REGISTRY, NoFailpoints(), threading.Event())
    assert sum(len(list(one.view().scan(keys.DATA_PREFIX, keys.DATA_END))) for one in made) > 20
