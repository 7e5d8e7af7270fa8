"""Requests through a gateway when nothing fails, and requests that can never succeed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from fake_cluster import FakeCluster, wait_until
from fake_node import TOKEN
from flotta_gateway.call import Call
from flotta_proto.flotta import storage_pb2 as sp
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.hashing import shard_index

pytestmark = pytest.mark.parametrize("transport", ["native", "grpcio"])
Start = Callable[..., Awaitable[tuple[Any, Any]]]


async def test_put_get_delete_with_any_bytes(cluster: FakeCluster, start_gateway: Start) -> None:
    _, stub = await start_gateway(cluster)
    rows = {
        b"plain": b"v",
        b"with space": b"line\nline",
        b"\xff\xfe": b"\x00",
        b"\x00": b"",
        b"k" * 1024: b"x" * 70_000,
    }
    for key, value in rows.items():
        put = await stub.Put(gw.PutRequest(key=key, value=value))
        assert put.status.code == Status.OK
        assert put.version == put.revision > 100
        assert put.status.shard_id == f"shard-{shard_index(key, 4)}"
    for key, value in rows.items():
        got = await stub.Get(gw.GetRequest(key=key))
        assert (got.status.code, got.kv.key, got.kv.value) == (Status.OK, key, value)
        assert got.kv.version > 100
    for key in rows:
        assert (await stub.Delete(gw.DeleteRequest(key=key))).status.code == Status.OK
        assert (await stub.Delete(gw.DeleteRequest(key=key))).status.code == Status.NOT_FOUND
        assert (await stub.Get(gw.GetRequest(key=key))).status.code == Status.NOT_FOUND
    assert {token for node in cluster.nodes for token in node.tokens} == {TOKEN}
    # With a true map every write went straight to its leader.
    assert len(cluster.shards.applied) == 3 * len(rows)
    assert sum(len(node.seen) for node in cluster.nodes) == 5 * len(rows)


async def test_a_read_says_which_promise_it_keeps(cluster: FakeCluster, start_gateway: Start) -> None:
    _, stub = await start_gateway(cluster)
    written = await stub.Put(gw.PutRequest(key=b"k", value=b"v"))
    strong = await stub.Get(gw.GetRequest(key=b"k"))
    weak = await stub.Get(gw.GetRequest(key=b"k", options=gw.ReadOptions(consistency=gw.EVENTUAL)))
    assert (strong.guarantee, strong.revision) == (gw.LINEARIZABLE, written.revision)
    assert weak.guarantee == gw.ANY
    absent = await stub.Get(gw.GetRequest(key=b"absent"))
    assert (absent.status.code, absent.guarantee) == (Status.NOT_FOUND, gw.SERVED_GUARANTEE_UNSPECIFIED)


async def test_options_reach_the_node(cluster: FakeCluster, start_gateway: Start) -> None:
    _, stub = await start_gateway(cluster)
    key = b"options"
    leader = cluster.leader_of(f"shard-{shard_index(key, 4)}")
    await stub.Get(
        gw.GetRequest(
            key=key,
            head_only=True,
            options=gw.ReadOptions(
                consistency=gw.STRONG, read_mode=gw.READ_YOUR_WRITES, max_staleness_ms=7, session_revision=9
            ),
        ),
        timeout=3,
    )
    await stub.Put(
        gw.PutRequest(
            ctx=gw.RequestContext(request_id="id-1"),
            key=key,
            value=b"v",
            options=gw.WriteOptions(ttl_ms=1234, if_version_equals=77),
        )
    )
    await stub.Put(
        gw.PutRequest(
            ctx=gw.RequestContext(request_id="id-2"),
            key=key,
            value=b"v",
            options=gw.WriteOptions(require_idempotency=True, if_not_exists=True, durability=gw.WAL_ASYNC),
        )
    )
    get, put, create = leader.seen
    assert (get.kind, get.head_only, get.consistency) == (sp.GET, True, gw.STRONG)
    assert (get.read_mode, get.max_staleness_ms, get.session_revision) == (gw.READ_YOUR_WRITES, 7, 9)
    assert 0 < get.deadline_ms <= 3000
    assert (put.kind, put.value, put.ttl_ms, put.if_version_equals) == (sp.PUT, b"v", 1234, 77)
    assert put.request_id == ""  # an id alone asks for nothing
    assert 4000 < put.deadline_ms <= 5000
    assert (create.request_id, create.if_not_exists) == ("id-2", True)
    assert (put.epoch, put.shard_id) == (1, f"shard-{shard_index(key, 4)}")


async def test_a_batch_goes_in_one_frame_per_node(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, stub = await start_gateway(cluster)
    await stub.Get(gw.GetRequest(key=b"warm"))
    await wait_until(lambda: sum(link.up for link in gateway.links.links()) == 3)
    for node in cluster.nodes:
        node.frames.clear()
    answers: list[bytes] = []
    deadline_ms = time.monotonic() * 1000 + 5000
    gateway.dispatcher.submit(
        [Call(sp.PUT, gw.PutRequest(key=b"k%d" % i, value=b"v"), deadline_ms, answers.append) for i in range(200)]
    )
    await wait_until(lambda: len(answers) == 200)
    assert all(gw.PutResponse.FromString(answer).status.code == Status.OK for answer in answers)
    assert [len(node.frames) for node in cluster.nodes] == [1, 1, 1]
    assert sum(node.frames[0] for node in cluster.nodes) == 200
    assert gateway.dispatcher.calls_open == gateway.dispatcher.bytes_open == 0


async def test_eventual_reads_are_dealt_out_and_strong_ones_are_not(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, stub = await start_gateway(cluster)
    await stub.Put(gw.PutRequest(key=b"k", value=b"v"))
    await wait_until(lambda: sum(link.up for link in gateway.links.links()) == 3)
    for _ in range(9):
        await stub.Get(gw.GetRequest(key=b"k", options=gw.ReadOptions(consistency=gw.EVENTUAL)))
    assert all(any(op.kind == sp.GET for op in node.seen) for node in cluster.nodes)
    counts = [len(node.seen) for node in cluster.nodes]
    for consistency in (gw.CONSISTENCY_UNSPECIFIED, gw.STRONG):
        await stub.Get(gw.GetRequest(key=b"k", options=gw.ReadOptions(consistency=consistency)))
    grown = [len(node.seen) - count for node, count in zip(cluster.nodes, counts, strict=True)]
    assert sorted(grown) == [0, 0, 2]


def put(**fields: Any) -> gw.PutRequest:
    fields.setdefault("key", b"k")
    return gw.PutRequest(**fields)


BAD = [
    (gw.GetRequest(), Status.INVALID_ARGUMENT, "Key cannot be empty"),
    (gw.DeleteRequest(), Status.INVALID_ARGUMENT, "Key cannot be empty"),
    (put(key=b""), Status.INVALID_ARGUMENT, "Key cannot be empty"),
    (gw.GetRequest(key=b"k" * 1025), Status.INVALID_ARGUMENT, "key is 1025 bytes long; the limit is 1024"),
    (put(key=b"k" * 1025), Status.INVALID_ARGUMENT, "key is 1025"),
    (put(value=b"v" * 1001), Status.PAYLOAD_TOO_LARGE, "value is 1001 bytes long; the limit is 1000"),
    (gw.GetRequest(key=b"k", options=gw.ReadOptions(consistency=9)), Status.INVALID_ARGUMENT, "options.consistency"),  # type: ignore[arg-type]
    (gw.GetRequest(key=b"k", options=gw.ReadOptions(read_mode=9)), Status.INVALID_ARGUMENT, "options.read_mode"),  # type: ignore[arg-type]
    (put(options=gw.WriteOptions(durability=9)), Status.INVALID_ARGUMENT, "options.durability"),  # type: ignore[arg-type]
    (put(options=gw.WriteOptions(require_idempotency=True)), Status.INVALID_ARGUMENT, "ctx.request_id is empty"),
    (put(ctx=gw.RequestContext(request_id="é" * 129)), Status.INVALID_ARGUMENT, "ctx.request_id is 258 bytes"),
    (put(ctx=gw.RequestContext(tenant_id="é" * 129)), Status.INVALID_ARGUMENT, "ctx.tenant_id is 258 bytes"),
    (put(ctx=gw.RequestContext(principal="x" * 257)), Status.INVALID_ARGUMENT, "ctx.principal is 257 bytes"),
    (gw.GetRequest(key=b"k", options=gw.ReadOptions(session_revision=1)), Status.INVALID_ARGUMENT, "session_revision"),
    (put(options=gw.WriteOptions(ttl_ms=2**63)), Status.INVALID_ARGUMENT, "options.ttl_ms"),
    (put(options=gw.WriteOptions(if_not_exists=True, if_version_equals=1)), Status.INVALID_ARGUMENT, "contradict"),
    (gw.DeleteRequest(key=b"k", options=gw.WriteOptions(if_not_exists=True)), Status.INVALID_ARGUMENT, "if_not_exists"),
    (gw.DeleteRequest(key=b"k", options=gw.WriteOptions(ttl_ms=1)), Status.INVALID_ARGUMENT, "options.ttl_ms"),
]


@pytest.mark.parametrize(("request_", "code", "words"), BAD, ids=range(len(BAD)))
async def test_bad_input_is_named_and_goes_nowhere(
    cluster: FakeCluster, start_gateway: Start, request_: Any, code: int, words: str
) -> None:
    _, stub = await start_gateway(cluster, value_bytes_max=1000)
    rpc = {gw.GetRequest: stub.Get, gw.PutRequest: stub.Put, gw.DeleteRequest: stub.Delete}[type(request_)]
    answer = await rpc(request_)
    assert answer.status.code == code
    assert words in answer.status.message
    assert not any(node.seen for node in cluster.nodes)


async def test_the_largest_value_passes_and_one_more_byte_does_not(cluster: FakeCluster, start_gateway: Start) -> None:
    _, stub = await start_gateway(cluster)
    value = b"v" * (16 << 20)
    assert (await stub.Put(put(key=b"k" * 1024, value=value), timeout=20)).status.code == Status.OK
    assert (await stub.Get(gw.GetRequest(key=b"k" * 1024), timeout=20)).kv.value == value
    assert (await stub.Put(put(value=value + b"v"), timeout=20)).status.code == Status.PAYLOAD_TOO_LARGE


async def test_a_cluster_without_shards_says_what_to_do(start_gateway: Start) -> None:
    cluster = await FakeCluster().start(nodes=1, shards=0)
    try:
        cluster.state.map_version = 0
        gateway, stub = await start_gateway(cluster)
        await wait_until(lambda: gateway.maps.answered)
        answer = await stub.Put(put())
        assert answer.status.code == Status.UNAVAILABLE
        assert "POST /admin/config/shard-init" in answer.status.message
    finally:
        await cluster.stop()


async def test_conditions_come_back_as_status_codes(cluster: FakeCluster, start_gateway: Start) -> None:
    _, stub = await start_gateway(cluster)
    first = await stub.Put(put(value=b"1"))
    again = await stub.Put(put(value=b"2", options=gw.WriteOptions(if_not_exists=True)))
    assert again.status.code == Status.ALREADY_EXISTS
    wrong = await stub.Put(put(value=b"2", options=gw.WriteOptions(if_version_equals=first.version + 5)))
    assert (wrong.status.code, wrong.version) == (Status.VERSION_MISMATCH, 0)
    right = await stub.Put(put(value=b"2", options=gw.WriteOptions(if_version_equals=first.version)))
    assert right.status.code == Status.OK


async def test_unknown_methods_and_reflection(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, _ = await start_gateway(cluster)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        unknown = channel.unary_unary("/kvdb.gateway.KvGateway/Scan")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
