"""Shards that hold rows and answer scans as storage nodes do, behind a real dispatcher; they can be divided at will."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast
from unittest.mock import patch

from flotta_gateway.call import Admission, Call, Links
from flotta_gateway.core.scans import ScanLimits
from flotta_gateway.core.shard_map import ShardMap
from flotta_gateway.core.validation import Limits
from flotta_gateway.dispatcher import Dispatcher, DispatcherOptions
from flotta_gateway.scanner import Scanner
from flotta_gateway.storage_link import Attempt
from flotta_proto.flotta.kv_pb2 import ScanRequest, ScanResponse
from flotta_proto.flotta.storage_pb2 import Operation, Reply
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.clock import SYSTEM_CLOCK
from flotta_runtime.hashing import shard_index
from flotta_storage.core import keys, scans
from flotta_storage.core.rows import encode_row
from flotta_storage.core.scans import Cursor
from flotta_storage.core.shard_state import ShardState
from gateway_support import Observer

NODES = ("node-0:1", "node-1:1")
Answer = Callable[[Operation], Reply | None]


class SortedView:
    """Rows of one shard."""

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self._rows = sorted((keys.data_key(key), encode_row(1, 1, 1, 0, value)) for key, value in rows.items())

    def get(self, key: bytes) -> bytes | None:
        return dict(self._rows).get(key)

    def multi_get(self, names: Sequence[bytes]) -> list[bytes | None]:
        return [self.get(name) for name in names]

    def scan(self, low: bytes, high: bytes | None, *, reverse: bool = False, limit: int | None = None) -> Any:
        found = [row for row in self._rows if row[0] >= low and (high is None or row[0] < high)]
        return iter((found[::-1] if reverse else found)[:limit])


class Node:
    """Answers what it is handed in the next pass of the loop."""

    up = True
    operations_open = 0

    def __init__(self, address: str, world: ScanWorld) -> None:
        self.address = address
        self._world = world

    def submit(self, attempts: Sequence[Attempt[Call]]) -> None:
        asyncio.get_running_loop().call_soon(self._answer, list(attempts))

    def _answer(self, attempts: Sequence[Attempt[Call]]) -> None:
        answered = []
        for attempt in attempts:
            reply = self._world.carry_out(self.address, Operation.FromString(attempt.payload))
            if reply is not None:
                answered.append((attempt, reply))
        self._world.dispatcher.replied(self.address, answered)

    def forget(self, attempt: Attempt[Call]) -> bool:
        return True


class ScanWorld:
    """`shards` shards over `rows`, all led by the first node. `script` answers instead of the shards where it does not
    return None; `steps_max` ends a piece after so many steps of `step_rows`, as a busy node does."""

    answered = True

    def __init__(
        self, rows: dict[bytes, bytes], shards: int = 3, admission: Admission | None = None, **limits: int
    ) -> None:
        self.rows = rows
        self.classes = {f"shard-{index}": (index, shards) for index in range(shards)}
        self.epochs = dict.fromkeys(self.classes, 1)
        self.asked: list[tuple[str, Operation]] = []
        self.script: Answer = lambda operation: None
        self.steps_max = 0
        self.step_rows = 128
        self.refreshes = 0
        self.current = ShardMap()
        self.publish(shards)
        self._nodes = {address: Node(address, self) for address in NODES}
        options = DispatcherOptions(calls_max=2_000)
        links = cast("Links", self)
        self.dispatcher = Dispatcher(
            self, links, Observer(), SYSTEM_CLOCK, lambda: 0.5, Limits(1_000), options, admission
        )
        self.scanner = Scanner(self.dispatcher, self, SYSTEM_CLOCK, ScanLimits(**limits), admission)

    def publish(self, num_shards: int) -> None:
        """A new map: that many shards to route to, and records of all there are."""
        state = pb.ClusterState(map_version=self.current.version + 1, cluster_id="c")
        state.partitioning.num_shards = num_shards
        for number, address in enumerate(NODES):
            state.nodes[f"node-{number}"].CopyFrom(pb.NodeRecord(node_id=f"node-{number}", address=address))
        for shard_id, epoch in self.epochs.items():
            record = pb.ShardRecord(shard_id=shard_id, leader="node-0", epoch=epoch, replicas=["node-0", "node-1"])
            state.shards[shard_id].CopyFrom(record)
        self.current = self.current.with_state(state)

    def divide(self, shard_id: str, into: int) -> None:
        """One shard becomes so many; the map goes on to route as before."""
        index, count = self.classes[shard_id]
        for child in range(into):
            name = f"shard-{index + child * count}"
            self.classes[name] = (index + child * count, count * into)
            self.epochs[name] = self.epochs.get(name, 0) + 1
        self.publish(self.current.num_shards)

    def refresh_soon(self) -> None:
        self.refreshes += 1

    def link_to(self, address: str) -> Node:
        return self._nodes[address]

    def carry_out(self, address: str, operation: Operation) -> Reply | None:
        self.asked.append((address, operation))
        said = self.script(operation)
        if said is not None:
            said.call = operation.call
            return said
        if operation.shard_id not in self.classes or operation.epoch not in (0, self.epochs[operation.shard_id]):
            return Reply(call=operation.call, code=Status.SHARD_MOVED, shard_id=operation.shard_id)
        index, count = self.classes[operation.shard_id]
        view = SortedView({key: value for key, value in self.rows.items() if shard_index(key, count) == index})
        cursor = Cursor(view, ShardState(operation.shard_id, "default", 1, index, count, 1), operation.scan, 0)
        steps = 0
        with patch.object(scans, "STEP_ROWS", self.step_rows):
            while not cursor.ended:
                cursor.step()
                steps += 1
                if steps == self.steps_max:
                    cursor.stop()
        return Reply(
            call=operation.call,
            code=Status.OK,
            shard_id=operation.shard_id,
            value=cursor.part.SerializeToString(),
        )

    async def page(self, timeout_ms: int = 10_000, **fields: Any) -> ScanResponse:
        deadline_ms = SYSTEM_CLOCK.monotonic_ms() + timeout_ms
        return await self.scanner.page(ScanRequest(**fields), deadline_ms)

    async def pages(self, between: Callable[[int], object] = lambda number: None, **fields: Any) -> list[ScanResponse]:
        """All of them; `between` is called before each."""
        found: list[ScanResponse] = []
        token = b""
        while not found or token:
            between(len(found))
            found.append(await self.page(page_token=token, **fields))
            assert found[-1].status.code == Status.OK, found[-1].status
            token = found[-1].next_page_token
            assert len(found) < 2_000, "it does not end"
        return found
