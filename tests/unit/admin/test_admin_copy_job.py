"""A copy goes on only while the coordinators want it, whatever becomes of its reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from flotta_admin.copying import job as job_module
from flotta_admin.copying.job import Job, JobEnded
from flotta_proto.flotta import operator_pb2 as pb
from flotta_runtime.errors import Timeout, Unavailable

ACCEPTED = pb.OrderResponse(success=True)
REFUSED = pb.OrderResponse(message="number: operation 7 has ended already: it is CANCELLED")


class Coordinators:
    """`answers` by method, the last one again and again; an exception is raised."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.orders: list[Any] = []
        self.outcome = ""

    async def order(self, method: str, request: Any) -> Any:
        self.orders.append(request)
        left = self.answers[method]
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def jobs(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        return pb.ListJobsResponse(jobs=[pb.Job(number=request.number, outcome=self.outcome)])


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "REPORT_EVERY_S", 0.001)


def made(**answers: list[Any]) -> tuple[Job, Any]:
    coordinators: Any = Coordinators(**answers)
    return Job(coordinators, 7), coordinators


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - any state at all, which nobody signals
            await asyncio.sleep(0.001)


async def test_work_goes_on_while_reports_are_taken_or_lost() -> None:
    job, coordinators = made(ReportCopy=[ACCEPTED, Unavailable("down"), Timeout("slow"), ACCEPTED])

    async def work() -> str:
        job.steps, job.done = 5, 2
        await until(lambda: len(coordinators.orders) > 5)
        return "all"

    assert await job.while_wanted(work()) == "all"
    last = coordinators.orders[-1]
    assert (last.number, last.steps, last.left) == (7, 5, 3)
    assert asyncio.all_tasks() == {asyncio.current_task()}  # nobody reports any more


async def test_work_is_cancelled_once_nobody_wants_it() -> None:
    job, _ = made(ReportCopy=[ACCEPTED, REFUSED])
    cancelled = asyncio.Event()

    async def work() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return "never"

    with pytest.raises(JobEnded, match="it is CANCELLED"):
        await job.while_wanted(work())
    assert cancelled.is_set()


async def test_what_goes_wrong_in_the_work_comes_out() -> None:
    job, _ = made(ReportCopy=[ACCEPTED])

    async def work() -> str:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        await job.while_wanted(work())


async def test_the_end_is_told_until_it_is_taken() -> None:
    job, coordinators = made(EndCopy=[Unavailable("down"), Timeout("slow"), ACCEPTED])
    await job.end("x" * 5_000, failed=True)
    assert len(coordinators.orders) == 3
    assert (coordinators.orders[-1].failed, coordinators.orders[-1].outcome) == (True, "x" * 1024)


async def test_an_end_whose_answer_was_lost_counts() -> None:
    job, coordinators = made(EndCopy=[Timeout("slow"), REFUSED])
    coordinators.outcome = "10 keys"
    await job.end("10 keys", failed=False)


async def test_an_end_that_comes_too_late_is_no_end() -> None:
    job, coordinators = made(EndCopy=[REFUSED])
    coordinators.outcome = "an operator cancelled it"
    with pytest.raises(JobEnded):
        await job.end("10 keys", failed=False)


async def test_an_end_that_nobody_takes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "END_TRIES", 3)
    job, coordinators = made(EndCopy=[Unavailable("down")])
    with pytest.raises(Unavailable):
        await job.end("10 keys", failed=False)
    assert len(coordinators.orders) == 3
