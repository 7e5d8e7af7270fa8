"""The storage node's stages: operation frame to reply frame at a leader, and entries to rows at a follower.

The leader is a real Raft host with real files and RocksDB whose groups have one voter, so a put is appended, synced,
committed and applied as ever; only the followers are missing. A follower's stage is what happens to entries that its
own host has delivered.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import flotta_native
from flotta_consensus.aio import GroupHost
from flotta_consensus.api import Members, replica_id
from flotta_consensus.core.driver import Driver
from flotta_consensus.core.effects import SendSnapshot
from flotta_consensus.core.host import HostCodes
from flotta_embedded.machine import Machine
from flotta_embedded.rocks import RocksEngine
from flotta_proto.flotta.storage_pb2 import GET, PUT, Operation, OperationFrame, Reply, ReplyFrame
from flotta_proto.kvdb.gateway_pb2 import EVENTUAL, Status
from flotta_runtime.clock import SYSTEM_CLOCK
from flotta_runtime.metrics import Metrics
from flotta_storage.batch_handler import BatchHandler, Deadlines
from flotta_storage.budget import Budget
from flotta_storage.core.commands import birth_rows, new_registry
from flotta_storage.core.limits import Limits
from flotta_storage.core.writes import Write, encode_payload, encode_write
from flotta_storage.hints import Hints
from flotta_storage.map_model import MapModel
from flotta_storage.reading import ReadBatcher
from flotta_storage.replica_table import Replica, ReplicaTable
from flotta_storage.scanning import Scanner
from flotta_storage.stamping import Stamps
from flotta_storage.telemetry import Telemetry
from path_inputs import EPOCH, SHARDS, VALUE, all_keys, random_keys, runs, shard_id_of


class NoPeers:
    """A transport with nobody to reach, and clocks of nobody."""

    def attach(self, receiver: object, incoming_dir: Path) -> None: ...

    def detach(self) -> None: ...

    def send(self, node_num: int, frame: bytes) -> None:
        raise RuntimeError("a group of one voter has nobody to send to")

    async def send_snapshot(self, offer: SendSnapshot, path: Path, progress: object) -> bool:
        return False

    async def run(self) -> None:
        await asyncio.Event().wait()

    def walls_ms(self, monotonic_ms: int) -> Sequence[int]:
        """Two peers whose clocks agree with ours."""
        wall_ms = SYSTEM_CLOCK.wall_ms()
        return (wall_ms, wall_ms)


class Node:
    """A storage node of one voter per shard, behind its batch handler."""

    def __init__(self, folder: Path) -> None:
        self.engine = RocksEngine(folder / "rocks")
        transport = NoPeers()
        self.host = GroupHost.open(folder, 1, {}, transport)
        self._running = asyncio.create_task(self.host.run())
        self.replicas = ReplicaTable()
        hints = Hints(MapModel(), "node-1")
        stamps = Stamps(SYSTEM_CLOCK, transport, 500, "node-1")
        budget = Budget(100_000, 1 << 30)
        deadlines = Deadlines()
        telemetry = Telemetry(Metrics("bench"))
        self.handler = BatchHandler(self.replicas, hints, stamps.now_ms, budget, Limits(), deadlines, telemetry)
        loop = asyncio.get_running_loop()
        reads = ReadBatcher(self.host, hints, stamps.now_ms, budget, deadlines, lambda end: loop.call_soon(end))
        scans = Scanner(self.host, hints, stamps.now_ms, deadlines, lambda end: loop.call_soon(end))
        self.handler.attach(self.host, reads, scans)

    async def open(self) -> None:
        registry = new_registry()
        elected = asyncio.Semaphore(0)
        self.host.on_role(lambda change: elected.release() if change.is_leader else None)
        for number in range(SHARDS):
            group, replica, shard_id = 100 + number, replica_id(1, number + 1), f"shard-{number}"
            rows = birth_rows(shard_id, "default", number, SHARDS)
            machine = Machine.create(self.engine, f"g{group}", registry, members=Members((replica,)), rows=rows)
            await self.host.create_group(group, replica, [replica], machine)
            self.host.campaign(group)
            self.replicas.add(Replica(shard_id, group, replica, machine))
        for _ in self.replicas:
            await elected.acquire()

    async def execute(self, frame: bytes) -> bytes:
        """One frame in, all of its replies in one frame out."""
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        operations = OperationFrame.FromString(frame).operations
        expected = len(operations)
        found: list[Reply] = []

        def reply(replies: list[Reply]) -> None:
            found.extend(replies)
            if len(found) == expected:
                done.set_result(ReplyFrame(replies=found).SerializeToString())

        self.handler.handle(operations, reply)
        return await done

    async def close(self) -> None:
        await self.host.close()
        await self._running
        self.engine.close()


class LeaderPuts:
    """Frames of puts, answered once they are synced and applied."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._frames: list[bytes] = []
        self._answers: list[bytes] = []
        self._expected = 0
        self._calls = itertools.count(1)

    @classmethod
    async def start(cls, folder: Path) -> LeaderPuts:
        node = Node(folder)
        await node.open()
        stage = cls(node)
        await stage.fill()
        return stage

    async def fill(self) -> None:
        """Every key is there before anything is measured."""
        for keys in runs(all_keys(), 500):
            await self._node.execute(OperationFrame(operations=[self.put(key) for key in keys]).SerializeToString())

    def put(self, key: bytes) -> Operation:
        return Operation(
            call=next(self._calls),
            kind=PUT,
            key=key,
            value=VALUE,
            shard_id=shard_id_of(key),
            epoch=EPOCH,
            deadline_ms=5_000,
        )

    def operation(self, key: bytes) -> Operation:
        return self.put(key)

    async def load(self, operations: int, batch: int) -> None:
        self._expected = operations
        self._answers = []
        self._frames = [
            OperationFrame(operations=[self.operation(key) for key in keys]).SerializeToString()
            for keys in runs(random_keys(operations), batch)
        ]

    async def run(self) -> None:
        for frame in self._frames:
            self._answers.append(await self._node.execute(frame))

    def check(self) -> None:
        codes = [reply.code for answer in self._answers for reply in ReplyFrame.FromString(answer).replies]
        if codes != [Status.OK] * self._expected:
            raise SystemExit(f"error: {self._expected} operations, answers {set(codes)} of {len(codes)}")

    async def close(self) -> None:
        await self._node.close()


