"""Nodes that stop, come back and speak another transport than before, under a gateway that is at work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_cluster import FakeCluster, wait_until
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.hashing import shard_index

Start = Callable[..., Awaitable[tuple[Any, Any]]]
BOTH = pytest.mark.parametrize("transport", ["native", "grpcio"])
KEY = b"k"
SHARD = f"shard-{shard_index(KEY, 4)}"


def put(value: bytes = b"v") -> gw.PutRequest:
    return gw.PutRequest(key=KEY, value=value)


@BOTH
async def test_a_stopping_node_answers_what_it_has_and_is_left(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, stub = await start_gateway(cluster)
    await stub.Put(put())
    old = cluster.leader_of(SHARD)
    new = next(node for node in cluster.nodes if node is not old)
    link = next(link for link in gateway.links.links() if link.address == old.address)
    old.delay_s = 0.3
    writing = asyncio.ensure_future(stub.Put(put(b"before")))
    await wait_until(lambda: len(old.seen) == 2)
    old.delay_s = 0.0
    connections = len(old.tokens)
    old.leave()
    await wait_until(lambda: not link.up)
    cluster.move_leader(SHARD, new)
    assert (await stub.Put(put(b"after"))).status.code == Status.OK
    assert (await writing).status.code == Status.OK, "it had it before it left"
    await wait_until(lambda: len(old.tokens) > connections)  # left, and looked for again
    assert [op.value for op in old.seen] == [b"v", b"before"]
    assert [op.value for op in cluster.shards.applied] == [b"v", b"before", b"after"]


@BOTH
async def test_writes_go_on_while_every_node_in_turn_stops_and_comes_back(
    cluster: FakeCluster, start_gateway: Start
) -> None:
    _, stub = await start_gateway(cluster, deadline_default_ms=10_000)
    stop = asyncio.Event()
    written: list[bytes] = []

    async def write(writer: int) -> None:
        number = 0
        while not stop.is_set():
            value = b"%d-%d" % (writer, number)
            answer = await stub.Put(put(value))
            assert answer.status.code == Status.OK, answer.status.message
            written.append(value)
            number += 1

    writers = [asyncio.create_task(write(writer)) for writer in range(8)]
    for node in list(cluster.nodes):
        count = len(written)
        await wait_until(lambda count=count: len(written) > count + 20)
        for shard_id in list(cluster.shards.leaders):
            if cluster.shards.leaders[shard_id] == node.address:
                cluster.move_leader(shard_id, next(one for one in cluster.nodes if one is not node))
        node.leave()
        await wait_until(lambda node=node: not node.connected)
        await node.kill()
        await node.start(node.port)
    stop.set()
    await asyncio.gather(*writers)
    assert sorted(op.value for op in cluster.shards.applied) == sorted(written), "each write once"


async def test_a_node_is_reached_over_grpc_until_it_speaks_links_and_again_after(start_gateway: Start) -> None:
    cluster = await FakeCluster(native=False).start(nodes=1)
    (node,) = cluster.nodes
    try:
        gateway, stub = await start_gateway(cluster, transport="native")
        assert (await stub.Put(put())).status.code == Status.OK
        (link,) = gateway.links.links()
        for native in (True, False):
            await node.kill()
            await wait_until(lambda: not link.up)
            node.native = native
            await node.start(node.port)
            await wait_until(lambda: link.up)
            assert (await stub.Put(put())).status.code == Status.OK
        assert len(cluster.shards.applied) == 3
    finally:
        await cluster.stop()
