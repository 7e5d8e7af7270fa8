"""Requests that the native transport hands over in batches: one pass over them, each answered exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from flotta_gateway.batch_service import GatewayBatches
from flotta_gateway.core.deadlines import Patience
from flotta_gateway.multi import MultiLimits
from flotta_proto.flotta import storage_pb2 as sp
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.batches import BatchCall
from flotta_runtime.errors import InvalidArgument
from gateway_support import NODES, Cluster, Replies

GET, PUT, DELETE = range(3)


class Peer:
    address = "ipv4:127.0.0.1:1"
    tls_common_name = None
    tls_sans: list[str] = []  # noqa: RUF012


def call(number: int, method: int, message: bytes, remaining_ms: float | None = None) -> BatchCall:
    return BatchCall(number, method, message, None, remaining_ms, Peer())


def put(number: int, key: bytes, value: bytes = b"v", remaining_ms: float | None = None) -> BatchCall:
    return call(number, PUT, gw.PutRequest(key=key, value=value).SerializeToString(), remaining_ms)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.dispatcher.close()


@pytest.fixture
def service(cluster: Cluster) -> GatewayBatches:
    return GatewayBatches(cluster.dispatcher, cluster.clock, Patience(5_000, 60_000), MultiLimits())


async def test_a_batch_goes_out_in_one_frame_for_each_node(cluster: Cluster, service: GatewayBatches) -> None:
    replies = Replies()
    service.take([put(n, b"k%d" % n) for n in range(50)], replies)
    assert cluster.observer.batches == [50]
    assert [len(cluster.nodes[address].batches) for address in NODES] == [1, 1]
    assert sorted(operation.key for operation in cluster.sent()) == sorted(b"k%d" % n for n in range(50))
    assert {operation.epoch for operation in cluster.sent()} == {3}
    cluster.answer(version=7, revision=9)
    found = [gw.PutResponse.FromString(replies.replies[n]) for n in range(50)]
    assert {(one.status.code, one.version, one.revision) for one in found} == {(Status.OK, 7, 9)}
    assert cluster.observer.counts == {(sp.PUT, Status.OK): 50}
    assert cluster.dispatcher.calls_open == cluster.dispatcher.bytes_open == 0


async def test_every_method_answers_with_its_own_message(cluster: Cluster, service: GatewayBatches) -> None:
    replies = Replies()
    requests = (
        call(1, GET, gw.GetRequest(key=b"a").SerializeToString()),
        put(2, b"b"),
        call(3, DELETE, gw.DeleteRequest(key=b"c").SerializeToString()),
    )
    service.take(requests, replies)
    assert sorted(operation.kind for operation in cluster.sent()) == [sp.GET, sp.PUT, sp.DELETE]
    cluster.answer(value=b"found", version=5, revision=6, create_time_ms=1, update_time_ms=2, expire_time_ms=3)
    got = gw.GetResponse.FromString(replies.replies[1])
    assert got.kv == gw.KeyValue(
        key=b"a", value=b"found", version=5, create_time_ms=1, update_time_ms=2, expire_time_ms=3
    )
    assert (got.status.code, got.status.shard_id[:6], got.revision) == (Status.OK, "shard-", 6)
    assert gw.PutResponse.FromString(replies.replies[2]).version == 5
    assert gw.DeleteResponse.FromString(replies.replies[3]).version == 5
    service.take(requests, again := Replies())
    cluster.answer(Status.NOT_FOUND, message="key does not exist")
    told = gw.GetResponse.FromString(again.replies[1])
    assert (told.status.code, told.status.message) == (Status.NOT_FOUND, "key does not exist")
    assert gw.DeleteResponse.FromString(again.replies[3]).status.code == Status.NOT_FOUND


async def test_bad_requests_fail_alone(cluster: Cluster, service: GatewayBatches) -> None:
    replies = Replies()
    wrong_type = gw.PutRequest(key=b"k").SerializeToString().replace(b"\x12", b"\x10", 1)
    service.take([put(1, b"k"), call(2, PUT, wrong_type), put(3, b""), put(4, b"k", b"x" * 1_001)], replies)
    assert len(cluster.sent()) == 1
    assert list(replies.errors) == [2]
    assert isinstance(replies.errors[2], InvalidArgument)
    assert "kvdb.gateway.PutRequest" in replies.errors[2].message
    assert gw.PutResponse.FromString(replies.replies[3]).status.code == Status.INVALID_ARGUMENT
    assert gw.PutResponse.FromString(replies.replies[4]).status.code == Status.PAYLOAD_TOO_LARGE
    cluster.answer()
    assert gw.PutResponse.FromString(replies.replies[1]).status.code == Status.OK


async def test_who_has_gone_is_not_answered(cluster: Cluster, service: GatewayBatches) -> None:
    replies = Replies()
    service.take([put(1, b"a"), put(2, b"b")], replies)
    service.ended([1, 77])
    assert sum(node.forgotten for node in cluster.nodes.values()) == 1
    cluster.answer()
    assert list(replies.replies) == [2]
    service.ended([2])
    assert cluster.dispatcher.calls_open == cluster.dispatcher.bytes_open == 0


async def test_the_clients_deadline_counts_and_the_answer_comes_before_it(
    cluster: Cluster, service: GatewayBatches
) -> None:
    replies = Replies()
    service.take([put(1, b"a", remaining_ms=400.0), put(2, b"a"), put(3, b"a", remaining_ms=3_600_000.0)], replies)
    left = {operation.call: operation.deadline_ms for operation in cluster.sent()}
    assert list(left.values()) == [380, 5_000, 60_000]
    cluster.clock.advance(400)
    async with asyncio.timeout(60):
        await replies.news.wait()
    told = gw.PutResponse.FromString(replies.replies[1]).status
    assert (told.code, "may have happened" in told.message) == (Status.TIMEOUT, True)
    assert list(replies.replies) == [1]


async def test_what_is_too_much_is_refused_alone() -> None:
    cluster = Cluster(calls_max=3)
    service = GatewayBatches(cluster.dispatcher, cluster.clock, Patience(5_000, 60_000), MultiLimits())
    replies = Replies()
    service.take([put(n, b"k") for n in range(5)], replies)
    refused = {number: gw.PutResponse.FromString(payload).status for number, payload in replies.replies.items()}
    assert sorted(refused) == [3, 4]
    assert {(status.code, status.retry_after_ms > 0) for status in refused.values()} == {(Status.RATE_LIMITED, True)}
    cluster.dispatcher.close()
    assert sorted(replies.replies) == [0, 1, 2, 3, 4]
    assert cluster.dispatcher.calls_open == cluster.dispatcher.bytes_open == 0
