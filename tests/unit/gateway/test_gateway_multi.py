"""Many operations in one request: one pass, one frame for each node, a result for each item, order within a key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from flotta_gateway.batch_service import GatewayBatches
from flotta_gateway.core.deadlines import Patience
from flotta_gateway.multi import MultiLimits
from flotta_proto.flotta import storage_pb2 as sp
from flotta_proto.flotta.kv_pb2 import BatchItem, BatchRequest, BatchResponse
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.batches import BatchCall
from flotta_runtime.errors import InvalidArgument, PayloadTooLarge
from gateway_support import NODES, Cluster, Replies

BATCH = 3


class Peer:
    address = "ipv4:127.0.0.1:1"
    tls_common_name = None
    tls_sans: list[str] = []  # noqa: RUF012


def put(key: bytes, value: bytes = b"v", **fields: Any) -> BatchItem:
    return BatchItem(put=gw.PutRequest(key=key, value=value, **fields))


def get(key: bytes) -> BatchItem:
    return BatchItem(get=gw.GetRequest(key=key))


def delete(key: bytes) -> BatchItem:
    return BatchItem(delete=gw.DeleteRequest(key=key))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.dispatcher.close()


class Door:
    """The gateway's native door."""

    def __init__(self, cluster: Cluster, **limits: int) -> None:
        patience = Patience(5_000, 60_000)
        self.service = GatewayBatches(cluster.dispatcher, cluster.clock, patience, MultiLimits(**limits))
        self.replies = Replies()

    def ask(self, number: int, *items: BatchItem) -> None:
        message = BatchRequest(items=items).SerializeToString()
        self.service.take([BatchCall(number, BATCH, message, None, None, Peer())], self.replies)

    def results(self, number: int) -> list[Any]:
        """Each result's response."""
        found = BatchResponse.FromString(self.replies.replies[number]).results
        return [getattr(one, one.WhichOneof("response") or "") for one in found]

    def codes(self, number: int) -> list[int]:
        return [response.status.code for response in self.results(number)]


@pytest.fixture
def door(cluster: Cluster) -> Door:
    return Door(cluster)


async def test_a_request_goes_out_in_one_frame_for_each_node(cluster: Cluster, door: Door) -> None:
    door.ask(1, *(put(b"k%d" % n) for n in range(50)))
    assert cluster.observer.batches == [50]
    assert [len(cluster.nodes[address].batches) for address in NODES] == [1, 1]
    assert door.replies.replies == {}
    cluster.answer(version=7, revision=9)
    found = [(one.status.code, one.version, one.revision) for one in door.results(1)]
    assert found == [(Status.OK, 7, 9)] * 50
    assert cluster.observer.counts == {(sp.PUT, Status.OK): 50}
    assert cluster.dispatcher.calls_open == cluster.dispatcher.bytes_open == 0


async def test_results_stand_where_their_items_stood(cluster: Cluster, door: Door) -> None:
    door.ask(1, get(b"a"), put(b"b"), delete(b"c"), put(b""), get(b"d"))
    cluster.answer(value=b"found", version=5)
    results = door.results(1)
    assert [type(one) for one in results] == [
        *(gw.GetResponse, gw.PutResponse, gw.DeleteResponse, gw.PutResponse, gw.GetResponse),
    ]
    assert (results[0].kv.key, results[4].kv.key) == (b"a", b"d")
    assert door.codes(1) == [Status.OK, Status.OK, Status.OK, Status.INVALID_ARGUMENT, Status.OK]
    assert "Key cannot be empty" in results[3].status.message


async def test_nothing_asked_is_nothing_answered(cluster: Cluster, door: Door) -> None:
    door.ask(1)
    assert door.results(1) == []
    assert cluster.observer.batches == []


async def test_a_request_that_is_wrong_does_nothing(cluster: Cluster) -> None:
    door = Door(cluster, items_max=3, bytes_max=500)
    door.ask(1, *(put(b"k%d" % n) for n in range(4)))
    door.ask(2, put(b"a"), BatchItem())
    door.ask(3, put(b"a"), put(b"b", b"x" * 600))
    errors = door.replies.errors
    assert isinstance(errors[1], InvalidArgument)
    assert errors[1].message == "items has 4 entries; the limit is 3"
    assert isinstance(errors[2], InvalidArgument)
    assert errors[2].message.startswith("items[1] names no operation")
    assert isinstance(errors[3], PayloadTooLarge)
    assert (errors[3].field, errors[3].limit) == ("items", 500)
    assert "the limit is 500" in errors[3].message
    assert (cluster.sent(), door.replies.replies, cluster.dispatcher.calls_open) == ([], {}, 0)


