"""A dispatcher before nodes that are only remembered: a test sees what was sent, and answers it by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from flotta_gateway.call import Admission, Call, Links, Traces
from flotta_gateway.core.shard_map import ShardMap
from flotta_gateway.core.validation import Limits
from flotta_gateway.dispatcher import Dispatcher, DispatcherOptions
from flotta_gateway.storage_link import Attempt
from flotta_proto.flotta.storage_pb2 import Operation, Reply
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.clock import ManualClock
from flotta_runtime.errors import FlottaError

SHARDS = 4
NODES = ("node-0:1", "node-1:1")


class Node:
    """One node's link: keeps what it is handed."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.batches: list[list[Attempt[Call]]] = []
        self.forgotten = 0
        self.up = True

    @property
    def operations_open(self) -> int:
        return sum(map(len, self.batches))

    def submit(self, attempts: Sequence[Attempt[Call]]) -> None:
        self.batches.append(list(attempts))

    def forget(self, attempt: Attempt[Call]) -> bool:
        self.forgotten += 1
        return True


class Observer:
    def __init__(self) -> None:
        self.batches: list[int] = []
        self.counts: dict[tuple[int, int], int] = {}

    def batch(self, size: int) -> None:
        self.batches.append(size)

    def answered(self, kind: int, code: int, count: int) -> None:
        self.counts[kind, code] = self.counts.get((kind, code), 0) + count

    def resent(self, code: int) -> None: ...


class Cluster:
    """Two nodes, of which each leads every other shard, and a dispatcher before them."""

    answered = True

    def __init__(self, admission: Admission | None = None, traces: Traces | None = None, **options: Any) -> None:
        state = pb.ClusterState(map_version=1, cluster_id="c")
        state.partitioning.num_shards = SHARDS
        for number, address in enumerate(NODES):
            state.nodes[f"node-{number}"].CopyFrom(pb.NodeRecord(node_id=f"node-{number}", address=address))
        for number in range(SHARDS):
            record = pb.ShardRecord(shard_id=f"shard-{number}", leader=f"node-{number % 2}", epoch=3)
            record.replicas.extend(("node-0", "node-1"))
            state.shards[record.shard_id].CopyFrom(record)
        self.current = ShardMap().with_state(state)
        self.nodes = {address: Node(address) for address in NODES}
        self.clock = ManualClock(monotonic_ms=1_000)
        self.observer = Observer()
        links = cast("Links", self)
        chosen = DispatcherOptions(**options)
        self.dispatcher = Dispatcher(
            self, links, self.observer, self.clock, lambda: 0.5, Limits(1_000), chosen, admission, traces
        )

    def refresh_soon(self) -> None: ...

    def link_to(self, address: str) -> Node:
        return self.nodes[address]

    def sent(self) -> list[Operation]:
        """Every operation handed to a node so far."""
        attempts = [attempt for node in self.nodes.values() for batch in node.batches for attempt in batch]
        return [Operation.FromString(attempt.payload) for attempt in attempts]

    def answer(self, code: int = Status.OK, **fields: Any) -> None:
        """Let every node answer what it has."""
        for node in self.nodes.values():
            batches, node.batches = node.batches, []
            for batch in batches:
                self.dispatcher.replied(
                    node.address,
                    [
                        (
                            attempt,
                            Reply(
                                call=attempt.number,
                                code=cast("Any", code),
                                shard_id=Operation.FromString(attempt.payload).shard_id,
                                **fields,
                            ),
                        )
                        for attempt in batch
                    ],
                )


class Replies:
    """Implements `Replier`."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.replies: dict[int, bytes] = {}
        self.errors: dict[int, FlottaError] = {}

    def reply(self, call: int, payload: bytes) -> None:
        assert call not in self.replies
        self.replies[call] = payload
        self.news.set()

    def fail(self, call: int, error: FlottaError) -> None:
        assert call not in self.errors
        self.errors[call] = error
