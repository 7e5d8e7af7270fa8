"""Asks storage nodes themselves: whether they are up, and to compact. Over connections that are kept for a while.

Pings carry no token: an address that somebody registered may be anybody's. The order to compact is for nodes that the
cluster takes for its own, and carries it. Invariant: a bounded number of calls at once, and of connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc.aio
from flotta_proto.flotta import storage_pb2, storage_pb2_grpc
from flotta_proto.kvdb import kvstore_pb2, kvstore_pb2_grpc
from flotta_runtime.server import Channel, Dial

CHANNELS_MAX = 64
PROBES_MAX = 32
DIGEST_TIMEOUT_S = 300.0  # all rows of a replica are read


class NodeCalls:
    """Connections to nodes by address. `close()` when done."""

    def __init__(self, dial: Dial, timeout_ms: int) -> None:
        self._dial = dial
        self._channels: dict[str, Channel] = {}
        self.timeout_s = timeout_ms / 1000
        self.slots = asyncio.Semaphore(PROBES_MAX)

    async def close(self) -> None:
        """Close all connections."""
        for connection in list(self._channels.values()):
            await connection.close()
        self._channels.clear()

    async def channel(self, address: str) -> Channel:
        found = self._channels.pop(address, None)
        if found is None:
            if len(self._channels) >= CHANNELS_MAX:
                await self._channels.pop(next(iter(self._channels))).close()
            found = self._dial(address)
        self._channels[address] = found  # moved to the end: the least recently used one goes first
        return found


class NodeProbe(NodeCalls):
    """Pings nodes."""

    async def ping(self, address: str) -> tuple[bool, str]:
        """(did it answer, its answer or why there was none)."""
        async with self.slots:
            stub = kvstore_pb2_grpc.KVServiceStub((await self.channel(address)).grpc)
            try:
                answer = await stub.Ping(kvstore_pb2.PingRequest(), timeout=self.timeout_s)
            except grpc.aio.AioRpcError as error:
                return False, f"{address} did not answer: {error.details() or error.code().name}"
            return True, answer.message


class NodeOrders(NodeCalls):
    """Gives orders to nodes, and asks what only the cluster may."""

    async def survey(self, address: str, shard_id: str) -> storage_pb2.SurveyResponse | None:
        """What the node says of its replica of a shard; None if it does not answer."""
        async with self.slots:
            connection = await self.channel(address)
            request = storage_pb2.SurveyRequest(shard_id=shard_id)
            stub = storage_pb2_grpc.ShardsStub(connection.grpc)
            try:
                return await stub.Survey(request, timeout=self.timeout_s, metadata=connection.metadata)
            except grpc.aio.AioRpcError:
                return None

    async def digest(self, address: str, shard_id: str) -> storage_pb2.ReplicaDigest | str:
        """What the node's replica of a shard holds; or why that is not known."""
        async with self.slots:
            connection = await self.channel(address)
            request = storage_pb2.DigestRequest(shard_id=shard_id)
            stub = storage_pb2_grpc.ShardsStub(connection.grpc)
            try:
                answer = await stub.Digest(request, timeout=DIGEST_TIMEOUT_S, metadata=connection.metadata)
            except grpc.aio.AioRpcError as error:
                return f"{error.details() or error.code().name}"
            return answer.replicas[0]

    async def compact(
        self,
        address: str,
        shard_ids: Sequence[str],
        what: storage_pb2.CompactRequest.What.ValueType = storage_pb2.CompactRequest.ORDER,
    ) -> tuple[int, str]:
        """(how many replicas it has to compact, why it did not answer; empty if it did)."""
        async with self.slots:
            connection = await self.channel(address)
            request = storage_pb2.CompactRequest(shard_ids=shard_ids, what=what)
            stub = storage_pb2_grpc.ShardsStub(connection.grpc)
            try:
                answer = await stub.Compact(request, timeout=self.timeout_s, metadata=connection.metadata)
            except grpc.aio.AioRpcError as error:
                return 0, f"{error.details() or error.code().name}"
            return answer.replicas, ""
