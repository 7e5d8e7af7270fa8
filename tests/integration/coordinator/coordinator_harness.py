"""Real coordinators in this process, over gRPC on free ports, with directories under a test's tmp_path."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest import mock

from flotta_coordinator.app import CoordinatorApp, launch
from flotta_coordinator.member import Patience
from flotta_coordinator.settings import CoordinatorSettings
from flotta_proto.flotta import cluster_pb2, cluster_pb2_grpc
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb import coordinator_pb2_grpc
from flotta_runtime.server import Channel, channel

TOKEN = "test-token"
CALL_S = 20.0
WAIT_S = 60.0
LAST_HAND_OVER_MS = 50


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; held together so that they differ."""
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


async def eventually(what: Callable[[], Awaitable[Any] | Any], reason: str) -> Any:
    """The first true answer. Fails by name when there is none for a long time."""
    async with asyncio.timeout(WAIT_S):
        while True:
            found = what()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.02)
    raise AssertionError(reason)


class Client:
    """Stubs to one coordinator, with the token on every call."""

    def __init__(self, address: str) -> None:
        self._channel: Channel = channel(address, TOKEN)
        self.coordinator = coordinator_pb2_grpc.CoordinatorStub(self._channel.grpc)
        self.cluster = cluster_pb2_grpc.ClusterStub(self._channel.grpc)
        self.grpc = self._channel.grpc
        self.metadata = self._channel.metadata

    async def close(self) -> None:
        await self._channel.close()

    async def register(self, node_id: str, address: str, zone: str = "") -> pb.RegisterNodeResponse:
        request = pb.RegisterNodeRequest(node_id=node_id, address=address, zone=zone)
        return await self.coordinator.RegisterNode(request, metadata=self.metadata, timeout=CALL_S)

    async def hello(
        self, node_id: str, store_id: str, cluster_id: str = "", node_num: int = 0
    ) -> cluster_pb2.NodeHelloResponse:
        request = cluster_pb2.NodeHelloRequest(
            node_id=node_id, address=f"{node_id}:8001", store_id=store_id, cluster_id=cluster_id, node_num=node_num
        )
        return await self.cluster.NodeHello(request, metadata=self.metadata, timeout=CALL_S)

    async def heartbeat(
        self, node_id: str, store_id: str, reports: list[cluster_pb2.ShardReport] | None = None
    ) -> cluster_pb2.NodeHeartbeatResponse:
        request = cluster_pb2.NodeHeartbeatRequest(node_id=node_id, store_id=store_id, reports=reports or [])
        return await self.cluster.NodeHeartbeat(request, metadata=self.metadata, timeout=CALL_S)

    async def init(self, num_shards: int, replication_factor: int) -> pb.InitShardsResponse:
        request = pb.InitShardsRequest(num_shards=num_shards, replication_factor=replication_factor)
        return await self.coordinator.InitShards(request, metadata=self.metadata, timeout=CALL_S)

    async def map(self) -> pb.ClusterState:
        """The whole map; an empty one at version 0."""
        reply = await self.coordinator.GetShardMap(pb.GetShardMapRequest(), timeout=CALL_S, wait_for_ready=True)
        return reply.state

    def watch(self, from_version: int = 0, *, records: bool = False) -> AsyncIterator[pb.ShardMapDelta]:
        metadata = (("x-flotta-map", "records"),) if records else ()
        request = pb.WatchShardMapRequest(from_version=from_version)
        stream: Any = self.coordinator.WatchShardMap(request, metadata=metadata)
        return aiter(stream)


async def join_nodes(client: Client, count: int) -> None:
    """Storage nodes as the coordinator sees them: hello, then one heartbeat each."""
    for number in range(1, count + 1):
        assert (await client.hello(f"node-{number}", f"store-{number}")).accepted
        assert (await client.heartbeat(f"node-{number}", f"store-{number}")).accepted


async def report_leaders(client: Client) -> None:
    """Every shard's first member says that it leads."""
    state = await client.map()
    for shard in state.shards.values():
        members = [item.replica_id for item in shard.detail.members]
        report = cluster_pb2.ShardReport(
            shard_id=shard.shard_id,
            group_id=shard.detail.group_id,
            epoch=shard.epoch,
            term=shard.detail.leader_term + 1,
            leader_replica=members[0],
            voters=members,
            conf_index=1,
        )
        node_id = shard.replicas[0]
        store_id = state.nodes[node_id].detail.store_id
        assert (await client.heartbeat(node_id, store_id, [report])).accepted


class Coordinators:
    """`count` members; each can be stopped and started again on its directory."""

    def __init__(self, root: Path, count: int, **overrides: Any) -> None:
        ports = free_ports(count)
        self.root = root
        self.patience = Patience(election_ms=10_000, nodes_ms=200)
        self.peers = tuple((f"c{number}", f"127.0.0.1:{port}") for number, port in enumerate(ports, start=1))
        self.apps: dict[str, CoordinatorApp] = {}
        self._clients: dict[str, Client] = {}
        self._overrides = overrides

    def settings(self, name: str, **overrides: Any) -> CoordinatorSettings:
        chosen: dict[str, Any] = {
            "node_id": name,
            "peers": self.peers,
            "listen": dict(self.peers)[name],
            "http_listen": "127.0.0.1:0",
            "data_dir": self.root / name,
            "internal_token": TOKEN,
            "election_timeout_ms": 500,
            "raft_heartbeat_ms": 100,
            "stop_timeout_ms": 500,
            # Tests that want verdicts ask for them; the others must not get any on a slow machine.
            "suspect_after_ms": 600_000,
            "dead_after_ms": 1_200_000,
        }
        return CoordinatorSettings(**{**chosen, **self._overrides, **overrides})

    async def start(self, *names: str) -> None:
        for name in names or [name for name, _ in self.peers]:
            self.apps[name] = await launch(self.settings(name), patience=self.patience)
        for name in names or list(self.apps):
            async with asyncio.timeout(WAIT_S):
                await self.apps[name].formed()

    async def stop(self, *names: str) -> None:
        for name in names or list(self.apps):
            await self.apps.pop(name).stop()

    async def close(self) -> None:
        """All at once. Whoever leads would wait for another to take over, and nobody stays that could."""
        for client in self._clients.values():
            await client.close()
        apps, self.apps = list(self.apps.values()), {}
        with mock.patch("flotta_coordinator.app.HAND_OVER_MS", LAST_HAND_OVER_MS):
            await asyncio.gather(*(app.stop() for app in apps))

    def client(self, name: str) -> Client:
        if name not in self._clients:
            self._clients[name] = Client(dict(self.peers)[name])
        return self._clients[name]

    async def leader(self) -> str:
        """The member that leads and is ready to serve."""
        leading = lambda: next((name for name, app in self.apps.items() if app.is_leader), "")  # noqa: E731
        found: str = await eventually(leading, "no coordinator leads")
        return found

    async def followers(self) -> list[str]:
        leader = await self.leader()
        return [name for name in self.apps if name != leader]
