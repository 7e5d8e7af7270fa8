"""What the leader of a shard does about its division: divides it once the map asks for that, sees its children born,
and prunes their rows when every child is whole.

A node divides the shards that it leads one after the other: the next one once the children of the last are led, or have
had their time, so that keys which change their shard wait for no other shard's rows.

Invariants: while a division may be in the log or is not done with, the shard's voters stay (`holds_members`), so the
nodes that have the rows are those that make the children; pruning begins only when the map says of every child of the
division that each of its voters has been heard from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from flotta_consensus.api import Committed, Outcome, RoleChange
from flotta_runtime.clock import Clock
from flotta_runtime.logging import get_logger

from flotta_storage.core.divisions import Child, Division
from flotta_storage.core.moves import LeaderView
from flotta_storage.core.splits import Split, SplitKind, prune_payload, split_payload
from flotta_storage.map_model import MapModel
from flotta_storage.replica_table import Replica, ReplicaTable
from flotta_storage.stamping import NO_STAMP, StampSource

SPLIT_TIMEOUT_MS: Final = 10_000
PRUNE_TIMEOUT_MS: Final = 10_000
PRUNE_PAUSE_MS: Final = 5
CAMPAIGN_PAUSE_MS: Final = 300
TURN_MS: Final = 10_000  # how long others wait for one shard


class Groups(Protocol):
    """What is asked of the Raft host."""

    async def propose(self, group: int, payload: bytes, timeout_ms: int) -> Outcome: ...

    def role(self, group: int) -> RoleChange | None: ...

    def campaign(self, group: int) -> None: ...


class Splitting:
    """For the leader's round: `is_due` is cheap, `work` does what is to be done. `on_change`: there is news to tell."""

    def __init__(
        self,
        groups: Groups,
        replicas: ReplicaTable,
        model: MapModel,
        clock: Clock,
        stamp_ms: StampSource,
        leader_view: Callable[[Replica], Awaitable[LeaderView | None]],
        on_change: Callable[[], None],
    ) -> None:
        self._groups = groups
        self._replicas = replicas
        self._model = model
        self._clock = clock
        self._stamp_ms = stamp_ms
        self._leader_view = leader_view
        self._on_change = on_change
        self._turn = 0  # the group that divides, and since when
        self._turn_since_ms = 0
        self._campaigned_ms: dict[int, int] = {}
        self._whole: set[int] = set()
        self._misfits: set[int] = set()  # told of
        self._log = get_logger("storage.splits")

    def is_due(self, replica: Replica) -> bool:
        shard = self._model.shard(replica.shard_id)
        born = shard is not None and bool(shard.parent) and replica.group not in self._whole
        return born or replica.division() is not None or self._wanted_count(replica) > 0

    def whole(self, group: int) -> bool:
        """Has every voter of a child that is led here been heard from?"""
        return group in self._whole

    def holds_members(self, replica: Replica) -> bool:
        """Must the voters stay as they are for now?"""
        role = self._groups.role(replica.group)
        if role is None or replica.machine.applied_term() != role.term:
            return True  # an entry of an earlier term that divides the shard may still be to come
        return replica.division() is not None or self._wanted_count(replica) > 0

    async def work(self, replica: Replica) -> None:
        """One round for one shard that is led here."""
        division = replica.division()
        if division is not None:
            await self._see_through(replica, division)
        elif self._wanted_count(replica) and self._takes_turn(replica):
            await self._divide(replica)
        shard = self._model.shard(replica.shard_id)
        if shard is not None and shard.parent:
            await self._look_whole(replica)

    def _wanted_count(self, replica: Replica) -> int:
        """How many classes the map wants of those that the shard has now together; 0: no more than there are."""
        children = self._model.children(replica.shard_id)
        if not children:
            return 0  # nearly always, and asked many times a second: before the record is decoded
        state = replica.state()
        if state is None:
            return 0
        return max(
            (one.shard_count for one in children if one.awaited and one.shard_count > state.shard_count), default=0
        )

    def _takes_turn(self, replica: Replica) -> bool:
        """Is no other shard that is led here in the middle of its division?"""
        now_ms = self._clock.monotonic_ms()
        other = self._replicas.of_group(self._turn)
        if other is replica:
            return True
        if other is not None and self._leads(other) and now_ms - self._turn_since_ms < TURN_MS:
            division = other.division()
            if self._wanted_count(other) or (division is not None and not self._all_led(division)):
                return False
        self._turn, self._turn_since_ms = replica.group, now_ms
        return True

    def _leads(self, replica: Replica) -> bool:
        role = self._groups.role(replica.group)
        return role is not None and role.is_leader

    def _all_led(self, division: Division) -> bool:
        return all(self._is_led(child) for child in division.children)

    def _is_led(self, child: Child) -> bool:
        """As far as is known here, by the child's own replica or by the map."""
        role, shard = self._groups.role(child.group), self._model.shard(child.shard_id)
        return (role is not None and role.leader != 0) or (shard is not None and not shard.awaited)

    async def _divide(self, replica: Replica) -> None:
        members, state = replica.machine.members(), replica.state()
        role = self._groups.role(replica.group)
        if state is None or members.outgoing or role is None or replica.machine.applied_term() != role.term:
            return
        count = self._wanted_count(replica)
        wanted = [one for one in self._model.children(replica.shard_id) if one.awaited and one.shard_count == count]
        children = tuple(
            Child(one.shard_id, one.group, one.shard_index, one.sequence)
            for one in sorted(wanted, key=lambda one: one.shard_index)
        )
        split = Split(count, state.conf_index, tuple(sorted(members.voters)), children)
        outcome = await self._groups.propose(replica.group, split_payload(self._stamp_ms(), split), SPLIT_TIMEOUT_MS)
        if not isinstance(outcome, Committed):
            self._log.info("division not committed", shard=replica.shard_id)
        elif outcome.result is SplitKind.MISFIT:
            self._misfit(replica, count)
        elif outcome.result is SplitKind.DIVIDED:
            self._log.info("shard divided", shard=replica.shard_id, shard_count=count, index=outcome.index)
            self._on_change()

    def _misfit(self, replica: Replica, count: int) -> None:
        if replica.group not in self._misfits:
            self._misfits.add(replica.group)
            self._log.error("the map's children do not fit the shard", shard=replica.shard_id, shard_count=count)

    async def _see_through(self, replica: Replica, division: Division) -> None:
        if self._all_whole(division):
            await self._prune(replica)
            return
        now_ms = self._clock.monotonic_ms()
        for child in division.children:
            role = self._groups.role(child.group)
            if role is None or role.leader:
                continue
            # The others may have made their replica later than this one asked for their votes.
            if now_ms - self._campaigned_ms.get(child.group, -CAMPAIGN_PAUSE_MS) >= CAMPAIGN_PAUSE_MS:
                self._campaigned_ms[child.group] = now_ms
                self._groups.campaign(child.group)

    def _all_whole(self, division: Division) -> bool:
        """A child that the map does not have, or not yet, is not whole. One that has been taken over since was."""
        view = self._model.view
        found = {child.group: view.shards.get(child.group) for child in division.children}
        missing = {group for group, shard in found.items() if shard is None}
        if missing and not missing <= view.absorbed():
            return False
        return all(shard is None or not (shard.awaited or shard.parent) for shard in found.values())

    async def _prune(self, replica: Replica) -> None:
        deleted = 0
        while replica.division() is not None:
            outcome = await self._groups.propose(replica.group, prune_payload(NO_STAMP), PRUNE_TIMEOUT_MS)
            if not isinstance(outcome, Committed):
                return  # the next round goes on, here or at another leader
            deleted += outcome.result.rows
            await asyncio.sleep(PRUNE_PAUSE_MS / 1000)
        self._log.info("rows of children pruned", shard=replica.shard_id, rows=deleted)

    async def _look_whole(self, replica: Replica) -> None:
        view = await self._leader_view(replica)
        if view is None or view.members.outgoing or replica.group in self._whole:
            return
        others = (voter for voter in view.members.voters if voter != view.replica)
        if all(view.matched.get(voter, 0) > 0 for voter in others):
            self._whole.add(replica.group)
            self._on_change()