async def test_items_of_one_key_go_one_after_the_other(cluster: Cluster, door: Door) -> None:
    door.ask(1, put(b"k", b"1"), get(b"k"), put(b"other"), put(b"k", b"2"), delete(b"k"))
    seen = []
    for _ in range(4):
        seen += [(one.kind, one.value) for one in cluster.sent() if one.key == b"k"]
        assert 1 not in door.replies.replies
        cluster.answer()
        await asyncio.sleep(0)
    assert seen == [(sp.PUT, b"1"), (sp.GET, b""), (sp.PUT, b"2"), (sp.DELETE, b"")]
    assert door.codes(1) == [Status.OK] * 5
    assert cluster.dispatcher.calls_open == 0


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (Status.TIMEOUT, Status.UNAVAILABLE),
        (Status.INTERNAL, Status.UNAVAILABLE),
        (Status.RATE_LIMITED, Status.RATE_LIMITED),
    ],
)
async def test_nothing_follows_an_item_that_may_yet_be_done(
    cluster: Cluster, door: Door, first: int, later: int
) -> None:
    door.ask(1, put(b"k", b"1"), put(b"k", b"2"), put(b"k", b"3"))
    cluster.answer(first, message="so it is", retry_after_ms=70 if first == Status.RATE_LIMITED else 0)
    async with asyncio.timeout(60):
        await door.replies.news.wait()
    assert door.codes(1) == [first, later, later]
    second = door.results(1)[1].status
    assert "items[0]" in second.message and "so it is" in second.message
    assert second.retry_after_ms == (70 if first == Status.RATE_LIMITED else 100)
    assert cluster.sent() == []
    assert cluster.observer.counts[sp.PUT, later] >= 2


async def test_a_refusal_for_good_holds_nothing_back(cluster: Cluster, door: Door) -> None:
    door.ask(1, put(b"k", b"x" * 1_001), put(b"k", b"1"), put(b"k", b"2"))
    await asyncio.sleep(0)
    cluster.answer(Status.VERSION_MISMATCH)
    await asyncio.sleep(0)
    cluster.answer()
    assert door.codes(1) == [Status.PAYLOAD_TOO_LARGE, Status.VERSION_MISMATCH, Status.OK]


async def test_a_long_row_of_refusals_is_no_depth(cluster: Cluster, door: Door) -> None:
    door.ask(1, *(put(b"k") for _ in range(1_000)))
    cluster.answer(Status.TIMEOUT, message="x" * 4_000)
    async with asyncio.timeout(60):
        await door.replies.news.wait()
    assert door.codes(1) == [Status.TIMEOUT] + [Status.UNAVAILABLE] * 999
    assert all(len(one.status.message) < 600 for one in door.results(1)[1:])


async def test_who_has_gone_begins_nothing_more(cluster: Cluster, door: Door) -> None:
    door.ask(1, put(b"a"), put(b"k", b"1"), put(b"k", b"2"))
    cluster.answer()  # the next one is about to be begun
    door.service.ended([1])
    await asyncio.sleep(0)
    assert cluster.sent() == []
    assert door.replies.replies == {}
    assert cluster.dispatcher.calls_open == cluster.dispatcher.bytes_open == 0


async def test_values_that_do_not_fit_are_refused_one_by_one(cluster: Cluster) -> None:
    door = Door(cluster, response_bytes_max=4 * 1024 + 50_000)
    door.ask(1, get(b"a"), get(b"b"), get(b"c"), put(b"d"))
    cluster.answer(value=b"x" * 20_000)
    codes = door.codes(1)
    assert sorted(codes) == sorted([Status.OK, Status.OK, Status.PAYLOAD_TOO_LARGE, Status.OK])
    assert codes[3] == Status.OK
    refused = door.results(1)[codes.index(Status.PAYLOAD_TOO_LARGE)].status
    assert "too much for one response" in refused.message
    assert len(door.replies.replies[1]) <= 4 * 1024 + 50_000


async def test_overload_refuses_what_is_too_much(cluster: Cluster) -> None:
    small = Cluster(calls_max=3)
    door = Door(small)
    door.ask(1, *(put(b"k%d" % n) for n in range(5)))
    assert len(small.sent()) == 3
    small.answer()
    assert door.codes(1) == [Status.OK] * 3 + [Status.RATE_LIMITED] * 2
