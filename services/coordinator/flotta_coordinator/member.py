"""What every RPC of this member stands on: who leads, the log, the state, and the way to the leader.

`at_leader` runs a call where it belongs: here when this member leads, else forwarded, waiting a little when nobody
leads for the moment. `fresh` is a linearizable read of the local state, on any member.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from flotta_consensus.api import Rejected, Unknown
from flotta_runtime.clock import Clock
from flotta_runtime.errors import InvalidArgument, NotLeader, Timeout, Unavailable
from flotta_runtime.status import LEADER_HINT

from flotta_coordinator import wire
from flotta_coordinator.caretaker import Caretaker
from flotta_coordinator.core.results import RejectCode, Rejection, Result
from flotta_coordinator.core.state import ClusterState
from flotta_coordinator.forward import Forwarder, Message, is_forwarded
from flotta_coordinator.group import Coordinators, Group, Role
from flotta_coordinator.leadership import Leadership, Session
from flotta_coordinator.pipeline import Pipeline
from flotta_coordinator.store import MetadataStore
from flotta_coordinator.watch import Watchers

R = TypeVar("R")

CALL_MS_MAX = 30_000  # for a caller without a deadline, or with a longer one
LOOK_AGAIN_MS = 100
Context = Any  # grpc.aio.ServicerContext of any request and reply


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call waits for what is about to come."""

    election_ms: int = 3_000  # for somebody to lead
    nodes_ms: int = 5_000  # InitShards: for announced nodes to send their first heartbeat
    read_ms: int = 3_000  # for a read barrier


class Member:
    def __init__(
        self,
        coordinators: Coordinators,
        role: Role,
        group: Group,
        store: MetadataStore,
        pipeline: Pipeline,
        leadership: Leadership,
        caretaker: Caretaker,
        watchers: Watchers,
        forwarder: Forwarder,
        messages: wire.StateMessages,
        clock: Clock,
        patience: Patience,
    ) -> None:
        self.coordinators = coordinators
        self.role = role
        self.group = group
        self.store = store
        self.pipeline = pipeline
        self.leadership = leadership
        self.caretaker = caretaker
        self.watchers = watchers
        self.messages = messages
        self.clock = clock
        self.patience = patience
        self._forwarder = forwarder

    async def at_leader(
        self, method: str, request: Message, reply: type[R], context: Context, local: Callable[[], Awaitable[R]]
    ) -> R:
        """The leader's answer, wherever it leads. NotLeader with the best hint when nobody could be asked."""
        budget_ms = time_left_ms(context)
        give_up_ms = self.clock.monotonic_ms() + min(budget_ms, self.patience.election_ms)
        once = is_forwarded(context.invocation_metadata())
        hint: str | None = None
        async with _deadline(budget_ms):
            while True:
                try:
                    if self.role.is_leader:
                        return await local()
                    hint = self.role.leader_address
                    if hint is not None and not once:
                        answer = await self._forwarder.call(hint, method, request, reply, time_left_ms(context))
                        context.set_trailing_metadata(((LEADER_HINT, hint),))
                        return answer
                except NotLeader as refused:
                    # Certainly nothing happened: the lead is changing hands.
                    hint = refused.leader_hint or hint
                if once or self.clock.monotonic_ms() >= give_up_ms:
                    raise NotLeader(self.role.leader_address or hint)
                await self.leadership.wait_turn(LOOK_AGAIN_MS)

    async def fresh(self, context: Context) -> ClusterState:
        """The state, at least as new as everything that was acknowledged before this call."""
        outcome = await self.group.read_barrier(min(time_left_ms(context), self.patience.read_ms))
        if isinstance(outcome, Unknown):
            raise Unavailable("this coordinator has no quorum at hand, so it cannot tell whether its map is current")
        if isinstance(outcome, Rejected):
            raise NotLeader(None if self.role.is_leader else self.role.leader_address)
        return self.store.state()

    async def ready_session(self) -> Session:
        """This member's session as a leader; NotLeader unless it leads and is, or soon gets, ready."""
        give_up_ms = self.clock.monotonic_ms() + self.patience.election_ms
        while self.role.is_leader and self.leadership.session is None and self.clock.monotonic_ms() < give_up_ms:
            await self.leadership.wait_turn(LOOK_AGAIN_MS)
        return self.leadership.require()


def time_left_ms(context: Context) -> int:
    """Of the caller's deadline, at most CALL_MS_MAX."""
    left = context.time_remaining()
    return CALL_MS_MAX if left is None else max(1, min(CALL_MS_MAX, int(left * 1000)))


def refuse_bad_argument(result: Result) -> Result:
    """What is wrong whatever the state is a status, not a reply."""
    if isinstance(result, Rejection) and result.code is RejectCode.INVALID_ARGUMENT:
        raise InvalidArgument(result.message, field=result.field)
    return result


def require_text(field: str, value: str) -> None:
    if not value:
        raise InvalidArgument(f"{field} must not be empty", field=field)


@contextlib.asynccontextmanager
async def _deadline(budget_ms: int) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(budget_ms / 1000):
            yield
    except TimeoutError as late:
        raise Timeout("the deadline passed; the change may have happened, or may still happen") from late
