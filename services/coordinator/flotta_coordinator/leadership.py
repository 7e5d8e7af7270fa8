"""What a member does while it leads: name the cluster, watch over the nodes.

A session begins once a read barrier of its term has passed (everything earlier is applied here) and ends with the
role. Each session has a failure detector of its own, so every node gets a full timeout from a new leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flotta_consensus.api import RoleChange
from flotta_runtime.clock import Clock
from flotta_runtime.errors import FlottaError, NotLeader
from flotta_runtime.logging import get_logger

from flotta_coordinator.core.commands import FoundCluster, NodeObservation, ObserveNodes
from flotta_coordinator.core.liveness import Liveness, Timeouts, is_news
from flotta_coordinator.core.plan_memory import Memory
from flotta_coordinator.core.state import NodeStatus
from flotta_coordinator.group import Role
from flotta_coordinator.pipeline import Pipeline, accepted
from flotta_coordinator.store import MetadataStore

RETRY_MS = 100


class Session:
    """One term as a leader."""

    def __init__(self, term: int, liveness: Liveness) -> None:
        self.term = term
        self.liveness = liveness
        self.memory = Memory()
        self.ended = False
        self._wakers: dict[asyncio.Event, None] = {}  # in the order they came

    def wake_on_end(self, waker: asyncio.Event) -> None:
        """Have an event set when the session ends, until `forget`."""
        self._wakers[waker] = None

    def forget(self, waker: asyncio.Event) -> None:
        self._wakers.pop(waker, None)

    def end(self) -> None:
        self.ended = True
        for waker in self._wakers:
            waker.set()


class Leadership:
    def __init__(
        self,
        store: MetadataStore,
        pipeline: Pipeline,
        role: Role,
        clock: Clock,
        *,
        timeouts: Timeouts,
        check_ms: int,
        cluster_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._pipeline = pipeline
        self._role = role
        self._clock = clock
        self._timeouts = timeouts
        self._check_ms = check_ms
        self._cluster_id = cluster_id
        self._turned = asyncio.Event()  # set and replaced at every role change
        self._session: Session | None = None
        self._log = get_logger("coordinator")

    def on_role(self, change: RoleChange) -> None:
        """From the group host, on the event loop's thread."""
        before = (self._role.is_leader, self._role.term, self._role.leader_num)
        self._role.take(change)
        if self._session is not None and (not change.is_leader or change.term != self._session.term):
            self._session.end()
            self._session = None
        if before != (self._role.is_leader, self._role.term, self._role.leader_num):
            self._log.info("role", is_leader=change.is_leader, term=change.term, leader=self._role.leader_id)
        self._turn()

    @property
    def session(self) -> Session | None:
        """The session, once it is ready to serve."""
        return self._session

    async def wait_turn(self, timeout_ms: int) -> None:
        """Return after the next role change or session start, or after the timeout."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._turned.wait()
        except TimeoutError:
            return

    async def heard(self, node_id: str) -> None:
        """A node sent a heartbeat. NotLeader unless this member leads and is ready."""
        session = self.require()
        session.liveness.heard(node_id, self._clock.monotonic_ms())
        if is_news(self._store.state().nodes[node_id]):
            await self._pipeline.submit(ObserveNodes((NodeObservation(node_id, NodeStatus.ALIVE, 0, 0),)))

    def grant(self, node_id: str) -> None:
        """An operator vouched for a node: it has a full timeout from now."""
        if self._session is not None:
            self._session.liveness.grant(node_id, self._clock.monotonic_ms())

    def require(self) -> Session:
        if self._session is None:
            raise NotLeader(None if self._role.is_leader else self._role.leader_address)
        return self._session

    async def run(self) -> None:
        while True:
            if self._role.is_leader and self._session is None:
                await self._begin()
            elif self._session is not None:
                await self._watch_over(self._session)
            else:
                await self._turned.wait()

    async def _begin(self) -> None:
        """Open the session of this term, or wait a little and let `run` look again."""
        term = self._role.term
        try:
            # The command is a repeat for all leaders but the first; either way its answer comes behind a barrier.
            result = await self._pipeline.submit(FoundCluster(self._cluster_id()))
        except FlottaError as error:
            self._log.info("not ready to lead yet", term=term, reason=error.message)
            await self.wait_turn(RETRY_MS)
            return
        accepted(result)  # refused: the log is another cluster's
        if self._role.leads(term):
            self._session = Session(term, Liveness(self._timeouts, self._clock.monotonic_ms()))
            self._log.info("leads", term=term, map_version=self._store.state().map_version)
            self._turn()

    def _turn(self) -> None:
        turned, self._turned = self._turned, asyncio.Event()
        turned.set()

    async def _watch_over(self, session: Session) -> None:
        await self.wait_turn(self._check_ms)
        if session.ended:
            return
        due = session.liveness.verdicts(self._store.state().nodes.values(), self._clock.monotonic_ms())
        if not due:
            return
        try:
            accepted(await self._pipeline.submit(ObserveNodes(due)))
        except FlottaError as error:
            # Nothing is lost: the next check finds the same silence.
            self._log.info("could not record what the failure detector saw", reason=error.message)
