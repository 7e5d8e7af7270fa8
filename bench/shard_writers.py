"""A few writers on every shard that never stop, and remember when each shard acknowledged a write.

Each key has one writer, whose values only count up, so at the end a value below the last acknowledged one is a lost
write. Silence is what a client sees: the longest time in which no write of a shard was acknowledged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import grpc.aio
from flotta_proto.kvdb import gateway_pb2 as pb
from flotta_proto.kvdb.gateway_pb2_grpc import KvGatewayStub

CALL_TIMEOUT_S = 3
RETRY_S = 0.005
PROBE_KEYS_MAX = 20_000


class ShardWriters:
    """`per_shard` writers on each of `shards` shards through one gateway."""

    def __init__(self, address: str, shards: int, per_shard: int) -> None:
        self._channel = grpc.aio.insecure_channel(
            address, options=[("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        )
        self._stub = KvGatewayStub(self._channel)
        self._shards, self._per_shard = shards, per_shard
        self._keys: dict[bytes, str] = {}
        self._acknowledged: dict[bytes, int] = {}
        self._stopping = False
        self.acks: dict[str, list[float]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ShardWriters]:
        """They write inside; after it every acknowledged write has been read back."""
        await self._choose_keys()
        try:
            async with asyncio.TaskGroup() as group:
                for key in self._keys:
                    group.create_task(self._write(key))
                try:
                    yield self
                finally:
                    self._stopping = True
            await self._read_back()
        finally:
            await self._channel.close()

    async def _choose_keys(self) -> None:
        """Keys for every shard; a reply says which shard its key is in."""
        for number in range(PROBE_KEYS_MAX):
            if len(self.acks) == self._shards and len(self._keys) == self._shards * self._per_shard:
                return
            key = b"writer-%d" % number
            reply = await self._stub.Put(pb.PutRequest(key=key, value=b"0"), timeout=CALL_TIMEOUT_S)
            shard = reply.status.shard_id
            if reply.status.code != pb.Status.OK:
                raise SystemExit(f"error: put of {key!r}: {reply.status.message}")
            self.acks.setdefault(shard, [])
            if sum(1 for each in self._keys.values() if each == shard) < self._per_shard:
                self._keys[key] = shard
                self._acknowledged[key] = 0
        raise SystemExit(f"error: {PROBE_KEYS_MAX} keys did not reach all of {self._shards} shards")

    async def _write(self, key: bytes) -> None:
        value, times = 0, self.acks[self._keys[key]]
        while not self._stopping:
            value += 1
            request = pb.PutRequest(key=key, value=b"%d" % value)
            try:
                reply = await self._stub.Put(request, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(RETRY_S)
                continue
            if reply.status.code == pb.Status.OK:
                self._acknowledged[key] = value
                times.append(time.monotonic())
            else:
                await asyncio.sleep(RETRY_S)

    async def _read_back(self) -> None:
        lost = []
        for key, acknowledged in self._acknowledged.items():
            reply = await self._stub.Get(pb.GetRequest(key=key), timeout=CALL_TIMEOUT_S)
            if reply.status.code != pb.Status.OK or int(reply.kv.value) < acknowledged:
                lost.append(f"{key!r}: {reply.kv.value!r} where {acknowledged} was acknowledged")
        if lost:
            raise SystemExit(f"error: lost writes: {lost}")

    async def all_acknowledge(self, since: float, shards: Sequence[str], seconds: float = 60) -> None:
        """Wait until each of the shards has acknowledged a write after that moment."""
        deadline = time.monotonic() + seconds
        while not all(self.acks[shard] and self.acks[shard][-1] > since for shard in shards):
            if time.monotonic() > deadline:
                silent = [shard for shard in shards if not self.acks[shard] or self.acks[shard][-1] <= since]
                raise SystemExit(f"error: no write acknowledged in {seconds:.0f} s by {', '.join(silent)}")
            await asyncio.sleep(0.02)


def longest_silence_s(acks: Sequence[float], since: float, until: float) -> float:
    """The longest time between `since` and `until` in which nothing was acknowledged."""
    inside = [moment for moment in acks if since < moment < until]
    marks = [since, *inside, until]
    return max(after - before for before, after in pairwise(marks))


def first_after_s(acks: Sequence[float], since: float) -> float:
    """How long after `since` the first acknowledgement came."""
    return next(moment for moment in acks if moment > since) - since
