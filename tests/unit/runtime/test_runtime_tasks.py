"""Supervised tasks: nothing dies in silence, nothing outlives its supervisor."""

from __future__ import annotations

import asyncio

import pytest
from flotta_runtime.errors import InvariantError
from flotta_runtime.tasks import Supervisor, TaskFailed


async def test_a_failing_critical_task_stops_the_others_and_is_named() -> None:
    supervisor = Supervisor("unit")
    await supervisor.start()
    cancelled = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("disk on fire")

    supervisor.spawn("waits", waits())
    supervisor.spawn("fails", fails())
    with pytest.raises(TaskFailed, match="task fails failed: ValueError: disk on fire") as caught:
        await supervisor.wait()
    assert isinstance(caught.value.__cause__, ValueError)
    assert cancelled.is_set()
    await supervisor.stop()
    assert supervisor.failure is caught.value


async def test_stop_cancels_everything_and_wait_returns() -> None:
    supervisor = Supervisor("unit")
    await supervisor.start()
    task = supervisor.spawn("waits", asyncio.Event().wait())
    never_started = supervisor.spawn("cancelled before its first step", asyncio.Event().wait())
    never_started.cancel()
    await asyncio.sleep(0)
    await supervisor.stop()
    await supervisor.wait()
    assert task.cancelled()
    with pytest.raises(RuntimeError, match="not running"):
        supervisor.spawn("late", asyncio.Event().wait())


async def test_a_task_that_is_not_critical_only_logs() -> None:
    supervisor = Supervisor("unit")
    await supervisor.start()

    async def fails() -> None:
        raise ValueError("minor")

    await supervisor.spawn("fails", fails(), critical=False)
    assert supervisor.failure is None
    await supervisor.stop()
    await supervisor.wait()


async def test_a_restarting_task_runs_again_after_errors() -> None:
    supervisor = Supervisor("unit")
    await supervisor.start()
    runs = 0
    done = asyncio.Event()

    async def flaky() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ValueError("again")
        done.set()
        await asyncio.Event().wait()

    supervisor.spawn_restarting("flaky", flaky, backoff_ms=1, backoff_ms_max=2)
    await done.wait()
    assert runs == 3
    assert supervisor.restarts == 2
    await supervisor.stop()


async def test_a_broken_invariant_reaches_the_fatal_handler() -> None:
    seen: list[BaseException] = []
    supervisor = Supervisor("unit", on_fatal=seen.append)
    await supervisor.start()

    async def broken() -> None:
        raise InvariantError("two leaders in one term")

    supervisor.spawn("broken", broken(), critical=False)
    with pytest.raises(TaskFailed, match="two leaders"):
        await supervisor.wait()
    assert [str(error) for error in seen] == ["two leaders in one term"]
