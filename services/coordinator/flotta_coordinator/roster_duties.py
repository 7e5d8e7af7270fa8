"""The leader takes coordinators that were given up out of the group, and brings those that were admitted into it, one
step at a time.

Whoever was given up goes first. Whoever comes has no vote until it has caught up. Every step looks at what is
committed; nothing is remembered, so a new leader goes on where the last one stopped.
"""

from __future__ import annotations

import asyncio
import contextlib

from flotta_consensus.api import Committed, Members, node_of, replica_id
from flotta_consensus.core.host import MembershipChange
from flotta_consensus.groups import Groups, HostClosed
from flotta_runtime.logging import get_logger

from flotta_coordinator.core.state import Roster
from flotta_coordinator.group import GROUP
from flotta_coordinator.member import Member

LOOK_MS = 500
CHANGE_TIMEOUT_MS = 5_000
CATCH_UP_ENTRIES = 64


class RosterDuties:
    """`run()` is its one task."""

    def __init__(self, member: Member, host: Groups) -> None:
        self._member = member
        self._host = host
        self._log = get_logger("coordinator", node=member.coordinators.node_id)

    async def run(self) -> None:
        """Until cancelled, or the host is closed."""
        with contextlib.suppress(HostClosed):
            await self._run()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_MS / 1000)
            roster = self._member.store.state().roster
            if (roster.generation or roster.replaced) and self._member.leadership.session is not None:
                await self._look(roster)

    async def _look(self, roster: Roster) -> None:
        members = self._host.machine(GROUP).members()
        going, coming = leaving(roster, members), missing(roster, members)
        status = await self._host.status(GROUP) if going or coming else None
        if status is None or members.outgoing:
            return
        close = max(1, status.last_index - CATCH_UP_ENTRIES)
        near = [one for one in coming if status.matched.get(one, 0) >= close]
        # A leader that was given up itself hears of that, and ends: it is removed by the next one.
        change = next_change([one for one in going if one != status.replica], coming, members, near)
        if change is None:
            return
        outcome = await self._host.change_membership(GROUP, [change], CHANGE_TIMEOUT_MS)
        if isinstance(outcome, Committed):
            name = self._member.coordinators.name(node_of(change[1]))
            self._log.info("coordinators changed", coordinator=name, to=change[0], index=outcome.index)


def leaving(roster: Roster, members: Members) -> list[int]:
    """Replicas that were given up and are members still."""
    return [one for one in (*members.voters, *members.learners) if node_of(one) in roster.replaced]


def missing(roster: Roster, members: Members) -> list[int]:
    """Replicas that were admitted and have no vote yet, in the order of their admission."""
    voting = {node_of(voter) for voter in members.voters}
    return [replica_id(seat.node_num, 1) for seat in roster.seats if seat.node_num not in voting]


def next_change(going: list[int], coming: list[int], members: Members, near: list[int]) -> MembershipChange | None:
    """The one thing to do now: whoever was given up goes, then who has caught up votes, then the next gets a place."""
    if going:
        return "remove", going[0]
    for replica in coming:
        if replica in members.learners and replica in near:
            return "voter", replica
    for replica in coming:
        if replica not in members.learners:
            return "learner", replica
    return None
