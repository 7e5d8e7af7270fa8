"""The only way into the log: commands are validated against the state they will be applied to, then proposed.

One batch is in flight at a time, and a batch is one log entry. So when a batch is validated, every entry before it
is applied here, and a command that is refused never reaches the log. That needs a fence in two cases: at the start
of a term (a read barrier: everything earlier is applied) and after an outcome that is unknown (an empty entry: when
it is applied, whatever was in front of it is decided).
An answer that needs no log entry (a refusal, a repeat) still waits for a barrier: a deposed leader must not give it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from flotta_consensus.api import Committed, Rejected, RejectReason, Unknown
from flotta_runtime.clock import Clock
from flotta_runtime.errors import FlottaError, InvariantError, NotLeader, RateLimited, Timeout, Unavailable

from flotta_coordinator.core.commands import Command
from flotta_coordinator.core.results import Applied, Rejection, Result
from flotta_coordinator.core.transitions import apply
from flotta_coordinator.group import Group, Role
from flotta_coordinator.store import MetadataStore, payload

COMMANDS_WAITING_MAX = 4_096
BATCH_MAX = 256
RETRY_AFTER_MS = 100


@dataclass(frozen=True, slots=True)
class _Call:
    command: Command
    done: asyncio.Future[Result]


class Pipeline:
    """`submit` from anywhere; `run` under a supervisor."""

    def __init__(self, store: MetadataStore, group: Group, role: Role, clock: Clock, *, commit_timeout_ms: int) -> None:
        self._store = store
        self._group = group
        self._role = role
        self._clock = clock
        self._commit_timeout_ms = commit_timeout_ms
        self._calls: deque[_Call] = deque()
        self._wanted = asyncio.Event()
        self._fenced_term = 0
        self._uncertain_term = 0  # of a proposal whose outcome is unknown; 0: none

    async def submit(self, command: Command) -> Result:
        """The result, or a FlottaError. A caller that gives up early withdraws what is not in a batch yet."""
        if len(self._calls) >= COMMANDS_WAITING_MAX:
            raise RateLimited(f"{COMMANDS_WAITING_MAX} commands are waiting already", retry_after_ms=RETRY_AFTER_MS)
        if not self._role.is_leader:
            raise NotLeader(self._role.leader_address)
        call = _Call(command, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        self._wanted.set()
        return await call.done

    async def run(self) -> None:
        """Work until cancelled; what still waits is then told that nothing happened."""
        calls: list[_Call] = []
        try:
            while True:
                await self._wanted.wait()
                calls = [self._calls.popleft() for _ in range(min(BATCH_MAX, len(self._calls)))]
                if not self._calls:
                    self._wanted.clear()
                calls = [call for call in calls if not call.done.done()]
                try:
                    await self._work(calls)
                except FlottaError as error:
                    _fail(calls, error)
        finally:
            _fail(calls, Timeout("the coordinator stopped before the outcome was known"))
            _fail(list(self._calls), Unavailable("the coordinator is stopping"))

    async def _work(self, calls: list[_Call]) -> None:
        await self._fence()
        state = self._store.state()
        now_ms = self._clock.wall_ms()
        answers: list[tuple[_Call, Result]] = []
        logged: list[_Call] = []
        for call in calls:
            result = apply(state, call.command, now_ms)
            if isinstance(result, Applied) and result.changed:
                state = result.state
                logged.append(call)
            else:
                answers.append((call, result))
        if logged:
            answers += zip(logged, await self._log(logged, now_ms), strict=True)
        else:
            await self._barrier()
        for call, result in answers:
            if not call.done.done():
                call.done.set_result(result)

    async def _log(self, calls: list[_Call], now_ms: int) -> list[Result]:
        entry, term = payload([call.command for call in calls], now_ms), self._role.term
        outcome = await self._group.propose(entry, self._commit_timeout_ms)
        if isinstance(outcome, Unknown):
            self._uncertain_term = term
            raise Timeout(f"the change was not confirmed by a quorum of the coordinators: {outcome.reason}")
        if isinstance(outcome, Rejected):
            if outcome.reason is RejectReason.OVERLOADED:
                raise RateLimited("the coordinator's log takes no more for the moment", retry_after_ms=RETRY_AFTER_MS)
            raise self._not_leader()
        results: list[Result] = outcome.result
        return results

    async def _fence(self) -> None:
        term = self._role.term
        if not self._role.is_leader:
            raise self._not_leader()
        if self._uncertain_term == term:
            # In a later term the barrier below is enough: that term's first entry is behind whatever this one left.
            outcome = await self._group.propose(payload([], self._clock.wall_ms()), self._commit_timeout_ms)
            if not isinstance(outcome, Committed):
                raise Unavailable("the coordinators have no quorum")
        self._uncertain_term = 0
        if self._fenced_term != term:
            await self._barrier()
            if not self._role.leads(term):
                raise self._not_leader()
            self._fenced_term = term

    async def _barrier(self) -> None:
        outcome = await self._group.read_barrier(self._commit_timeout_ms)
        if isinstance(outcome, Unknown):
            raise Unavailable("the coordinators have no quorum")
        if isinstance(outcome, Rejected) or not self._role.is_leader:
            raise self._not_leader()

    def _not_leader(self) -> NotLeader:
        return NotLeader(None if self._role.is_leader else self._role.leader_address)


def _fail(calls: list[_Call], error: FlottaError) -> None:
    for call in calls:
        if not call.done.done():
            call.done.set_exception(error)


def accepted(result: Result) -> Applied:
    """The result of a command that this service itself made and that cannot be refused."""
    if isinstance(result, Rejection):
        raise InvariantError(f"the coordinator's own command was refused: {result.message}")
    return result
