"""Tasks for a group that may be ending."""

from __future__ import annotations

import asyncio

import pytest
from flotta_consensus.tasks import start_in


async def test_a_group_that_is_ending_takes_nothing_more_and_the_work_is_closed() -> None:
    work = asyncio.Event().wait()
    async with asyncio.TaskGroup() as group:
        started = start_in(group, asyncio.sleep(0, "done"))
    assert started is not None and started.result() == "done"
    assert start_in(group, work) is None
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        work.send(None)
