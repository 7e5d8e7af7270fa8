"""Asks storage nodes whether they are up. A bounded number at once, over connections that are kept for a while."""

from __future__ import annotations

import asyncio

import grpc.aio
from flotta_proto.kvdb import kvstore_pb2, kvstore_pb2_grpc
from flotta_runtime.server import Channel, Dial

CHANNELS_MAX = 64
PROBES_MAX = 32


class NodeProbe:
    """Pings nodes by address. `close()` when done."""

    def __init__(self, dial: Dial, ping_timeout_ms: int) -> None:
        self._dial = dial
        self._timeout_s = ping_timeout_ms / 1000
        self._channels: dict[str, Channel] = {}
        self._slots = asyncio.Semaphore(PROBES_MAX)

    async def ping(self, address: str) -> tuple[bool, str]:
        """(did it answer, its answer or why there was none)."""
        async with self._slots:
            stub = kvstore_pb2_grpc.KVServiceStub((await self._channel(address)).grpc)
            try:
                answer = await stub.Ping(kvstore_pb2.PingRequest(), timeout=self._timeout_s)
            except grpc.aio.AioRpcError as error:
                return False, f"{address} did not answer: {error.details() or error.code().name}"
            return True, answer.message

    async def close(self) -> None:
        """Close all connections."""
        for connection in list(self._channels.values()):
            await connection.close()
        self._channels.clear()

    async def _channel(self, address: str) -> Channel:
        found = self._channels.pop(address, None)
        if found is None:
            if len(self._channels) >= CHANNELS_MAX:
                await self._channels.pop(next(iter(self._channels))).close()
            found = self._dial(address)
        self._channels[address] = found  # moved to the end: the least recently used one goes first
        return found
