"""What a failed disk means to the slow half of a turn: a full one is waited for, a failing one ends the process."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from flotta_consensus.api import NoFailpoints
from flotta_consensus.core.effects import BuildSnapshot, Effects, HostEvent
from flotta_consensus.jobs import Jobs


class FailingFiles:
    def __init__(self, number: int) -> None:
        self.number = number

    def build(self, group: int, source: Any) -> Any:
        raise OSError(self.number, "the disk said no")


def jobs_on(files: FailingFiles, failed: list[int], told: list[HostEvent]) -> Jobs:
    driver = SimpleNamespace(snapshot_build_failed=failed.append)
    opened: Any = SimpleNamespace(host=None, driver=driver, files=files)
    pool = ThreadPoolExecutor(1)
    threads: Any = SimpleNamespace(short=pool, bulk=pool)
    transport: Any = None
    return Jobs(opened, transport, threads, NoFailpoints(), told.append)


def one_build() -> Effects:
    source: Any = None
    effects = Effects()
    effects.builds.append(BuildSnapshot(7, 11, source))
    return effects


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_told_and_tried_again(number: int) -> None:
    failed: list[int] = []
    told: list[HostEvent] = []
    for job in jobs_on(FailingFiles(number), failed, told).of(one_build()):
        await job
    assert failed == [7]
    assert [event.name for event in told] == ["snapshot_build_failed"]


async def test_a_failing_disk_ends_the_process() -> None:
    failed: list[int] = []
    with pytest.raises(OSError, match="the disk said no"):
        for job in jobs_on(FailingFiles(errno.EIO), failed, []).of(one_build()):
            await job
    assert failed == []
