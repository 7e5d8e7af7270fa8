"""What a coordinator says of itself, what it hears of the others, and how it goes on alone when they are lost for good.
How one of them is given up while they have a quorum: `replacing.py`.

Going on alone is one frame of the log (`RaftHost.seize_group`): a new replica id, a higher term, the membership of one
voter, and the command that makes the counters and the map's version leap. Before that it asks the others itself,
whoever asked them before. Invariant: whoever hears that it was given up ends its process, whether it leads or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import grpc.aio
from flotta_consensus.api import Seizure, node_of, replica_id, sequence_of
from flotta_consensus.groups import Groups
from flotta_consensus.identity import Identity
from flotta_native import GroupStatus
from flotta_proto.flotta import roster_pb2 as pb
from flotta_proto.flotta import roster_pb2_grpc
from flotta_runtime.errors import PreconditionFailed, StartupError, Unavailable
from flotta_runtime.logging import get_logger
from flotta_runtime.server import Channel, Dial

from flotta_coordinator.core.commands import RecoverCoordinators
from flotta_coordinator.core.roster_rules import SILENT, UNREADABLE, Asker, Heard, Holding, is_given_up, why_not_alone
from flotta_coordinator.core.roster_transitions import holder_of
from flotta_coordinator.core.state import Roster
from flotta_coordinator.group import GROUP
from flotta_coordinator.member import Member
from flotta_coordinator.store import payload

ASK_TIMEOUT_MS = 1_000
TAKE_OVER_MS = 10_000  # to be elected by itself and ready to serve, which takes some syncs
OBJECTIONS_MS = 5_000  # how often a coordinator that leads, or knows no leader, asks whether it was given up
NOBODY_THERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class RosterKeeper:
    """`attach` the host once it is open."""

    def __init__(self, member: Member, dial: Dial, identity: Callable[[], Identity]) -> None:
        self._member = member
        self._dial = dial
        self._identity = identity
        self._host: Groups | None = None
        self._channels: dict[str, Channel] = {}
        self._seizing = asyncio.Lock()
        self._log = get_logger("coordinator", node=member.coordinators.node_id)

    def attach(self, host: Groups) -> None:
        self._host = host

    async def close(self) -> None:
        for each in self._channels.values():
            await each.close()

    async def survey(self, asker: pb.CoordinatorIdentity) -> pb.RosterSurvey:
        """What is here, as it is, with or without a quorum. `asker` may be nobody."""
        member, identity = self._member, self._said()
        peers = [pb.RosterSurvey.Peer(node_id=name, address=address) for name, address in member.coordinators.members]
        answer = pb.RosterSurvey(identity=identity, peers=peers)
        status = await self.status()
        if self._host is None or status is None:
            return answer
        state = member.store.state()
        answer.given_up = is_given_up(state.roster, identity.cluster_id, asker_of(asker))
        answer.admits = self._admits(state.roster, asker)
        answer.replica, answer.term = status.replica, status.term
        answer.last_term, answer.last_index = status.last_term, status.last_index
        answer.applied_index, answer.map_version = member.group.applied_index(), state.map_version
        answer.leader_id = member.role.leader_id
        voters = self._host.machine(GROUP).members().voters
        answer.voters.extend(member.coordinators.name(node_of(voter)) for voter in voters)
        for node in state.nodes.values():
            answer.nodes[node.node_id] = node.address
        return answer

    async def status(self) -> GroupStatus | None:
        """How the group stands here; None while it is not open."""
        return await self._host.status(GROUP) if self._host is not None else None

    async def check_objections(self) -> None:
        """StartupError if this coordinator, or another, knows that they went on without this one."""
        mine = self._identity().node_id
        if self._given_up():
            raise _ended(mine, mine)
        for name, answer in (await self.ask_others()).items():
            if isinstance(answer, pb.RosterSurvey) and answer.given_up:
                raise _ended(mine, name)

    async def watch_objections(self) -> None:
        """Ends with StartupError. Who follows somebody need not ask: its leader does, and tells it by the log."""
        role = self._member.role
        while True:
            await asyncio.sleep(OBJECTIONS_MS / 1000)
            if role.is_leader or not role.leader_num or self._given_up():
                await self.check_objections()

    async def seize(self, request: pb.SeizeRosterRequest) -> pb.SeizeRosterResponse:
        """Go on alone. PreconditionFailed while a quorum could still come back; nothing is done then."""
        async with self._seizing:
            host, identity = self._host, self._identity()
            mine = await self.survey(pb.CoordinatorIdentity())
            if host is None or not mine.replica:
                raise Unavailable(f"{identity.node_id} is not part of a cluster yet")
            if (mine.replica, mine.last_term, mine.last_index) != (
                request.replica,
                request.last_term,
                request.last_index,
            ):
                raise PreconditionFailed(f"the log of {identity.node_id} is another by now: ask again")
            heard = {name: _heard(answer) for name, answer in (await self.ask_others()).items()}
            refusal = why_not_alone(identity.node_id, _holding(mine), heard, request.gone, request.given_up)
            if refusal:
                raise PreconditionFailed(refusal)
            message = f"{identity.node_id} goes on alone, from index {mine.last_index} of its log"
            if request.dry_run:
                return pb.SeizeRosterResponse(message=message, map_version=mine.map_version)
            await self._take_over(host, identity, mine, request)
            return pb.SeizeRosterResponse(message=message, map_version=self._member.store.state().map_version)

    async def _take_over(
        self, host: Groups, identity: Identity, mine: pb.RosterSurvey, request: pb.SeizeRosterRequest
    ) -> None:
        command = RecoverCoordinators(
            identity.node_id,
            identity.node_num,
            identity.store_id,
            mine.last_index,
            tuple(sorted(request.gone)),
            tuple(sorted(request.given_up)),
            request.seen_map_version,
        )
        entry = payload([command], self._member.clock.wall_ms())
        fresh = replica_id(identity.node_num, sequence_of(mine.replica) + 1)
        self._log.warning(
            "goes on alone", was=mine.replica, replica=fresh, last_index=mine.last_index, gone=list(request.gone)
        )
        try:
            await host.seize_group(GROUP, Seizure(mine.replica, fresh, request.seen_term, [entry]))
        except ValueError as error:
            raise PreconditionFailed(f"{identity.node_id} cannot go on alone: {error}") from error
        host.campaign(GROUP)
        generation = mine.identity.generation
        give_up_ms = self._member.clock.monotonic_ms() + TAKE_OVER_MS
        while self._member.clock.monotonic_ms() < give_up_ms:
            ready = self._member.leadership.session is not None
            if ready and self._member.store.state().roster.generation > generation:
                return
            await self._member.leadership.wait_turn(100)
        raise Unavailable(f"{identity.node_id} has taken over and is about to lead: look again in some seconds")

    def _given_up(self) -> bool:
        """Does the log say so here?"""
        said = self._said()
        return is_given_up(self._member.store.state().roster, said.cluster_id, asker_of(said))

    def _said(self) -> pb.CoordinatorIdentity:
        identity, roster = self._identity(), self._member.store.state().roster
        return pb.CoordinatorIdentity(
            cluster_id=identity.cluster_id,
            node_id=identity.node_id,
            node_num=identity.node_num,
            store_id=identity.store_id,
            generation=roster.generation,
            recovered_ms=roster.recovered_ms,
        )

    def _admits(self, roster: Roster, asker: pb.CoordinatorIdentity) -> bool:
        names = [name for name, _ in self._member.coordinators.members]
        if asker.node_id not in names or asker.node_num:
            return False
        known = any((seat.node_id, seat.store_id) == (asker.node_id, asker.store_id) for seat in roster.seats)
        return known or not holder_of(roster, asker.node_id, names.index(asker.node_id) + 1)

    async def ask_others(self) -> dict[str, pb.RosterSurvey | str | None]:
        """What each of the others says, by name; SILENT, or UNREADABLE."""
        coordinators = self._member.coordinators
        others = {name: address for name, address in coordinators.members if name != coordinators.node_id}
        for address in others.values():
            if address not in self._channels:
                self._channels[address] = self._dial(address)
        said = self._said()
        asked = await asyncio.gather(*(ask(self._channels[address], said) for address in others.values()))
        return dict(zip(others, asked, strict=True))


async def ask(target: Channel, said: pb.CoordinatorIdentity) -> pb.RosterSurvey | str | None:
    """What a coordinator says; SILENT or UNREADABLE instead."""
    stub = roster_pb2_grpc.RosterStub(target.grpc)
    request = pb.RosterSurveyRequest(**{"from": said})
    try:
        answer: pb.RosterSurvey = await stub.Survey(request, timeout=ASK_TIMEOUT_MS / 1000, metadata=target.metadata)
    except grpc.aio.AioRpcError as error:
        return SILENT if error.code() in NOBODY_THERE else UNREADABLE
    return answer


def asker_of(said: pb.CoordinatorIdentity) -> Asker:
    return Asker(said.cluster_id, said.node_num, said.store_id, said.generation, said.recovered_ms)


def _ended(mine: str, source: str) -> StartupError:
    return StartupError(
        f"the coordinators went on without the data directory of {mine}, says {source}: "
        f"move it away and start {mine} with an empty one, and it is taken in again"
    )


def _heard(answer: pb.RosterSurvey | str | None) -> Heard:
    return _holding(answer) if isinstance(answer, pb.RosterSurvey) else answer


def _holding(answer: pb.RosterSurvey) -> Holding:
    return Holding(
        answer.identity.generation,
        answer.identity.recovered_ms,
        answer.last_term,
        answer.last_index,
        answer.leader_id,
        tuple(answer.voters),
    )
