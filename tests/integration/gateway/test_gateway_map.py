"""Where the gateway's map comes from when coordinators are down, redirect, hang, fall silent or lag."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
import httpx
import pytest
from fake_cluster import FakeCluster, wait_until
from flotta_gateway.app import SERVICE_NAME
from flotta_proto.kvdb import coordinator_pb2 as cp
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_proto.kvdb.gateway_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

Start = Callable[..., Awaitable[tuple[Any, Any]]]
NOBODY = "127.0.0.1:1"


async def put_works(stub: Any) -> bool:
    return bool((await stub.Put(gw.PutRequest(key=b"k", value=b"v"))).status.code == Status.OK)


async def test_any_coordinator_that_answers_is_enough(start_gateway: Start) -> None:
    cluster = await FakeCluster().start(coordinators=2)
    try:
        cluster.coordinators[0].hang = True
        addresses = (NOBODY, cluster.coordinators[0].address, cluster.coordinators[1].address)
        _, stub = await start_gateway(cluster, coordinators=addresses)
        assert await put_works(stub)
    finally:
        await cluster.stop()


async def test_requests_before_the_first_map_wait_for_it(cluster: FakeCluster, start_gateway: Start) -> None:
    port = cluster.coordinator.port
    await cluster.coordinator.kill()
    gateway, stub = await start_gateway(cluster, deadline_default_ms=500)
    early = await stub.Put(gw.PutRequest(key=b"k", value=b"v"))
    assert early.status.code == Status.UNAVAILABLE
    assert "no coordinator has given this gateway a shard map yet" in early.status.message
    writing = stub.Put(gw.PutRequest(key=b"k", value=b"v"), timeout=20)
    await wait_until(lambda: gateway.dispatcher.calls_open == 1)
    await cluster.coordinator.start(port)
    assert (await writing).status.code == Status.OK


async def test_grpc_health_follows_readiness(cluster: FakeCluster, start_gateway: Start) -> None:
    port = cluster.coordinator.port
    await cluster.coordinator.kill()
    gateway, _ = await start_gateway(cluster)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        health = HealthStub(channel)
        assert (await health.Check(HealthCheckRequest(service=""))).status == HealthCheckResponse.SERVING
        watching = aiter(health.Watch(HealthCheckRequest(service=SERVICE_NAME), timeout=30))
        assert (await anext(watching)).status == HealthCheckResponse.NOT_SERVING
        await cluster.coordinator.start(port)
        assert (await anext(watching)).status == HealthCheckResponse.SERVING
        assert await gateway_ready(gateway)


async def gateway_ready(gateway: Any) -> bool:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{gateway.http_port}/readyz")).status_code == 200


async def test_a_redirect_leads_to_a_coordinator_nobody_configured(start_gateway: Start) -> None:
    cluster = await FakeCluster().start(coordinators=2)
    try:
        follower, leader = cluster.coordinators
        follower.redirect = leader.address
        gateway, stub = await start_gateway(cluster, coordinators=(follower.address,))
        assert await put_works(stub)
        await wait_until(lambda: gateway.maps.watching == leader.address)
        assert leader.watches
    finally:
        await cluster.stop()


@pytest.mark.parametrize("records", [True, False], ids=["records", "ids only"])
async def test_deltas_move_the_map(cluster: FakeCluster, start_gateway: Start, records: bool) -> None:
    gateway, stub = await start_gateway(cluster)
    cluster.coordinator.records = records
    await wait_until(lambda: bool(gateway.maps.watching))
    gets = cluster.coordinator.gets
    for node in (*cluster.nodes, cluster.nodes[0]):
        cluster.move_leader("shard-1", node)
    await wait_until(lambda: gateway.maps.current.version == cluster.state.map_version)
    assert gateway.maps.current.routes[1].leader == cluster.nodes[0].address
    assert (cluster.coordinator.gets == gets) is records
    assert await put_works(stub)


async def test_a_gap_in_the_deltas_is_filled(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, _ = await start_gateway(cluster)
    await wait_until(lambda: bool(gateway.maps.watching))
    cluster.move_leader("shard-1", cluster.nodes[2], tell=False)
    cluster.record_leader("shard-1", announce=False)
    cluster.move_leader("shard-2", cluster.nodes[0])
    await wait_until(lambda: gateway.maps.current.version == 7)
    assert gateway.maps.current.routes[1].leader == cluster.nodes[2].address


async def test_without_a_watch_the_map_is_polled(cluster: FakeCluster, start_gateway: Start) -> None:
    cluster.coordinator.watchable = False
    gateway, stub = await start_gateway(cluster)
    assert await put_works(stub)
    cluster.move_leader("shard-1", cluster.nodes[2])
    await wait_until(lambda: gateway.maps.current.version == 6)
    assert gateway.maps.watching == ""


async def test_a_watch_that_ends_is_opened_again(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, _ = await start_gateway(cluster)
    await wait_until(lambda: bool(gateway.maps.watching))
    cluster.coordinator.end_watches()
    await wait_until(lambda: not gateway.maps.watching)
    await wait_until(lambda: bool(gateway.maps.watching))
    cluster.move_leader("shard-1", cluster.nodes[2])
    await wait_until(lambda: gateway.maps.current.version == 6)


async def test_a_silent_watch_is_checked_with_another_coordinator(start_gateway: Start) -> None:
    cluster = await FakeCluster().start(coordinators=2)
    try:
        stale, fresh = cluster.coordinators
        stale.state = cp.ClusterState()
        stale.state.CopyFrom(cluster.state)
        gateway, _ = await start_gateway(cluster, map_idle_ms=200)
        await wait_until(lambda: gateway.maps.watching == stale.address)
        # The coordinator that is watched has been cut off from the others, and hears no more.
        cluster.state.map_version = 9
        await wait_until(lambda: gateway.maps.current.version == 9)
        await wait_until(lambda: gateway.maps.watching == fresh.address)
    finally:
        await cluster.stop()


async def test_the_map_never_goes_back(start_gateway: Start) -> None:
    cluster = await FakeCluster().start(coordinators=2)
    try:
        behind, ahead = cluster.coordinators
        behind.state = cp.ClusterState()
        behind.state.CopyFrom(cluster.state)
        cluster.state.map_version = 50
        versions: list[int] = []
        gateway, _ = await start_gateway(cluster, coordinators=(ahead.address, behind.address))
        await wait_until(lambda: gateway.maps.watching == ahead.address)
        gateway.maps._on_change = lambda shard_map: versions.append(shard_map.version)
        await ahead.kill()
        await wait_until(lambda: gateway.maps.watching == behind.address)
        behind.send(cp.ShardMapDelta(new_map_version=6, previous_map_version=5, full_state=behind.state))
        await asyncio.sleep(0.2)
        assert gateway.maps.current.version == 50
        assert versions == []
    finally:
        await cluster.stop()


async def test_another_clusters_coordinator_is_not_believed(start_gateway: Start) -> None:
    cluster = await FakeCluster().start(coordinators=2)
    try:
        ours, foreign = cluster.coordinators
        foreign.state = cp.ClusterState(cluster_id="another", map_version=1000)
        gateway, stub = await start_gateway(cluster)
        await wait_until(lambda: gateway.maps.watching == ours.address)
        await ours.kill()
        await asyncio.sleep(0.3)
        assert gateway.maps.current.version == 5
        assert await put_works(stub)
    finally:
        await cluster.stop()


async def test_readiness_follows_the_map_and_metrics_count(cluster: FakeCluster, start_gateway: Start) -> None:
    port = cluster.coordinator.port
    await cluster.coordinator.kill()
    gateway, stub = await start_gateway(cluster)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.http_port}") as http:
        assert (await http.get("/livez")).status_code == 200
        unready = await http.get("/readyz")
        assert unready.status_code == 503
        assert "no coordinator" in json.loads(unready.text)["reason"]
        await cluster.coordinator.start(port)
        assert await put_works(stub)
        assert (await http.get("/readyz")).status_code == 200
        await wait_until(lambda: all(link.up for link in gateway.links.links()))  # the key's own was enough so far
        text = (await http.get("/metrics")).text
    assert 'flotta_gateway_requests_total{code="OK",operation="PUT"} 1.0' in text
    assert "flotta_gateway_map_version 5.0" in text
    assert "flotta_gateway_links_up 3.0" in text


async def test_two_gateways_serve_the_same_cluster(cluster: FakeCluster, start_gateway: Start) -> None:
    _, first = await start_gateway(cluster)
    _, second = await start_gateway(cluster)
    put = await first.Put(gw.PutRequest(key=b"shared", value=b"v"))
    got = await second.Get(gw.GetRequest(key=b"shared"))
    assert (got.kv.value, got.kv.version) == (b"v", put.version)