class StrongGets(LeaderPuts):
    """Frames of linearizable reads: barrier, multi-get, reply."""

    def operation(self, key: bytes) -> Operation:
        return Operation(
            call=next(self._calls), kind=GET, key=key, shard_id=shard_id_of(key), epoch=EPOCH, deadline_ms=1_500
        )


class EventualGets(LeaderPuts):
    """Frames of reads of the state as it is."""

    def operation(self, key: bytes) -> Operation:
        return Operation(
            call=next(self._calls),
            kind=GET,
            key=key,
            shard_id=shard_id_of(key),
            epoch=EPOCH,
            deadline_ms=1_500,
            consistency=EVENTUAL,
        )


class ScriptedHost:
    """Delivers what it is told to; nothing is proposed on a follower."""

    def __init__(self) -> None:
        self.applies: list[tuple[int, int, int, int, int, bytes]] = []

    def groups(self) -> list[int]:
        return [100]

    def pending_install(self, group: int) -> None:
        return None

    def poll(self) -> Any:
        applies, self.applies = self.applies, []
        return SimpleNamespace(
            messages=(), snapshot_messages=(), applies=applies, roles=(), reads=(), dropped=(),
            snapshots_wanted=(), compactions_wanted=(), events=(),
        )  # fmt: skip


class FollowerApply:
    """Committed puts of one shard, as the host delivers them, into the rows."""

    def __init__(self, folder: Path) -> None:
        self._engine = RocksEngine(folder / "rocks")
        rows = birth_rows("shard-0", "default", 0, 1)
        members = Members((replica_id(1, 1), replica_id(2, 1)))
        self._machine = Machine.create(self._engine, "g100", new_registry(), members=members, rows=rows)
        self._host = ScriptedHost()
        self._driver = Driver(cast("Any", self._host), HostCodes.of(flotta_native), send=lambda node, frame: None)
        self._driver.open_group(100, self._machine)
        self._batches: list[list[tuple[int, int, int, int, int, bytes]]] = []
        self._last = 0

    @classmethod
    async def start(cls, folder: Path) -> FollowerApply:
        return cls(folder)

    async def load(self, operations: int, batch: int) -> None:
        index = self._machine.applied_index()
        now_ms = SYSTEM_CLOCK.wall_ms()
        self._batches = []
        for keys in runs(random_keys(operations), batch):
            items = []
            for key in keys:
                index += 1
                payload = encode_payload(now_ms, encode_write(Write(key, VALUE, epoch=EPOCH)))
                items.append((100, index, 2, 0, flotta_native.APPLY_NORMAL, payload))
            self._batches.append(items)
        self._last = index

    async def run(self) -> None:
        for batch in self._batches:
            self._host.applies = batch
            self._driver.turn(0)

    def check(self) -> None:
        if self._machine.applied_index() != self._last:
            raise SystemExit(f"error: applied {self._machine.applied_index()} of {self._last}")

    async def close(self) -> None:
        self._engine.close()
