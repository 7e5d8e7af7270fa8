"""How processes of one cluster introduce themselves, and what makes one refuse another.

Every stream carries who it comes from and whom it is meant for. Before anything of it counts, the cluster must be
ours, the addressee must be us, and the sender's store must be the one on record (or is put on record, durably).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flotta_proto.flotta import raft_pb2
from google.protobuf.message import DecodeError

from flotta_consensus.identity import DataDirectory, Identity, IdentityError

TOKEN_KEY = "x-kvdb-internal-token"
_CLUSTER_KEY = "x-flotta-cluster-id"
NODE_KEY = "x-flotta-node-id"
_NUMBER_KEY = "x-flotta-node-num"
_STORE_KEY = "x-flotta-store-id"
_TO_KEY = "x-flotta-to-node-num"

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a process says of itself, and of us."""

    identity: Identity
    known_store_id: str  # what it has on record for our node id; empty: never met

    @classmethod
    def of(cls, message: raft_pb2.Identity) -> Answer:
        return cls(
            Identity(message.node_id, message.store_id, message.cluster_id, message.node_num), message.known_store_id
        )

    @classmethod
    def parse(cls, data: bytes) -> Answer:
        """From a serialised message. IdentityError if it is none."""
        try:
            return cls.of(raft_pb2.Identity.FromString(data))
        except DecodeError as error:
            raise IdentityError("what answers says nothing that can be read of who it is") from error


def to_message(identity: Identity, known_store_id: str = "") -> raft_pb2.Identity:
    return raft_pb2.Identity(
        cluster_id=identity.cluster_id,
        node_id=identity.node_id,
        node_num=identity.node_num,
        store_id=identity.store_id,
        known_store_id=known_store_id,
    )


def token_metadata(token: str) -> Metadata:
    return ((TOKEN_KEY, token),) if token else ()


def stream_metadata(identity: Identity, to_node_num: int, token: str) -> Metadata:
    return (
        *token_metadata(token),
        (_CLUSTER_KEY, identity.cluster_id),
        (NODE_KEY, identity.node_id),
        (_NUMBER_KEY, str(identity.node_num)),
        (_STORE_KEY, identity.store_id),
        (_TO_KEY, str(to_node_num)),
    )


class PeerGuard:
    """Decides who may send to this process. IdentityError is the refusal, in one sentence for both operators."""

    def __init__(self, directory: DataDirectory, token: str) -> None:
        self._directory = directory
        self._token = token
        self._recording = asyncio.Lock()

    def right_token(self, metadata: Mapping[str, str]) -> bool:
        return hmac.compare_digest(metadata.get(TOKEN_KEY, "").encode(), self._token.encode())

    async def admit_stream(self, metadata: Mapping[str, str]) -> int:
        """The sender's node number, its identity checked and on record."""
        mine = self._directory.identity
        to = metadata.get(_TO_KEY, "")
        if to != str(mine.node_num):
            raise IdentityError(f"this is {mine.node_id}, number {mine.node_num}; the message was meant for '{to}'")
        number = metadata.get(_NUMBER_KEY, "")
        if not number.isascii() or not number.isdigit() or len(number) > 10:
            raise IdentityError(f"'{number}' is not a node number")
        sender = Identity(
            metadata.get(NODE_KEY, ""), metadata.get(_STORE_KEY, ""), metadata.get(_CLUSTER_KEY, ""), int(number)
        )
        await self._admit(sender)
        return sender.node_num

    async def admit_answer(self, answer: Answer, to_node_num: int) -> None:
        """Check who answered at the address of a peer before anything is sent there."""
        mine = self._directory.identity
        if answer.identity.node_num != to_node_num:
            raise IdentityError(
                f"node number {to_node_num} was expected, {answer.identity.node_id or 'an unnamed process'} "
                f"with number {answer.identity.node_num} answered"
            )
        if answer.known_store_id not in ("", mine.store_id):
            raise IdentityError(
                f"{answer.identity.node_id} knows {mine.node_id} with store {answer.known_store_id}, not with "
                f"{mine.store_id}: this data directory is not the one that took part before"
            )
        await self._admit(answer.identity)

    async def _admit(self, peer: Identity) -> None:
        mine = self._directory.identity
        if not mine.cluster_id or peer.cluster_id != mine.cluster_id:
            raise IdentityError(
                f"{peer.node_id or 'a process'} belongs to cluster '{peer.cluster_id}', "
                f"{mine.node_id} belongs to cluster '{mine.cluster_id}'"
            )
        peers = self._directory.peers
        if peers.check(peer.node_num, peer.node_id, peer.store_id):
            return
        async with self._recording:
            await asyncio.to_thread(peers.record, peer.node_num, peer.node_id, peer.store_id)


def readable(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """Text metadata of a call; binary values are none of ours."""
    return {key: value for key, value in metadata or () if isinstance(value, str)}
