"""The life of one copy as an operation: the coordinators hear how far it is, and say when nobody wants it any more.

Invariant: work goes on only while the coordinators call the operation RUNNING, as of the last report that got through;
they give it up themselves when no report gets through for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from flotta_proto.flotta import operator_pb2 as pb
from flotta_runtime.errors import FlottaError, Unavailable
from flotta_runtime.logging import get_logger

from flotta_admin.coordinator import Coordinators

T = TypeVar("T")
REPORT_EVERY_S: Final = 1.0
END_TRIES: Final = 60
OUTCOME_CHARS_MAX: Final = 1024


class JobEnded(Exception):
    """The operation is over, whoever ended it."""


class Job:
    """`steps` and `done` are the work's to set."""

    def __init__(self, coordinators: Coordinators, number: int) -> None:
        self._coordinators = coordinators
        self.number = number
        self.steps = 0
        self.done = 0
        self._log = get_logger("admin.copies", operation=number)

    async def while_wanted(self, work: Awaitable[T]) -> T:
        """What the work comes to. JobEnded, with the work cancelled, once the operation has ended otherwise."""
        working = asyncio.ensure_future(work)
        reporting = asyncio.create_task(self._report(), name=f"operation {self.number} reports")
        try:
            await asyncio.wait((working, reporting), return_when=asyncio.FIRST_COMPLETED)
            if reporting.done():
                await reporting
            return await working
        finally:
            for task in (working, reporting):
                task.cancel()
            await asyncio.gather(working, reporting, return_exceptions=True)

    async def end(self, outcome: str, *, failed: bool) -> None:
        """Say how it ended. JobEnded if it was over before."""
        said, left = outcome[:OUTCOME_CHARS_MAX], self.steps - self.done
        request = pb.EndCopyRequest(number=self.number, failed=failed, outcome=said, steps=self.steps, left=left)
        for _ in range(END_TRIES):
            try:
                reply = await self._coordinators.order("EndCopy", request)
            except FlottaError as error:
                self._log.info("the end could not be told", reason=error.message)
                await asyncio.sleep(REPORT_EVERY_S)
                continue
            if reply.success or await self._ended_with(request.outcome):
                return
            raise JobEnded(reply.message)
        raise Unavailable("no coordinator leader took the end of the operation")

    async def _ended_with(self, outcome: str) -> bool:
        """Had an earlier try told it after all?"""
        found = await self._coordinators.jobs(pb.ListJobsRequest(number=self.number))
        return any(job.outcome == outcome for job in found.jobs)

    async def _report(self) -> None:
        while True:
            request = pb.ReportCopyRequest(number=self.number, steps=self.steps, left=self.steps - self.done)
            try:
                reply = await self._coordinators.order("ReportCopy", request)
            except FlottaError as error:
                self._log.info("progress could not be told", reason=error.message)
            else:
                if not reply.success:
                    raise JobEnded(reply.message)
            await asyncio.sleep(REPORT_EVERY_S)
