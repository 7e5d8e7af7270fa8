"""Load whose every acknowledgement is remembered: one writer per key, values that only count up.

Because a key has one writer that waits for each answer, the value read later must be the last acknowledged one, or
one whose outcome was unknown and that was tried after it. Anything else is a lost or invented write.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio
from flotta_proto.kvdb import gateway_pb2
from flotta_runtime.tls import Tls
from process_cluster import Client, until

FAILURES_KEPT = 100
PATIENT_S = 30
OK = gateway_pb2.Status.OK
CERTAINLY_NOT = {
    gateway_pb2.Status.UNAVAILABLE,
    gateway_pb2.Status.NOT_LEADER,
    gateway_pb2.Status.SHARD_MOVED,
    gateway_pb2.Status.RATE_LIMITED,
}


@dataclass
class KeyRecord:
    """What one writer knows of its key."""

    acknowledged: int = 0
    maybe: set[int] = field(default_factory=set)
    version: int = 0

    def allows(self, value: int) -> bool:
        return value == self.acknowledged or value in self.maybe


@dataclass
class Load:
    """Writers over keys, through several gateways; `acks` holds the monotonic time of every acknowledgement."""

    addresses: list[str]
    keys: list[bytes]
    records: dict[bytes, KeyRecord] = field(default_factory=dict)
    acks: dict[bytes, list[float]] = field(default_factory=dict)
    version_regressions: list[str] = field(default_factory=list)
    stopping: bool = False
    value_bytes: int = 0  # values are filled up with spaces to this length
    tls: Tls | None = None
    # After each acknowledgement, so that the load does not take all of the machine from processes that start.
    pause_s: float = 0.01
    failures: list[str] = field(default_factory=list)  # calls without an answer, the first of them
    # Soon given up, so that writers go on where an answer may be lost; PATIENT_S where no call may fail, as one that is
    # only slow would.
    timeout_s: float = 3

    def __post_init__(self) -> None:
        for key in self.keys:
            self.records.setdefault(key, KeyRecord())
            self.acks.setdefault(key, [])

    async def run(self) -> None:
        clients = [Client(address, self.tls) for address in self.addresses]
        try:
            async with asyncio.TaskGroup() as group:
                for n, key in enumerate(self.keys):
                    group.create_task(self._write(key, clients, n))
        finally:
            for client in clients:
                await client.close()

    async def _write(self, key: bytes, clients: list[Client], turn: int) -> None:
        record, value = self.records[key], self.records[key].acknowledged
        while not self.stopping:
            value, turn = value + 1, turn + 1
            try:
                client, filled = clients[turn % len(clients)], (b"%d" % value).ljust(self.value_bytes)
                reply = await client.put(key, filled, timeout=self.timeout_s)
            except grpc.aio.AioRpcError as error:
                self._failed(f"{error.code().name}: {error.details()}")
                record.maybe.add(value)
                await asyncio.sleep(0.02)
                continue
            if reply.status.code == OK:
                if reply.version <= record.version:
                    self.version_regressions.append(f"{key!r}: {record.version} then {reply.version}")
                record.acknowledged, record.version = value, reply.version
                record.maybe = {attempt for attempt in record.maybe if attempt > value}
                self.acks[key].append(time.monotonic())
                await asyncio.sleep(self.pause_s)
            else:
                self._failed(f"answered {reply.status.code}: {reply.status.message}")
                if reply.status.code not in CERTAINLY_NOT:
                    record.maybe.add(value)
                await asyncio.sleep(0.02)

    def _failed(self, why: str) -> None:
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(why)

    def total(self) -> int:
        return sum(len(times) for times in self.acks.values())

    def gap_after(self, moment: float, keys: list[bytes]) -> float:
        """The longest silence, over the given keys, of an interval that reaches past `moment`."""
        longest = 0.0
        for key in keys:
            before = [t for t in self.acks[key] if t <= moment]
            after = [t for t in self.acks[key] if t > moment]
            if not after:
                raise AssertionError(f"no write of {key!r} succeeded after the kill")
            longest = max(longest, after[0] - (before[-1] if before else moment))
        return longest

    async def verify(self, address: str) -> int:
        """Read every key; returns how many were checked. AssertionError names each lost or invented write."""
        client, wrong = Client(address, self.tls), []
        try:
            for key, record in self.records.items():
                reply = await client.get(key, timeout=60)
                value = int(reply.kv.value) if reply.status.code == OK else 0
                if not record.allows(value):
                    wrong.append(f"{key!r}: read {value}, acknowledged {record.acknowledged}, maybe {record.maybe}")
        finally:
            await client.close()
        if wrong or self.version_regressions:
            raise AssertionError("\n".join([*wrong, *self.version_regressions]))
        return len(self.records)


@asynccontextmanager
async def under_load(load: Load) -> AsyncIterator[None]:
    """The load runs inside, and has ended after it."""
    load.stopping = False
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        try:
            yield
        finally:
            load.stopping = True


async def acks_grow(load: Load, keys: list[bytes], by: int = 3) -> None:
    """Every one of the keys is acknowledged again, several times."""
    start = {key: len(load.acks[key]) for key in keys}

    async def grown() -> bool:
        return all(len(load.acks[key]) >= start[key] + by for key in keys)

    await until(grown, f"writes of {len(keys)} keys go on")
