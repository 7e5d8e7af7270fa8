"""Coordinators that are lost for good: asks all of them, and orders the recovery from the most complete one if the
quorum is lost, or the replacement of one from the leader if it is not.

Before a recovery storage nodes are asked too, which version of the map they have seen: what the survivor lacks of it is
lost, and has to be said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import grpc
import grpc.aio
from flotta_proto.flotta import roster_pb2 as pb
from flotta_proto.flotta import roster_pb2_grpc
from flotta_runtime.errors import InvalidArgument, PreconditionFailed
from flotta_runtime.server import Channel, Dial
from flotta_runtime.status import from_rpc_error

from flotta_admin.core.succession import READABLE, SILENT, UNREADABLE, Held, Succession, choose, leading
from flotta_admin.core.succession_models import CoordinatorHolding, CoordinatorRecovery, CoordinatorReplacement
from flotta_admin.probe import NodeOrders

ASK_TIMEOUT_S = 2.0
ORDER_TIMEOUT_S = 15.0
NOBODY_LEADS = (
    "no coordinator that answers knows a leader: wait some seconds, and if they have lost their quorum for good "
    "let the last one go on alone (POST /admin/coordinators/recover)"
)
NOBODY_THERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Successions:
    """Over connections that last for one order: it is given once in the life of a cluster, if ever."""

    def __init__(self, addresses: tuple[str, ...], dial: Dial, orders: NodeOrders) -> None:
        self._addresses = addresses
        self._dial = dial
        self._orders = orders

    async def recover(self, gone: Collection[str], confirm: str, *, dry_run: bool) -> CoordinatorRecovery:
        """Order it, or only say what would be done, or why it is refused. PreconditionFailed of an order that is."""
        channels: dict[str, Channel] = {}
        try:
            return await self._recover(channels, gone, confirm, dry_run=dry_run)
        finally:
            for each in channels.values():
                await each.close()

    async def _recover(
        self, channels: dict[str, Channel], gone: Collection[str], confirm: str, *, dry_run: bool
    ) -> CoordinatorRecovery:
        surveys, peers, states = await self._look(channels)
        held = [_held(one) for one in surveys.values()]
        choice = choose(held, states, gone)
        if isinstance(choice, Succession) and not dry_run and confirm != choice.best.node_id:
            message = f"confirm: it must be {choice.best.node_id}, which would go on, since changes may be lost"
            raise InvalidArgument(message, field="confirm")
        seen = await self._seen_map_version(surveys)
        answer = _answer(held, states, seen)
        if isinstance(choice, str):
            if not dry_run:
                raise PreconditionFailed(choice)
            return answer.model_copy(update={"refused": choice, "dry_run": True})
        best = choice.best
        request = pb.SeizeRosterRequest(
            replica=best.replica,
            last_term=best.last_term,
            last_index=best.last_index,
            gone=sorted(gone),
            given_up=choice.others,
            seen_term=choice.seen_term,
            seen_map_version=seen,
            dry_run=dry_run,
        )
        refused, message, map_version = "", "", 0
        try:
            reply = await self._seize(channels, peers[best.node_id], request)
            message, map_version = reply.message, reply.map_version
        except PreconditionFailed as error:
            if not dry_run:
                raise
            refused = error.message
        lacks = max(0, seen - best.map_version)
        if message and lacks:
            message += f"; of the map that storage nodes have seen it lacks up to {lacks} changes"
        told = {"node_id": best.node_id, "message": message, "map_version": map_version}
        return answer.model_copy(update={**told, "refused": refused, "dry_run": dry_run})

    async def replace(self, node_id: str, *, dry_run: bool) -> CoordinatorReplacement:
        """Have the leader give it up, or only say what would be done, or why it is refused."""
        channels: dict[str, Channel] = {}
        try:
            return await self._replace(channels, node_id, dry_run=dry_run)
        finally:
            for each in channels.values():
                await each.close()

    async def _replace(self, channels: dict[str, Channel], node_id: str, *, dry_run: bool) -> CoordinatorReplacement:
        surveys, peers, states = await self._look(channels)
        held = [_held(one) for one in surveys.values()]
        leader = leading(held)
        message, refused = "", ""
        try:
            if not leader:
                raise PreconditionFailed(NOBODY_LEADS)
            message = await self._give_up(channels, peers[leader], node_id, dry_run=dry_run)
        except PreconditionFailed as error:
            if not dry_run:
                raise
            refused = error.message
        return CoordinatorReplacement(
            message=message,
            dry_run=dry_run,
            refused=refused,
            node_id=node_id,
            leader_id=leader,
            voters=_voters(held),
            coordinators=_holdings(held, states),
        )

    async def _look(
        self, channels: dict[str, Channel]
    ) -> tuple[dict[str, pb.RosterSurvey], dict[str, str], dict[str, str]]:
        """What those say that answer, the address of each that is configured, and how it answers."""
        asked = await self._ask(channels, self._addresses)
        peers = {peer.node_id: peer.address for one in _surveys(asked).values() for peer in one.peers}
        asked |= await self._ask(channels, [address for address in peers.values() if address not in asked])
        surveys = _surveys(asked)
        if not surveys:
            raise PreconditionFailed("no coordinator answers, so there is none that could go on: start one")
        return surveys, peers, {name: _state(name, surveys, asked.get(address)) for name, address in peers.items()}

    async def _give_up(self, channels: dict[str, Channel], address: str, node_id: str, *, dry_run: bool) -> str:
        channel = channels.get(address) or self._dial(address)
        channels[address] = channel
        stub = roster_pb2_grpc.RosterStub(channel.grpc)
        request = pb.ReplaceCoordinatorRequest(node_id=node_id, dry_run=dry_run)
        try:
            reply = await stub.Replace(request, timeout=ORDER_TIMEOUT_S, metadata=channel.metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return str(reply.message)

    async def _ask(self, channels: dict[str, Channel], addresses: Collection[str]) -> dict[str, pb.RosterSurvey | str]:
        """What answers at each address: a survey, SILENT or UNREADABLE."""

        async def one(address: str) -> pb.RosterSurvey | str:
            channel = channels[address] = self._dial(address)
            stub = roster_pb2_grpc.RosterStub(channel.grpc)
            request = pb.RosterSurveyRequest()
            try:
                return await stub.Survey(request, timeout=ASK_TIMEOUT_S, metadata=channel.metadata)
            except grpc.aio.AioRpcError as error:
                return SILENT if error.code() in NOBODY_THERE else UNREADABLE

        return dict(zip(addresses, await asyncio.gather(*map(one, addresses)), strict=True))

    async def _seen_map_version(self, surveys: dict[str, pb.RosterSurvey]) -> int:
        """The greatest that a coordinator or a storage node answers; 0 of nodes that do not."""
        nodes = {address for one in surveys.values() for address in one.nodes.values()}
        answers = await asyncio.gather(*(self._orders.survey(address, "") for address in sorted(nodes)))
        seen = [one.map_version for one in answers if one is not None]
        return max([*seen, *(one.map_version for one in surveys.values())])

    async def _seize(
        self, channels: dict[str, Channel], address: str, request: pb.SeizeRosterRequest
    ) -> pb.SeizeRosterResponse:
        channel = channels[address]
        stub = roster_pb2_grpc.RosterStub(channel.grpc)
        try:
            return await stub.Seize(request, timeout=ORDER_TIMEOUT_S, metadata=channel.metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


def _surveys(asked: Mapping[str, pb.RosterSurvey | str]) -> dict[str, pb.RosterSurvey]:
    """By the name of who answered."""
    return {one.identity.node_id: one for one in asked.values() if isinstance(one, pb.RosterSurvey)}


def _state(name: str, surveys: dict[str, pb.RosterSurvey], answer: pb.RosterSurvey | str | None) -> str:
    if name in surveys:
        return READABLE
    return answer if isinstance(answer, str) else UNREADABLE


def _held(one: pb.RosterSurvey) -> Held:
    return Held(
        one.identity.node_id,
        one.replica,
        one.identity.generation,
        one.identity.recovered_ms,
        one.term,
        one.last_term,
        one.last_index,
        one.applied_index,
        one.map_version,
        one.leader_id,
        tuple(one.voters),
    )


def _answer(held: list[Held], states: dict[str, str], seen: int) -> CoordinatorRecovery:
    return CoordinatorRecovery(
        message="",
        dry_run=False,
        refused="",
        node_id="",
        map_version=0,
        seen_map_version=seen,
        voters=_voters(held),
        coordinators=_holdings(held, states),
    )


def _voters(held: list[Held]) -> list[str]:
    """As the one with the most complete log has it."""
    return sorted(max(held, key=lambda one: one.rank).voters)


def _holdings(held: list[Held], states: dict[str, str]) -> list[CoordinatorHolding]:
    by_name = {one.node_id: one for one in held}
    return [
        CoordinatorHolding(
            node_id=name,
            state=state.upper(),
            last_term=by_name[name].last_term if name in by_name else 0,
            last_index=by_name[name].last_index if name in by_name else 0,
            applied_index=by_name[name].applied_index if name in by_name else 0,
            map_version=by_name[name].map_version if name in by_name else 0,
            leader_id=by_name[name].leader_id or None if name in by_name else None,
        )
        for name, state in sorted(states.items())
    ]
