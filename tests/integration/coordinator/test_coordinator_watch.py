"""WatchShardMap over gRPC: true deltas, heartbeats, bounds, endings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from coordinator_harness import Coordinators, eventually, join_nodes
from flotta_proto.kvdb import coordinator_pb2 as pb

pytestmark = pytest.mark.parametrize("transport", ["native", "grpcio"])


async def test_kvdbs_clients_get_ids_and_ours_get_records(one: Coordinators) -> None:
    client = one.client("c1")
    plain, ours = client.watch(), client.watch(records=True)
    for watch in (plain, ours):
        first = await anext(watch)
        assert first.HasField("full_state") and first.new_map_version == 0
    await client.register("node-1", "node-1:8001")
    ids = await anext(plain)
    assert list(ids.changed_nodes) == ["node-1"] and not ids.changed_shards
    assert not ids.HasField("full_state") and not ids.nodes
    fetched = await client.coordinator.GetShardMap(pb.GetShardMapRequest(if_version_gt=0))
    assert fetched.state.map_version == ids.new_map_version
    records = await anext(ours)
    assert records.previous_map_version == 0 and records.new_map_version == 1
    assert [node.address for node in records.nodes] == ["node-1:8001"]

    # An address change and a status change are both seen by routers.
    await client.register("node-1", "elsewhere:8001")
    assert [node.address for node in (await anext(ours)).nodes] == ["elsewhere:8001"]
    request = pb.SetNodeStatusRequest(node_id="node-1", status=pb.SUSPECT)
    await client.coordinator.SetNodeStatus(request, metadata=client.metadata)
    assert [node.status for node in (await anext(ours)).nodes] == [pb.SUSPECT]


async def test_applying_every_delta_gives_the_map(one: Coordinators) -> None:
    client = one.client("c1")
    watch = client.watch(records=True)
    held = pb.ClusterState()
    held.CopyFrom((await anext(watch)).full_state)
    await join_nodes(client, 3)
    await client.init(16, 3)
    await client.register("node-2", "moved:1", "z")
    target = await client.map()
    while held.map_version < target.map_version:
        delta = await anext(watch)
        assert delta.previous_map_version == held.map_version
        for node in delta.nodes:
            held.nodes[node.node_id].CopyFrom(node)
        for shard in delta.shards:
            held.shards[shard.shard_id].CopyFrom(shard)
        if delta.HasField("partitioning"):
            held.partitioning.CopyFrom(delta.partitioning)
        held.map_version = delta.new_map_version
    held.cluster_id = target.cluster_id
    assert held == target


async def test_a_watcher_resumes_or_resyncs(one: Coordinators) -> None:
    client = one.client("c1")
    for number in range(1, 6):
        await client.register(f"node-{number}", f"node-{number}:8001")
    delta = await anext(client.watch(3))
    assert sorted(delta.changed_nodes) == ["node-4", "node-5"] and not delta.HasField("full_state")
    # A version that this history never saw: everything.
    ahead = await anext(client.watch(99))
    assert ahead.HasField("full_state") and ahead.new_map_version == 5
    await one.stop()
    await one.start()
    await one.leader()
    # After a restart the history is gone; only what came since can be told as a delta.
    behind = await anext(client.watch(3))
    assert behind.HasField("full_state") and len(behind.full_state.nodes) == 5


@pytest.fixture
async def quick(tmp_path: Path, transport: str) -> AsyncIterator[Coordinators]:
    cluster = Coordinators(tmp_path, 1, watch_heartbeat_ms=50, watchers_max=2, transport=transport)
    await cluster.start()
    await cluster.leader()
    yield cluster
    await cluster.close()


async def test_idle_streams_carry_heartbeats(quick: Coordinators) -> None:
    client = quick.client("c1")
    watch = client.watch()
    await anext(watch)
    for _ in range(3):
        beat = await anext(watch)
        assert beat == pb.ShardMapDelta()
    await client.register("node-1", "node-1:8001")
    delta = await anext(watch)
    while delta.new_map_version == 0:
        delta = await anext(watch)
    assert list(delta.changed_nodes) == ["node-1"]


async def test_watchers_are_capped_and_a_cancelled_one_makes_room(quick: Coordinators) -> None:
    client = quick.client("c1")
    first, second = client.watch(), client.watch()
    await anext(first)
    await anext(second)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(client.watch())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 watchers" in (caught.value.details() or "")
    stream = client.coordinator.WatchShardMap(pb.WatchShardMapRequest())
    stream.cancel()
    second_stream = quick.apps["c1"].member.watchers
    assert len(second_stream) == 2
    await client.close()
    await eventually(lambda: len(second_stream) == 0, "a cancelled watcher was never forgotten")


async def test_a_node_that_was_dead_and_comes_back_elsewhere_is_news_to_every_watcher(one: Coordinators) -> None:
    client = one.client("c1")
    await join_nodes(client, 2)
    dead = pb.SetNodeStatusRequest(node_id="node-1", status=pb.DEAD)
    assert (await client.coordinator.SetNodeStatus(dead, metadata=client.metadata)).success
    version = (await client.map()).map_version
    plain, ours = client.watch(version), client.watch(version, records=True)
    assert (await client.register("node-1", "node-1:9999")).success
    ids, records = await anext(plain), await anext(ours)
    assert ids.new_map_version == records.new_map_version == version + 1
    assert list(ids.changed_nodes) == ["node-1"]
    assert [(node.address, node.status) for node in records.nodes] == [("node-1:9999", pb.ALIVE)]
    assert (await client.coordinator.SetNodeStatus(dead, metadata=client.metadata)).success
    marked = await anext(ours)
    assert [(node.status, marked.new_map_version) for node in marked.nodes] == [(pb.DEAD, version + 2)]
