"""KvDB's own node API, health and metrics of a storage node, as a foreign client sees them."""

from __future__ import annotations

import asyncio
import urllib.request
from typing import Any

import grpc
import grpc.aio
import pytest
from flotta_proto.kvdb import kvstore_pb2 as kv
from flotta_proto.kvdb import replication_pb2, replication_pb2_grpc
from flotta_runtime.hashing import shard_index
from storage_cluster import METADATA, Cluster
from test_storage_nodes import STRANGE, THREE


def trailers(error: grpc.aio.AioRpcError) -> dict[str, str]:
    return {str(key): str(value) for key, value in error.trailing_metadata() or ()}


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def leader_set(cluster: Cluster, key: bytes, value: bytes) -> None:
    shard = f"shard-{shard_index(key, cluster.coordinator.state.partitioning.num_shards)}"
    stub = cluster.kv(cluster.leader(shard))
    assert (await stub.Set(kv.KeyValueRequest(key=key, value=value), metadata=METADATA)).success


async def test_get_set_delete_ping(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    for key, value in STRANGE:
        await leader_set(cluster, key, value)
    for node in THREE:
        stub = cluster.kv(node)
        assert (await stub.Ping(kv.PingRequest())).message == "pong"
        for key, value in STRANGE:
            assert (await stub.Get(kv.KeyRequest(key=key))).value == value
        assert (await stub.Get(kv.KeyRequest(key=b"absent"))).value == b""
    leader = cluster.kv(cluster.leader("shard-0"))
    assert (await leader.Delete(kv.DeleteRequest(key=b"empty"), metadata=METADATA)).success is True
    assert (await leader.Delete(kv.DeleteRequest(key=b"empty"), metadata=METADATA)).success is False


async def test_reads_of_a_follower_are_never_stale(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    followers = [cluster.kv(node) for node in THREE if node != cluster.leader("shard-0")]
    for number in range(30):
        await leader_set(cluster, b"k", b"%d" % number)
        read = await followers[number % 2].Get(kv.KeyRequest(key=b"k"))
        assert read.value == b"%d" % number


async def test_redirects_carry_the_trailers_that_kvdb_clients_read(cluster: Cluster) -> None:
    await cluster.open(4)
    await cluster.create_shards(1, THREE)
    leader = cluster.leader("shard-0")
    where = cluster.nodes[leader].address
    follower = next(node for node in THREE if node != leader)
    await cluster.until(lambda: (shard := cluster.nodes["node-4"].model.shard("shard-0")) and shard.leader == leader)
    set_k = kv.KeyValueRequest(key=b"k", value=b"v")
    error = await refused(cluster.kv(follower).Set(set_k, metadata=METADATA))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        f"Not the leader. Leader hint: {where}",
    )
    assert trailers(error)["x-leader-hint"] == where
    assert "x-shard-id" not in trailers(error)
    error = await refused(cluster.kv("node-4").Get(kv.KeyRequest(key=b"k")))
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, f"Shard has moved to: {where}")
    assert trailers(error)["x-new-node-hint"] == where
    assert trailers(error)["x-shard-id"] == "shard-0"


async def test_what_must_not_be_done_is_refused(cluster: Cluster) -> None:
    await cluster.open(1)
    stub = cluster.kv("node-1")
    error = await refused(stub.Get(kv.KeyRequest(key=b"k")))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "Shard map not initialized")
    await cluster.create_shards(1, ["node-1"])
    error = await refused(stub.Set(kv.KeyValueRequest(key=b"k", value=b"v")))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "Missing or invalid internal gRPC token",
    )
    error = await refused(stub.Set(kv.KeyValueRequest(key=b"", value=b"v"), metadata=METADATA))
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "key must not be empty")
    error = await refused(stub.ReplicateSet(kv.ReplicateSetRequest(key=b"k"), metadata=METADATA))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    error = await refused(stub.ReplicateDelete(kv.ReplicateDeleteRequest(key=b"k"), metadata=METADATA))
    assert "replication between storage nodes is Raft" in (error.details() or "")
    replication = replication_pb2_grpc.ReplicationServiceStub(cluster.channel("node-1"))
    error = await refused(replication.Replicate(replication_pb2.ReplicationRequest(key=b"k"), metadata=METADATA))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert (await stub.Get(kv.KeyRequest(key=b"k"))).value == b""


async def test_shutdown_says_goodbye_and_ends_the_node(cluster: Cluster) -> None:
    await cluster.open(1)
    node = cluster.nodes.pop("node-1")
    answer = await cluster.kv("node-1").Shutdown(kv.ShutdownRequest(), metadata=METADATA)
    assert answer.message == "goodbye"
    await node.wait()
    await cluster.start("node-1")


async def http(port: int, path: str) -> tuple[int, str]:
    def read() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(read)


async def test_readiness_and_metrics(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(2, THREE)
    await leader_set(cluster, b"k", b"v")
    port = cluster.nodes["node-1"].http_port

    async def ready() -> bool:
        code, text = await http(port, "/readyz")
        return code == 200 and "2 replicas" in text

    await cluster.until_async(ready)
    _, metrics = await http(port, "/metrics")
    assert "flotta_storage_replicas 2.0" in metrics
    total = 0
    for node in THREE:
        found = cluster.nodes[node].metrics.registry.get_sample_value("flotta_storage_operations_total", {"code": "OK"})
        total += int(found or 0)
    assert total == 1
    await asyncio.gather(*(cluster.stop(node) for node in ("node-2", "node-3")))

    async def leaderless() -> bool:
        code, text = await http(port, "/readyz")
        return code == 503 and "has no known leader" in text

    await cluster.until_async(leaderless)
    assert (await http(port, "/livez"))[0] == 200
