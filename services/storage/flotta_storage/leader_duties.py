"""What the leader of a shard does beside serving: carries moves on, hands leadership over, expires rows, divides it,
takes others over.

Each round looks at every shard led here; the decisions are `core/moves.py`. Invariants: one membership change per
shard at a time, each with a deadline, and its outcome is never assumed: the next round looks at what was committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import flotta_native
from flotta_consensus.api import Committed, Rejected
from flotta_consensus.groups import Groups
from flotta_runtime.clock import Clock
from flotta_runtime.logging import get_logger

from flotta_storage.core.commands import EXPIRE_ROWS_MAX, expire_payload
from flotta_storage.core.moves import (
    ChangeMembers,
    Intent,
    LeaderView,
    Progress,
    Settled,
    TransferLeader,
    Wait,
    best_heir,
    next_step,
    progress_of,
    second_replicas,
)
from flotta_storage.expiries import Expiries
from flotta_storage.map_model import MapModel
from flotta_storage.merging import AskPage, Merging
from flotta_storage.replica_table import Replica, ReplicaTable
from flotta_storage.splitting import Splitting
from flotta_storage.stamping import StampSource

CHANGE_TIMEOUT_MS = 10_000
EXPIRE_TIMEOUT_MS = 5_000
TRANSFER_PAUSE_MS = 2_000  # a transfer is a wish; let it come true, or fail, before it is repeated


class LeaderDuties:
    """`run()` is its one task; `on_change` is called when a membership change was committed."""

    def __init__(
        self,
        host: Groups,
        replicas: ReplicaTable,
        model: MapModel,
        clock: Clock,
        stamp_ms: StampSource,
        on_change: Callable[[], None],
        page: AskPage,
        *,
        duties_ms: int,
        catch_up_entries: int,
    ) -> None:
        self._host = host
        self._replicas = replicas
        self._model = model
        self._clock = clock
        self._stamp_ms = stamp_ms
        self._on_change = on_change
        self._duties_ms = duties_ms
        self._catch_up_entries = catch_up_entries
        self._transferred_ms: dict[int, int] = {}
        self._told: dict[int, str] = {}
        self._busy: set[int] = set()
        self._expiries = Expiries()
        self._progress: dict[int, Progress] = {}
        self.splitting = Splitting(host, replicas, model, clock, stamp_ms, self.leader_view, on_change)
        self.merging = Merging(host, model, clock, stamp_ms, page, on_change)
        self._log = get_logger("storage.moves")
        self.transfers = 0
        self.changes = 0
        self.swept = 0

    async def run(self) -> None:
        """A shard that is slow (it may have lost its quorum) holds up no other."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await asyncio.sleep(self._duties_ms / 1000)
                stamp_ms = self._stamp_ms()
                for replica in self._replicas:
                    if replica.group in self._busy:
                        continue
                    if not self.leads(replica):
                        self._expiries.forget(replica.group)
                        continue
                    intent, due = self._intent(replica), self._expiries.is_due(replica, stamp_ms)
                    if intent is None:
                        self._progress.pop(replica.group, None)
                    splits, merges = self.splitting.is_due(replica), self.merging.is_due(replica)
                    if intent is not None or due or splits or merges:
                        self._busy.add(replica.group)
                        work = self._serve(replica, intent, stamp_ms if due else 0, splits=splits, merges=merges)
                        tasks.create_task(work)

    async def _serve(
        self, replica: Replica, intent: Intent | None, expire_ms: int, *, splits: bool, merges: bool
    ) -> None:
        try:
            if expire_ms:
                await self._expire(replica, expire_ms)
            if splits:
                await self.splitting.work(replica)
            if merges:
                await self.merging.work(replica)
            if intent is not None:
                await self._move(replica, intent)
        finally:
            self._busy.discard(replica.group)

    def progress(self, group: int) -> Progress | None:
        """How the change of a shard that is led here fares; None when none is under way."""
        return self._progress.get(group)

    def leads(self, replica: Replica) -> bool:
        role = self._host.role(replica.group)
        return role is not None and role.is_leader

    def _intent(self, replica: Replica) -> Intent | None:
        """What the map asks of a shard, or None where nothing is to be done: the usual case, and a cheap one."""
        shard = self._model.view.shards.get(replica.group)
        if shard is None:
            return None
        members = replica.machine.members()
        leader = next((one for one in members.voters if shard.members.get(one) == shard.target_leader), 0)
        settled = not shard.targets or shard.targets.keys() == set(members.voters)
        if settled and not members.learners and not members.outgoing and leader in (0, replica.replica):
            return None
        return Intent(frozenset(shard.targets), leader)

    async def _move(self, replica: Replica, intent: Intent) -> None:
        view = await self.leader_view(replica)
        if view is None:
            return
        held = self.splitting.holds_members(replica)
        step = next_step(view, replace(intent, targets=frozenset()) if held else intent, self._catch_up_entries)
        if held and not isinstance(step, TransferLeader):
            step = Wait("the shard divides, and its voters stay until that is done with")
        elif early := second_replicas(view.members, intent.targets):
            step = Wait(f"the map does not know yet that other replicas vote where {early} are to be")
        self._tell(replica.group, progress_of(view, intent, step))
        if isinstance(step, TransferLeader):
            self.transfer(replica, step.to_replica)
        elif isinstance(step, ChangeMembers):
            outcome = await self._host.change_membership(replica.group, step.changes, CHANGE_TIMEOUT_MS)
            if isinstance(outcome, Committed):
                self.changes += 1
                self._on_change()
                self._log.info("membership changed", shard=replica.shard_id, changes=step.changes, index=outcome.index)
            else:
                reason = outcome.reason.value if isinstance(outcome, Rejected) else outcome.reason
                self._log.info("membership change not committed", shard=replica.shard_id, reason=reason)
        elif isinstance(step, Settled):
            self._told.pop(replica.group, None)
        elif self._told.get(replica.group) != step.reason:
            self._told[replica.group] = step.reason
            self._log.info("move waits", shard=replica.shard_id, reason=step.reason)

    def _tell(self, group: int, progress: Progress | None) -> None:
        if progress is None:
            self._progress.pop(group, None)
        else:
            self._progress[group] = progress

    def transfer(self, replica: Replica, to_replica: int) -> None:
        """Ask for a transfer, unless one was asked for a moment ago."""
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._transferred_ms.get(replica.group, -TRANSFER_PAUSE_MS) < TRANSFER_PAUSE_MS:
            return
        self._transferred_ms[replica.group] = now_ms
        self.transfers += 1
        self._host.transfer_leader(replica.group, to_replica)
        self._log.info("leadership is handed over", shard=replica.shard_id, to_replica=to_replica)

    async def leader_view(self, replica: Replica) -> LeaderView | None:
        """The group as its leader sees it; None if this node does not lead it (any more)."""
        status = await self._host.status(replica.group)
        if status is None or status.role != flotta_native.ROLE_LEADER:
            return None
        return LeaderView(
            group=replica.group,
            replica=replica.replica,
            members=replica.machine.members(),
            last_index=status.last_index,
            matched=dict(status.matched),
            active=dict(status.recent_active),
            snapshots=frozenset(status.pending_snapshot),
        )

    async def hand_over(self, timeout_ms: int) -> int:
        """Give every led shard to a voter that is close, for as long as that takes; returns how many are still led."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_ms / 1000
        while True:
            led = [replica for replica in self._replicas if self.leads(replica)]
            views = [view for replica in led if (view := await self.leader_view(replica)) is not None]
            heirs = {view.group: heir for view in views if (heir := best_heir(view, self._catch_up_entries))}
            if not heirs or loop.time() >= end:
                return len(views)
            for replica in led:
                if replica.group in heirs:
                    self.transfer(replica, heirs[replica.group])
            await asyncio.sleep(0.02)

    async def _expire(self, replica: Replica, stamp_ms: int) -> None:
        """Move group time on, and sweep a bounded number of rows."""
        payload = expire_payload(stamp_ms, EXPIRE_ROWS_MAX)
        outcome = await self._host.propose(replica.group, payload, EXPIRE_TIMEOUT_MS)
        if isinstance(outcome, Committed):
            self.swept += outcome.result.swept
