"""`AsyncClient.batch` against a gateway that misbehaves on command."""

from __future__ import annotations

from collections.abc import AsyncIterator

import flotta
import grpc
import pytest
from fake_gateway import FakeGateway
from flotta import AsyncClient, Consistency, Delete, Entry, Get, Put
from flotta_proto.kvdb import gateway_pb2 as gw

BUSY = gw.Status(code=gw.Status.RATE_LIMITED, message="busy", retry_after_ms=30)
BUSY_FOR_LONG = gw.Status(code=gw.Status.RATE_LIMITED, message="busy", retry_after_ms=60_000)
OLD_FAILURE = gw.Status(code=gw.Status.UNAVAILABLE, message="no leader")


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    made = await FakeGateway().start()
    yield made
    await made.kill()


@pytest.fixture
async def client(gateway: FakeGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address, timeout_ms=2_000) as made:
        yield made


async def test_results_are_what_the_calls_would_return(client: AsyncClient, gateway: FakeGateway) -> None:
    found = await client.batch(
        [
            Put("a", "1"),
            Put("b", b"2"),
            Get("a"),
            Get("absent"),
            Delete("b"),
            Delete("b"),
            Put("a", "3", if_absent=True),
        ]
    )
    assert found[:2] == [1, 2]
    assert found[2] == Entry(b"a", b"1", 1, 1000, 1001, 0)
    assert found[3] is None
    assert found[4:6] == [3, None]
    assert isinstance(found[6], flotta.AlreadyExistsError)
    assert gateway.batches == [7]
    assert await client.batch([]) == []
    assert gateway.batches == [7]


async def test_options_travel(client: AsyncClient, gateway: FakeGateway) -> None:
    await client.batch(
        [
            Get("k", Consistency.EVENTUAL, max_staleness_ms=9, head_only=True),
            Put("k", "v", ttl_ms=5),
            Put("k", "v", if_version=1, request_id="mine"),
            Delete("k", if_version=2),
        ]
    )
    get, put, conditional, delete = gateway.seen
    assert (get.options.consistency, get.options.max_staleness_ms, get.head_only) == (gw.EVENTUAL, 9, True)
    assert put.options.ttl_ms == 5
    assert put.options.require_idempotency and put.ctx.request_id.startswith("flotta:")
    assert (conditional.ctx.request_id, conditional.options.if_version_equals) == ("mine", 1)
    assert delete.options.if_version_equals == 2


async def test_only_what_was_refused_for_now_is_sent_again(client: AsyncClient, gateway: FakeGateway) -> None:
    gateway.script = [None, BUSY, OLD_FAILURE, BUSY]
    found = await client.batch([Put("a", "1"), Put("b", "2"), Put("c", "3"), Put("d", "4")])
    assert found[0] == 1
    assert [found[1], found[3]] == [2, 3]
    assert isinstance(found[2], flotta.UnavailableError)
    assert gateway.batches == [4, 2]
    assert sorted(gateway.rows) == [b"a", b"b", b"d"]


async def test_what_stays_refused_says_so(client: AsyncClient, gateway: FakeGateway) -> None:
    gateway.script = [None, BUSY_FOR_LONG]
    found = await client.batch([Put("a", "1"), Put("b", "2")])
    assert found[0] == 1
    assert isinstance(found[1], flotta.RateLimitedError)
    assert found[1].retry_after_ms == 60_000
    assert gateway.batches == [2]


async def test_a_lost_answer_is_asked_for_again_when_that_is_safe(client: AsyncClient, gateway: FakeGateway) -> None:
    gateway.script = [None, grpc.StatusCode.UNAVAILABLE]
    assert await client.batch([Put("a", "1"), Put("b", "2"), Get("a")]) == [
        *(1, 2, Entry(b"a", b"1", 1, 1000, 1001, 0)),
    ]
    assert gateway.batches == [3, 3]
    assert gateway.version == 2


async def test_a_lost_answer_with_plain_writes_is_unknown(gateway: FakeGateway) -> None:
    async with AsyncClient(gateway.address, idempotent_writes=False) as client:
        gateway.script = [None, grpc.StatusCode.UNAVAILABLE]
        with pytest.raises(flotta.OutcomeUnknownError):
            await client.batch([Get("a"), Put("b", "2")])
        assert gateway.batches == [2]
        gateway.script = [None, grpc.StatusCode.UNAVAILABLE]
        assert await client.batch([Get("a"), Get("c")]) == [None, None]


async def test_doubt_is_not_forgotten(client: AsyncClient, gateway: FakeGateway) -> None:
    gateway.script = [grpc.StatusCode.UNAVAILABLE, None, OLD_FAILURE]
    found = await client.batch([Put("a", "1"), Put("b", "2")])
    assert found[0] == 1
    assert isinstance(found[1], flotta.OutcomeUnknownError)
    assert "may have been carried out" in str(found[1])


async def test_results_that_came_stay_when_a_repeat_fails(client: AsyncClient, gateway: FakeGateway) -> None:
    await client.get("a")  # connected
    gateway.script = [None, BUSY, "hang"]
    found = await client.batch([Put("a", "1"), Put("b", "2")], timeout_ms=1_000)
    assert found[0] == 1
    assert isinstance(found[1], flotta.OutcomeUnknownError)


async def test_a_refusal_of_the_whole_is_raised(client: AsyncClient, gateway: FakeGateway) -> None:
    gateway.script = [grpc.StatusCode.INVALID_ARGUMENT]
    with pytest.raises(flotta.InvalidArgumentError, match="as the test wants it"):
        await client.batch([Put("a", "1")])


async def test_too_large_a_batch_is_said_so(client: AsyncClient) -> None:
    with pytest.raises(flotta.PayloadTooLargeError):
        await client.batch([Put("a", b"x" * (9 << 20)), Put("b", b"x" * (9 << 20))], timeout_ms=10_000)
