"""How an empty member of a fixed set (a coordinator) becomes part of the cluster, once.

A directory without a past may only join while it is certain that its node never voted from another directory:
every other configured member must answer, and none may know the node under another store. The cluster's id is made
by the first configured member, when everybody is empty; whoever finds an id adopts it. Who answered is put on record
durably before the id is, so a directory that is lost later cannot come back unnoticed.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import grpc
from flotta_proto.flotta import raft_pb2, raft_pb2_grpc

from flotta_consensus.frame_stream import CHANNEL_OPTIONS, ChannelFactory
from flotta_consensus.identity import DataDirectory, Identity, IdentityError
from flotta_consensus.peer_identity import Answer, to_message, token_metadata

Probe = Callable[[str, Identity], Awaitable[Answer | None]]
"""(address, who asks) -> the answer, None if there was none."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet. `reason` is for the operator."""

    reason: str


@dataclass(frozen=True, slots=True)
class Adopt:
    """Become part of this cluster."""

    cluster_id: str


@dataclass(frozen=True, slots=True)
class Found:
    """Nobody has a cluster yet, and it is this member's turn to make one."""


def decide(me: Identity, members: Sequence[str], answers: Mapping[str, Answer | None]) -> Wait | Adopt | Found:
    """What an empty member does about the answers of the others. IdentityError: it must not start."""
    others = [member for member in members if member != me.node_id]
    silent = [member for member in others if answers.get(member) is None]
    heard = {member: answer for member, answer in answers.items() if answer is not None}
    for member, answer in heard.items():
        if answer.identity.node_id != member:
            raise IdentityError(f"the address given for {member} is answered by {answer.identity.node_id}")
        if answer.known_store_id not in ("", me.store_id):
            raise IdentityError(
                f"{me.node_id} starts with an empty data directory, but {member} knows it with store "
                f"{answer.known_store_id}: bring back its old directory, or replace the member"
            )
    clusters = {member: answer.identity.cluster_id for member, answer in heard.items() if answer.identity.cluster_id}
    if len(set(clusters.values())) > 1:
        told = ", ".join(f"{member} to {clusters[member]}" for member in sorted(clusters))
        raise IdentityError(f"the configured members belong to different clusters: {told}")
    if silent:
        return Wait(f"an empty member joins only when all others answer; waiting for {', '.join(sorted(silent))}")
    if clusters:
        return Adopt(next(iter(clusters.values())))
    if me.node_id == members[0]:
        return Found()
    return Wait(f"waiting for {members[0]} to found the cluster")


async def join_members(
    directory: DataDirectory,
    members: Mapping[str, str],
    probe: Probe,
    *,
    retry_ms: int = 250,
    report: Callable[[str], None] = lambda text: None,
    new_cluster_id: Callable[[], str] = lambda: uuid.uuid4().hex,
) -> Identity:
    """Make `directory` part of the cluster of `members` (node id -> address, in configured order; the position,
    from 1, is the node number). Returns at once if it is already. The transport must be serving `Identify`.
    Waits without end for members that do not answer; bound it from outside. IdentityError: do not start."""
    order = list(members)
    me = directory.identity
    if me.node_id not in members:
        raise IdentityError(f"node {me.node_id} is not among the configured members: {', '.join(order)}")
    node_num = order.index(me.node_id) + 1
    if me.cluster_id:
        return directory.adopt(me.cluster_id, node_num)
    others = [member for member in order if member != me.node_id]
    last_reason = ""
    while True:
        replies = await asyncio.gather(*(probe(members[member], me) for member in others))
        answers = dict(zip(others, replies, strict=True))
        decision = decide(me, order, answers)
        if not isinstance(decision, Wait):
            break
        if decision.reason != last_reason:
            last_reason = decision.reason
            report(decision.reason)
        await asyncio.sleep(retry_ms / 1000)
    cluster_id = decision.cluster_id if isinstance(decision, Adopt) else new_cluster_id()

    def settle() -> Identity:
        for member, answer in answers.items():
            if answer is not None:
                directory.peers.record(order.index(member) + 1, member, answer.identity.store_id)
        return directory.adopt(cluster_id, node_num)

    return await asyncio.to_thread(settle)


def grpc_probe(channels: ChannelFactory, token: str, timeout_ms: int = 1_000) -> Probe:
    """Ask over gRPC."""

    async def probe(address: str, me: Identity) -> Answer | None:
        async with channels(address, CHANNEL_OPTIONS) as channel:
            try:
                message = await raft_pb2_grpc.RaftTransportStub(channel).Identify(
                    raft_pb2.IdentifyRequest(**{"from": to_message(me)}),
                    metadata=token_metadata(token),
                    timeout=timeout_ms / 1000,
                )
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                    raise IdentityError(f"{address} refuses this process's internal token") from error
                return None
        return Answer.of(message)

    return probe
