"""A coordinator and storage nodes that speak the real protocols and fail on command."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from fake_node import FakeNode, FakeShards
from flotta_proto.kvdb import coordinator_pb2 as cp
from flotta_proto.kvdb import coordinator_pb2_grpc as cp_grpc


async def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    """Return as soon as `condition()` holds; TimeoutError if it never does."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is any state at all, and nobody signals it
            await asyncio.sleep(0.01)


class FakeCoordinator(cp_grpc.CoordinatorServicer):
    """A coordinator. Several may share one `state`, given by a common `FakeCluster`."""

    def __init__(self, state: cp.ClusterState) -> None:
        self.state = state
        self.redirect = ""  # answer FAILED_PRECONDITION with this leader
        self.hang = False
        self.watchable = True
        self.records = True  # send records to those who ask for them, else ids only
        self.gets = 0
        self.watches: list[asyncio.Queue[cp.ShardMapDelta | None]] = []
        self.address = ""
        self._server: grpc.aio.Server | None = None

    async def start(self, port: int = 0) -> FakeCoordinator:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        cp_grpc.add_CoordinatorServicer_to_server(self, self._server)
        bound = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{bound}"
        await self._server.start()
        return self

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    async def kill(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def end_watches(self) -> None:
        for queue in self.watches:
            queue.put_nowait(None)

    def send(self, delta: cp.ShardMapDelta) -> None:
        for queue in self.watches:
            queue.put_nowait(delta)

    async def GetShardMap(self, request: cp.GetShardMapRequest, context: Any) -> cp.GetShardMapResponse:
        self.gets += 1
        await self._misbehave(context)
        if self.state.map_version <= request.if_version_gt:
            return cp.GetShardMapResponse(not_modified=True)
        return cp.GetShardMapResponse(state=self.state)

    async def WatchShardMap(  # type: ignore[override]  # writes to the context instead of yielding
        self, request: cp.WatchShardMapRequest, context: Any
    ) -> None:
        await self._misbehave(context)
        if not self.watchable:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no watches here")
        queue: asyncio.Queue[cp.ShardMapDelta | None] = asyncio.Queue()
        self.watches.append(queue)
        try:
            if self.state.map_version > request.from_version:
                await context.write(cp.ShardMapDelta(new_map_version=self.state.map_version, full_state=self.state))
            else:
                await context.write(cp.ShardMapDelta())
            while (delta := await queue.get()) is not None:
                await context.write(delta)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "Coordinator stepped down from leader")
        finally:
            self.watches.remove(queue)

    async def ListNodes(self, request: cp.ListNodesRequest, context: Any) -> cp.ListNodesResponse:
        await self._misbehave(context)
        return cp.ListNodesResponse(nodes=[self.state.nodes[node_id] for node_id in sorted(self.state.nodes)])

    async def GetCoordinatorLeader(
        self, request: cp.GetCoordinatorLeaderRequest, context: Any
    ) -> cp.GetCoordinatorLeaderResponse:
        await self._misbehave(context)
        return cp.GetCoordinatorLeaderResponse(
            is_leader=True, leader_id="coordinator-1", leader_address=self.address, term=7
        )

    async def _misbehave(self, context: Any) -> None:
        if self.hang:
            await asyncio.sleep(3600)
        if self.redirect:
            context.set_trailing_metadata((("x-leader-hint", self.redirect),))
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"Not the leader. Leader hint: {self.redirect}")


class FakeCluster:
    """Nodes node-1..n and shards shard-0..k-1 over all of them, each led by node (i mod n) + 1."""

    def __init__(self, *, native: bool = False) -> None:
        self.native = native  # the nodes speak links
        self.shards = FakeShards()
        self.nodes: list[FakeNode] = []
        self.state = cp.ClusterState(cluster_id="fake")
        self.coordinators: list[FakeCoordinator] = []

    async def start(self, nodes: int = 3, shards: int = 4, coordinators: int = 1) -> FakeCluster:
        for _ in range(nodes):
            node = FakeNode(self.shards, native=self.native)  # type: ignore[abstract]  # the rest is not called
            self.nodes.append(await node.start())
        for number, node in enumerate(self.nodes, 1):
            self.state.nodes[f"node-{number}"].CopyFrom(
                cp.NodeRecord(node_id=f"node-{number}", address=node.address, status=cp.ALIVE)
            )
        for index in range(shards):
            shard_id = f"shard-{index}"
            leader = index % nodes
            self.state.shards[shard_id].CopyFrom(
                cp.ShardRecord(
                    shard_id=shard_id,
                    epoch=1,
                    replicas=[f"node-{number + 1}" for number in range(nodes)],
                    leader=f"node-{leader + 1}",
                    config_state=cp.STABLE,
                )
            )
            self.shards.leaders[shard_id] = self.nodes[leader].address
            self.shards.epochs[shard_id] = 1
        self.state.partitioning.num_shards = shards
        self.state.partitioning.replication_factor = nodes
        self.state.map_version = 5
        for _ in range(coordinators):
            coordinator = FakeCoordinator(self.state)  # type: ignore[abstract]  # the rest is not called
            self.coordinators.append(await coordinator.start())
        return self

    @property
    def coordinator(self) -> FakeCoordinator:
        return self.coordinators[0]

    def node_at(self, address: str) -> FakeNode:
        return next(node for node in self.nodes if node.address == address)

    def leader_of(self, shard_id: str) -> FakeNode:
        return self.node_at(self.shards.leaders[shard_id])

    def move_leader(self, shard_id: str, to: FakeNode, *, tell: bool = True, epoch: int = 1) -> None:
        """Let `to` lead; the coordinators learn of it, and tell their watchers, only if `tell`."""
        self.shards.leaders[shard_id] = to.address
        self.shards.epochs[shard_id] = epoch
        if tell:
            self.record_leader(shard_id)

    def record_leader(self, shard_id: str, *, announce: bool = True) -> None:
        """Bring the coordinators' map up to date with who leads `shard_id`."""
        number = self.nodes.index(self.leader_of(shard_id)) + 1
        record = self.state.shards[shard_id]
        record.leader = f"node-{number}"
        record.epoch = self.shards.epochs[shard_id]
        previous = self.state.map_version
        self.state.map_version += 1
        if announce:
            for coordinator in self.coordinators:
                delta = cp.ShardMapDelta(new_map_version=previous + 1, changed_shards=[shard_id])
                if coordinator.records:
                    delta.previous_map_version = previous
                    delta.shards.append(record)
                coordinator.send(delta)

    async def stop(self) -> None:
        for coordinator in self.coordinators:
            await coordinator.kill()
        for node in self.nodes:
            await node.kill()


class StallingProxy:
    """Passes bytes on to `target` until told to stall; the connections then stay open and carry nothing."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._writers: deque[asyncio.StreamWriter] = deque()
        self.address = ""

    async def start(self) -> StallingProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def stall(self) -> None:
        self._flowing.clear()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._port)
        self._writers += (writer, upstream_writer)
        await asyncio.gather(self._pump(reader, upstream_writer), self._pump(upstream_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
