"""The admin service over real coordinators: bootstrap, refusals that leave no trace, restarts, many callers at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from admin_support import TOKEN, admin, client
from flotta_coordinator.app import CoordinatorApp, launch
from flotta_coordinator.settings import CoordinatorSettings
from flotta_proto.flotta import cluster_pb2, cluster_pb2_grpc
from flotta_proto.kvdb import coordinator_pb2, coordinator_pb2_grpc
from flotta_runtime.server import channel
from pydantic import SecretStr


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Trio:
    """Three coordinators in this process; each can be stopped and started again on its data."""

    def __init__(self, folder: Path) -> None:
        ports = free_ports(3)
        self.peers = tuple((f"coordinator-{i}", f"127.0.0.1:{port}") for i, port in enumerate(ports, 1))
        self.folder = folder
        self.running: dict[str, CoordinatorApp] = {}

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(address for _, address in self.peers)

    async def start(self) -> None:
        for name, address in self.peers:
            settings = CoordinatorSettings(
                node_id=name,
                peers=self.peers,
                listen=address,
                http_listen="127.0.0.1:0",
                data_dir=self.folder / name,
                internal_token=SecretStr(TOKEN),
                stop_timeout_ms=500,
            )
            self.running[name] = await launch(settings)
        await asyncio.gather(*(app.formed() for app in self.running.values()))

    async def stop(self) -> None:
        await asyncio.gather(*(app.stop() for app in self.running.values()))
        self.running.clear()


@asynccontextmanager
async def trio(folder: Path) -> AsyncIterator[Trio]:
    made = Trio(folder)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@asynccontextmanager
async def beating_nodes(trio: Trio, count: int) -> AsyncIterator[None]:
    """Storage nodes as the coordinators see them: they say hello, send heartbeats and report what they lead."""

    def leads(node_id: str, state: coordinator_pb2.ClusterState) -> list[cluster_pb2.ShardReport]:
        return [
            cluster_pb2.ShardReport(
                shard_id=shard.shard_id,
                group_id=shard.detail.group_id,
                epoch=shard.epoch,
                term=2,
                leader_replica=shard.detail.birth[0].replica_id,
                voters=[replica.replica_id for replica in shard.detail.birth],
            )
            for shard in state.shards.values()
            if shard.detail.birth[0].node_id == node_id
        ]

    async def beat(node_id: str, address: str) -> None:
        connection = channel(trio.addresses[0], TOKEN)
        try:
            stub = cluster_pb2_grpc.ClusterStub(connection.grpc)
            hello = cluster_pb2.NodeHelloRequest(
                node_id=node_id, address=address, zone="z", store_id=f"store-{node_id}"
            )
            welcome = await stub.NodeHello(hello, metadata=connection.metadata, timeout=30, wait_for_ready=True)
            assert welcome.accepted, welcome.message
            coordinator = coordinator_pb2_grpc.CoordinatorStub(connection.grpc)
            while True:
                shard_map = await coordinator.GetShardMap(coordinator_pb2.GetShardMapRequest(), timeout=30)
                request = cluster_pb2.NodeHeartbeatRequest(
                    node_id=node_id, store_id=f"store-{node_id}", reports=leads(node_id, shard_map.state)
                )
                await stub.NodeHeartbeat(request, metadata=connection.metadata, timeout=30, wait_for_ready=True)
                await asyncio.sleep(0.2)
        finally:
            await connection.close()

    async with asyncio.TaskGroup() as group:  # a node that fails fails the test
        tasks = [group.create_task(beat(f"node-{i}", f"localhost:800{i}")) for i in range(1, count + 1)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def init(web: httpx.AsyncClient, shards: int, factor: int) -> httpx.Response:
    return await web.post("/admin/config/shard-init", json={"num_shards": shards, "replication_factor": factor})


async def init_when_nodes_beat(web: httpx.AsyncClient, shards: int, factor: int) -> httpx.Response:
    while True:
        answer = await init(web, shards, factor)
        if answer.status_code != 409 or answer.json()["error"] != "PRECONDITION_FAILED":
            return answer
        await asyncio.sleep(0.05)


async def all_led(web: httpx.AsyncClient) -> list[dict[str, Any]]:
    """The shards, once each has a leader."""
    while True:
        shards: list[dict[str, Any]] = (await web.get("/admin/shards")).json()
        if shards and all(shard["leader"] for shard in shards):
            return shards
        await asyncio.sleep(0.05)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as made:
        yield made


async def test_bootstrap_refusals_a_restart_and_a_replacement(stack: AsyncExitStack, tmp_path: Path) -> None:
    cluster = await stack.enter_async_context(trio(tmp_path))
    service = await stack.enter_async_context(
        admin(cluster.addresses, call_timeout_ms=20_000, request_timeout_ms=60_000)
    )
    web = await stack.enter_async_context(client(service))

    early = await init(web, 4, 2)
    assert (early.status_code, early.json()["error"]) == (409, "PRECONDITION_FAILED")
    assert "no node is registered" in early.json()["message"]
    async with beating_nodes(cluster, 2):
        for i in (1, 2):
            body = {"node_id": f"node-{i}", "address": f"localhost:800{i}", "zone": "z"}
            answer = await web.post("/admin/nodes", json=body)
            assert answer.status_code == 200, answer.text
        assert (await init_when_nodes_beat(web, 4, 2)).status_code == 200
        shards = await all_led(web)
        assert [shard["shard_id"] for shard in shards] == [f"shard-{i}" for i in range(4)]
        assert all(sorted(shard["replicas"]) == ["node-1", "node-2"] for shard in shards)
        before = (await web.get("/admin/cluster/shard-map")).json()

        assert (await init(web, 4, 2)).status_code == 200
        for shards_asked, factor in ((8, 2), (4, 1)):
            refused = await init(web, shards_asked, factor)
            assert refused.status_code == 409
            assert "already initialized with num_shards 4 and replication_factor 2" in refused.json()["message"]
        unknown = await web.post("/admin/shards/shard-0/replicas", json=["node-1", "node-9"])
        assert (unknown.status_code, "node-9" in unknown.text) == (404, True)
        no_leader = await web.post("/admin/shards/shard-0/leader", content="node-9")
        assert (no_leader.status_code, "node-9" in no_leader.text) == (404, True)
        assert (await web.get("/admin/nodes/node-9")).status_code == 404
        assert (await web.get("/admin/cluster/shard-map")).json()["map_version"] == before["map_version"]

    await cluster.stop()
    await cluster.start()
    after = (await web.get("/admin/cluster/shard-map")).json()
    assert after["map_version"] >= before["map_version"]
    assert after["partitioning"] == before["partitioning"]
    assert after["shards"] == before["shards"]
    await give_one_up(cluster, web)


async def test_many_callers_at_once(stack: AsyncExitStack, tmp_path: Path) -> None:
    cluster = await stack.enter_async_context(trio(tmp_path))
    # Each service knows one coordinator only, so two of the three ask a follower.
    webs = []
    for address in cluster.addresses:
        service = await stack.enter_async_context(admin((address,), call_timeout_ms=20_000, request_timeout_ms=60_000))
        webs.append(await stack.enter_async_context(client(service)))
    await stack.enter_async_context(beating_nodes(cluster, 2))
    assert (await init_when_nodes_beat(webs[0], 8, 2)).status_code == 200
    await all_led(webs[0])

    async def user(number: int) -> None:
        web = webs[number % 3]
        for i in range(3):
            answer = await init(web, 8, 2)
            assert answer.status_code == 200, answer.text
            node = 1 + (number + i) % 2
            body = {"node_id": f"node-{node}", "address": f"localhost:800{node}", "zone": "z"}
            answer = await web.post("/admin/nodes", json=body)
            assert answer.status_code == 200, answer.text
            for path in ("/admin/cluster/summary", "/admin/nodes", "/admin/shards"):
                assert (await web.get(path)).status_code == 200

    before = (await webs[0].get("/admin/cluster/summary")).json()
    async with asyncio.TaskGroup() as group:
        for number in range(12):
            group.create_task(user(number))
    for web in webs:
        after = (await web.get("/admin/cluster/summary")).json()
        assert (after["total_nodes"], after["total_shards"]) == (2, 8)
        assert after["map_version"] == before["map_version"]


async def give_one_up(cluster: Trio, web: httpx.AsyncClient) -> None:
    """One of three is lost for good; the service knows only some of the coordinators, and finds the leader."""

    async def asked(name: str, **more: Any) -> tuple[int, dict[str, Any]]:
        await asyncio.sleep(0.05)
        answer = await web.post("/admin/coordinators/replace", json={"node_id": name, **more})
        return answer.status_code, answer.json()

    status, looked = await asked("coordinator-9", dry_run=True)
    while not looked["leader_id"]:
        status, looked = await asked("coordinator-9", dry_run=True)
    assert status == 200 and "not coordinator-9" in looked["refused"] and not looked["message"]
    leader = looked["leader_id"]
    lost = next(name for name in ("coordinator-3", "coordinator-2") if name != leader)
    status, refused = await asked(lost)
    while f"{lost} is not lost" not in refused["message"]:
        status, refused = await asked(lost)
    assert status == 412
    await cluster.running.pop(lost).stop()
    for dry_run in (True, False):
        status, found = await asked(lost, dry_run=dry_run)
        while status == 412 or found.get("refused"):  # it was heard of a moment ago
            status, found = await asked(lost, dry_run=dry_run)
        assert (status, found["dry_run"], found["refused"]) == (200, dry_run, ""), found
        assert f"{lost} is given up: " in found["message"] and lost in found["voters"]
        assert {one["node_id"]: one["state"] for one in found["coordinators"]}[lost] == "SILENT"
    reasons = {one["kind"]: one["reason"] for one in (await web.get("/admin/decisions")).json()["decisions"]}
    assert f"{lost} is lost for good" in reasons["coordinator-given-up"]
