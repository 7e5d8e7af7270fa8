"""Asks other nodes whether a replica is still a member of its group: the only way a replica here is ever removed."""

from __future__ import annotations

import asyncio

import grpc.aio
from flotta_proto.flotta import storage_pb2 as pb
from flotta_proto.flotta.storage_pb2_grpc import ShardsStub
from flotta_runtime.logging import get_logger
from flotta_runtime.server import Channel, Dial

from flotta_storage.core.replicas import AskMembership, MapView, MembershipAnswer

ASK_TIMEOUT_MS = 4_000  # the asked node does a read barrier
ASKING_MAX = 8


class Nodes:
    """Connections to other nodes, made when they are first needed."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._channels: dict[str, Channel] = {}

    def to(self, address: str) -> Channel:
        link = self._channels.get(address)
        if link is None:
            link = self._channels[address] = self._dial(address)
        return link

    async def close(self) -> None:
        made, self._channels = self._channels, {}
        await asyncio.gather(*(one.close() for one in made.values()))


class MembershipAsker:
    """One question goes to all candidate nodes in turn until one of them knows."""

    def __init__(self, dial: Dial) -> None:
        self.nodes = Nodes(dial)
        self._slots = asyncio.Semaphore(ASKING_MAX)
        self._log = get_logger("storage.membership")

    async def ask(self, question: AskMembership, view: MapView) -> MembershipAnswer:
        async with self._slots:
            for node_id in question.nodes:
                address = view.nodes.get(node_id, "")
                answer = await self._ask_node(question, address) if address else None
                if answer is not None and answer.known:
                    return MembershipAnswer(question.group, question.replica, known=True, member=answer.member)
        return MembershipAnswer(question.group, question.replica, known=False, member=False)

    async def _ask_node(self, question: AskMembership, address: str) -> pb.MembershipResponse | None:
        link = self.nodes.to(address)
        request = pb.MembershipRequest(group_id=question.group, replica_id=question.replica)
        try:
            return await ShardsStub(link.grpc).MembershipOf(
                request, timeout=ASK_TIMEOUT_MS / 1000, metadata=link.metadata
            )
        except grpc.aio.AioRpcError as error:
            self._log.debug("membership not answered", node=address, reason=error.details())
            return None

    async def close(self) -> None:
        await self.nodes.close()
