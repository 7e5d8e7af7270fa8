"""Many operations in one request through a whole gateway, when nodes fail and when they do not, on both transports."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from fake_cluster import FakeCluster, wait_until
from flotta_proto.flotta import storage_pb2 as sp
from flotta_proto.flotta.kv_pb2 import BatchItem, BatchRequest
from flotta_proto.flotta.kv_pb2_grpc import KvStub
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_proto.kvdb.gateway_pb2 import Status

pytestmark = pytest.mark.parametrize("transport", ["native", "grpcio"])
Start = Callable[..., Awaitable[tuple[Any, Any]]]


def put(key: bytes, value: bytes = b"v", request_id: str = "") -> BatchItem:
    context = gw.RequestContext(request_id=request_id)
    options = gw.WriteOptions(require_idempotency=bool(request_id))
    return BatchItem(put=gw.PutRequest(ctx=context, key=key, value=value, options=options))


def get(key: bytes) -> BatchItem:
    return BatchItem(get=gw.GetRequest(key=key))


async def ask(gateway: Any, *items: BatchItem, timeout_s: float = 10) -> list[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        response = await KvStub(channel).Batch(BatchRequest(items=items), timeout=timeout_s)
    return [getattr(one, one.WhichOneof("response") or "") for one in response.results]


async def test_a_batch_is_one_frame_for_each_leader(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, _ = await start_gateway(cluster)
    await ask(gateway, put(b"warm"))  # whatever comes with the first request has come
    before = [len(node.frames) for node in cluster.nodes]
    keys = [b"key-%d" % number for number in range(200)]
    puts = await ask(gateway, *(put(key, b"value of " + key) for key in keys))
    assert {one.status.code for one in puts} == {Status.OK}
    frames = [node.frames[count:] for node, count in zip(cluster.nodes, before, strict=True)]
    assert sum(map(sum, frames)) == 200
    assert all(len(found) <= 1 for found in frames), frames
    gets = await ask(gateway, *map(get, keys))
    assert [one.kv.value for one in gets] == [b"value of " + key for key in keys]


async def test_order_within_a_key_outlasts_failures(cluster: FakeCluster, start_gateway: Start) -> None:
    """The first attempt of every write with an even value is refused, so that it comes later than it was asked for."""
    gateway, _ = await start_gateway(cluster)
    refused: set[tuple[bytes, bytes]] = set()

    def fault(op: sp.Operation) -> sp.Reply | str | None:
        at = (op.key, op.value)
        if op.kind != sp.PUT or int(op.value) % 2 or at in refused:
            return None
        refused.add(at)
        return sp.Reply(call=op.call, code=Status.UNAVAILABLE, message="not now", shard_id=op.shard_id)

    for node in cluster.nodes:
        node.fault = fault
    items = [put(b"k%d" % key, b"%d" % value) for value in range(6) for key in range(3)]
    found = await ask(gateway, *items)
    assert {one.status.code for one in found} == {Status.OK}
    assert len(refused) == 9
    for key in range(3):
        applied = [op.value for op in cluster.shards.applied if op.key == b"k%d" % key]
        assert applied == [b"%d" % value for value in range(6)]


async def test_only_deduplicated_writes_are_sent_again(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, _ = await start_gateway(cluster)
    dying = set(range(len(cluster.nodes)))

    def fault_of(number: int) -> Callable[[sp.Operation], str | None]:
        def fault(op: sp.Operation) -> str | None:
            if op.kind == sp.PUT and number in dying:
                dying.discard(number)
                return "apply-and-die"
            return None

        return fault

    for number, node in enumerate(cluster.nodes):
        node.fault = fault_of(number)
    items = [put(b"plain-%d" % n) for n in range(20)] + [put(b"once-%d" % n, b"v", f"id-{n}") for n in range(20)]
    found = await ask(gateway, *items)
    assert Status.TIMEOUT in {one.status.code for one in found[:20]}
    assert {one.status.code for one in found[20:]} == {Status.OK}
    written = [op.key for op in cluster.shards.applied]
    assert len(written) == len(set(written))
    for key, one in zip([item.put.key for item in items], found, strict=True):
        assert one.status.code == Status.TIMEOUT or key in written


async def test_who_hangs_up_leaves_nothing_behind(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, _ = await start_gateway(cluster)
    for node in cluster.nodes:
        node.fault = lambda op: "drop"
    asked = asyncio.create_task(ask(gateway, *(put(b"k%d" % (n % 5)) for n in range(20))))
    await wait_until(lambda: gateway.dispatcher.calls_open == 5)
    asked.cancel()
    await wait_until(lambda: gateway.dispatcher.calls_open == 0)
    assert gateway.dispatcher.bytes_open == 0


async def test_a_wrong_request_is_refused_as_a_whole(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, _ = await start_gateway(cluster, batch_items_max=2, batch_bytes_max=1_000)
    for items, words in (
        ([put(b"a"), put(b"b"), put(b"c")], "items has 3 entries; the limit is 2"),
        ([put(b"a", b"x" * 2_000)], "the limit is 1000"),
        ([put(b"a"), BatchItem()], "items[1] names no operation"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(gateway, *items)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in (caught.value.details() or "")
    assert await ask(gateway) == []
    assert cluster.shards.applied == []
