"""An operator's order to compact: which replicas, once each, and what a failing disk does to it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any, cast

import pytest
from flotta_storage.compaction import Compactor
from flotta_storage.replica_table import Replica, ReplicaTable


class Machine:
    """Counts; `error` is raised by the next compactions."""

    def __init__(self) -> None:
        self.compacted = 0
        self.error: OSError | None = None

    def compact(self) -> Callable[[], None]:
        def run() -> None:
            if self.error is not None:
                raise self.error
            self.compacted += 1

        return run


def some(count: int) -> tuple[ReplicaTable, list[Machine]]:
    table, machines = ReplicaTable(), [Machine() for _ in range(count)]
    for number, machine in enumerate(machines):
        table.add(Replica(f"shard-{number}", 100 + number, 1 << 32 | 1, cast("Any", machine)))
    return table, machines


async def until_idle(compactor: Compactor, task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(60):
        while compactor.waiting and not task.done():  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.005)


async def test_all_of_them_or_those_that_were_named() -> None:
    table, machines = some(3)
    compactor = Compactor(table)
    task = asyncio.create_task(compactor.run())
    assert compactor.order(()) == 3
    await until_idle(compactor, task)
    assert [machine.compacted for machine in machines] == [1, 1, 1]
    assert compactor.order({"shard-1", "shard-9"}) == 1
    await until_idle(compactor, task)
    assert [machine.compacted for machine in machines] == [1, 2, 1]
    assert compactor.done == 4
    task.cancel()


async def test_who_waits_already_is_not_queued_twice_and_who_is_gone_is_passed_over() -> None:
    table, machines = some(3)
    compactor = Compactor(table)
    for _ in range(5):
        assert compactor.order(()) == 3
    assert compactor.waiting == 3
    table.remove(101)
    task = asyncio.create_task(compactor.run())
    await until_idle(compactor, task)
    assert [machine.compacted for machine in machines] == [1, 0, 1]
    task.cancel()


async def test_a_full_disk_ends_the_order_and_the_next_one_is_carried_out() -> None:
    table, machines = some(2)
    compactor = Compactor(table)
    machines[0].error = OSError(errno.ENOSPC, "full")
    task = asyncio.create_task(compactor.run())
    compactor.order(())
    await until_idle(compactor, task)
    assert [machine.compacted for machine in machines] == [0, 0]
    machines[0].error = None
    compactor.order(())
    await until_idle(compactor, task)
    assert [machine.compacted for machine in machines] == [1, 1]
    task.cancel()


async def test_a_failing_disk_ends_the_task() -> None:
    table, machines = some(1)
    compactor = Compactor(table)
    machines[0].error = OSError(errno.EIO, "broken")
    task = asyncio.create_task(compactor.run())
    compactor.order(())
    with pytest.raises(OSError, match="broken"):
        await asyncio.wait_for(task, 20)


async def test_what_is_left_is_told_and_what_waits_can_be_let_be() -> None:
    table, machines = some(4)
    compactor = Compactor(table)
    assert compactor.order({"shard-0", "shard-1", "shard-2"}) == 3
    assert (compactor.left(()), compactor.left({"shard-1", "shard-3"}), compactor.left({"shard-9"})) == (3, 1, 0)
    assert compactor.drop({"shard-1", "shard-3"}) == 0
    task = asyncio.create_task(compactor.run())
    await until_idle(compactor, task)
    assert [machine.compacted for machine in machines] == [1, 0, 1, 0]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
