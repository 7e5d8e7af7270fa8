"""One coordinator is given up while the others have a quorum: the leader looks at all of them, and puts it on record.

What the record means is done by `RosterDuties`, of whoever leads then. Nothing is lost by it, so nothing is seized and
nothing leaps; whoever was given up by mistake ends, and comes back with an empty directory.
"""

from __future__ import annotations

from flotta_consensus.api import node_of
from flotta_proto.flotta import roster_pb2 as pb
from flotta_runtime.errors import PreconditionFailed, Unavailable

from flotta_coordinator.core.commands import ReplaceCoordinator
from flotta_coordinator.core.results import Applied
from flotta_coordinator.core.roster_rules import SILENT, Standing, why_not_replaced
from flotta_coordinator.core.roster_transitions import holder_of
from flotta_coordinator.member import Member, refuse_bad_argument
from flotta_coordinator.roster import RosterKeeper


class Replacing:
    def __init__(self, member: Member, keeper: RosterKeeper) -> None:
        self._member = member
        self._keeper = keeper

    async def replace(self, name: str, place: int, *, dry_run: bool) -> str:
        """At the leader: what happens now, or would, in a sentence. PreconditionFailed if it must not."""
        number = holder_of(self._member.store.state().roster, name, place)
        if not number:
            return f"{name} is given up already: start it with an empty data directory"
        refusal = why_not_replaced(name, await self._standing(name, number))
        if refusal:
            raise PreconditionFailed(refusal)
        if dry_run:
            return (
                f"{name} is given up: its data directory (number {number}) takes part no more, "
                "and an empty one may take its place"
            )
        command = ReplaceCoordinator(name, place, number)
        result = refuse_bad_argument(await self._member.pipeline.submit(command))
        if not isinstance(result, Applied):
            raise PreconditionFailed(result.message)
        return result.reply.message

    async def _standing(self, name: str, number: int) -> Standing:
        coordinators, roster = self._member.coordinators, self._member.store.state().roster
        mine = coordinators.node_id
        asked = await self._keeper.ask_others()
        status = await self._keeper.status()
        if status is None:
            raise Unavailable(f"{mine} is about to stop: ask again")
        voting = [node_of(one) for one in status.membership.voters]
        follow = {
            other for other, said in asked.items() if isinstance(said, pb.RosterSurvey) and said.leader_id == mine
        }
        return Standing(
            leader=mine,
            voters=len(voting),
            staying=frozenset(coordinators.name(one) for one in voting if one not in roster.replaced),
            in_touch=frozenset({mine, *follow}),
            answers=_is_there(asked.get(name, SILENT), number),
            heard=any(seen for one, seen in status.recent_active.items() if node_of(one) == number),
        )


def _is_there(said: pb.RosterSurvey | str | None, number: int) -> bool:
    """Whatever cannot be read may be it. One with another directory, an empty one, is not."""
    if isinstance(said, pb.RosterSurvey):
        return said.identity.node_num == number
    return said is not SILENT
