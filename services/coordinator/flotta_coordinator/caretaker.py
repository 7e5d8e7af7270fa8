"""Looks after the cluster while this member leads: asks the planner what is due, and has it done.

The planner is pure (`core/planner.py`); this is its clock and its hands. Its decisions go through the log like an
operator's commands, and are checked there once more against the state they will be applied to. Invariants: one look at
a time, never two within a period, and none without a session; a decision that was refused or lost is no loss, because
the next look finds the same need.
"""

from __future__ import annotations

import asyncio

from flotta_runtime.clock import Clock
from flotta_runtime.errors import FlottaError, Unavailable
from flotta_runtime.logging import get_logger

from flotta_coordinator.core.commands import Command, GiveUp
from flotta_coordinator.core.explain import Explanation, explain
from flotta_coordinator.core.job_ends import ended
from flotta_coordinator.core.plan_view import Policy, View
from flotta_coordinator.core.planner import plan
from flotta_coordinator.core.results import Rejection
from flotta_coordinator.core.state import ClusterState
from flotta_coordinator.leadership import Leadership, Session
from flotta_coordinator.pipeline import Pipeline
from flotta_coordinator.store import MetadataStore

REST_PERIODS = 5  # a cluster in which nothing changes is looked at so much less often


class Caretaker:
    """`run()` is its one task."""

    def __init__(
        self,
        store: MetadataStore,
        pipeline: Pipeline,
        leadership: Leadership,
        clock: Clock,
        policy: Policy,
        *,
        period_ms: int,
    ) -> None:
        self._store = store
        self._pipeline = pipeline
        self._leadership = leadership
        self._clock = clock
        self._policy = policy
        self._period_ms = period_ms
        self._log = get_logger("coordinator.planner")
        self.looks = 0
        self.decided = 0

    async def run(self) -> None:
        while True:
            session = self._leadership.session
            if session is None:
                await self._leadership.wait_turn(self._period_ms)
                continue
            busy = await self._look(session)
            await asyncio.sleep(self._period_ms / 1000)
            if not busy:
                await self._store.changed(self._period_ms * REST_PERIODS)

    def explain(self, state: ClusterState, shard_id: str) -> Explanation:
        """Why a shard is as it is, and what comes next. NotLeader unless this member leads; KeyError for no shard."""
        session = self._leadership.require()
        shard = state.shards[shard_id]
        moves = (one for one in reversed(state.decisions) if (one.kind, one.subject) == ("shard-move", shard_id))
        because = next((one.reason for one in moves), "") if shard.moving else ""
        return explain(self._view(session, state), self._policy, shard_id, because, session.memory.progress(shard_id))

    def lately(self, state: ClusterState, within_ms: int) -> tuple[str, ...]:
        """Nodes whose record changed within this time, by this leader's own clock. NotLeader unless this member leads,
        Unavailable before it has had the time to hear every node."""
        view = self._view(self._leadership.require(), state)
        if not view.ready:
            raise Unavailable("the coordinator that leads now has not had the time to hear every node; try again later")
        return tuple(sorted(node.node_id for node in view.nodes.values() if node.age_ms < within_ms))

    def _view(self, session: Session, state: ClusterState) -> View:
        now_ms = self._clock.monotonic_ms()
        ready = session.liveness.round_is_over(state.nodes.values(), now_ms)
        return session.memory.view(state, self._policy, now_ms=now_ms, wall_ms=self._clock.wall_ms(), ready=ready)

    async def _look(self, session: Session) -> bool:
        """One look; tells whether there was, or is, anything under way."""
        state = self._store.state()
        view = self._view(session, state)
        decided = plan(view, self._policy)
        self.looks += 1
        decided += ended(state, view, self._policy, decided)
        async with asyncio.TaskGroup() as tasks:
            for command in decided:
                tasks.create_task(self._carry_out(session, view, command))
        return bool(decided) or any(shard.targets or shard.target_leader for shard in view.shards)

    async def _carry_out(self, session: Session, view: View, command: Command) -> None:
        try:
            result = await self._pipeline.submit(command)
        except FlottaError as error:
            self._log.info("a decision could not be recorded", reason=error.message)
            return
        if isinstance(result, Rejection):
            self._log.info("a decision was out of date", reason=result.message)
            return
        self.decided += 1
        if isinstance(command, GiveUp):
            shard = next(one for one in view.shards if one.shard_id == command.shard_id)
            session.memory.gave_up(shard, self._policy, self._clock.monotonic_ms())
