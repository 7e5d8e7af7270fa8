"""Scans of the client: pages are got while one iterates, waited for, and gone on with; blocking ones too."""

from __future__ import annotations

from collections.abc import AsyncIterator

import flotta
import pytest
from fake_gateway import FakeGateway
from flotta import AsyncClient, Client, Consistency, Guarantee, Page
from flotta_proto.flotta.kv_pb2 import ScanRequest
from flotta_proto.kvdb import gateway_pb2 as gw
from loop_thread import LoopThread

BUSY = gw.Status(code=gw.Status.RATE_LIMITED, message="busy", retry_after_ms=30)
DOWN = gw.Status(code=gw.Status.UNAVAILABLE, message="no shards")


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    made = await FakeGateway().start()
    fill(made)
    yield made
    await made.kill()


@pytest.fixture
async def client(gateway: FakeGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address, timeout_ms=3_000) as made:
        yield made


def fill(gateway: FakeGateway) -> None:
    for number in range(25):
        key = b"user:%02d" % number
        gateway.rows[key] = gw.KeyValue(key=key, value=b"v%d" % number, version=number + 1, update_time_ms=9)
    gateway.rows[b"other"] = gw.KeyValue(key=b"other", value=b"o", version=99)


def asked(gateway: FakeGateway) -> list[ScanRequest]:
    return [request for request in gateway.seen if isinstance(request, ScanRequest)]


async def test_entries_come_in_order_over_pages(client: AsyncClient, gateway: FakeGateway) -> None:
    gateway.page_rows = 10
    entries = [entry async for entry in client.scan("user:")]
    assert [(entry.key, entry.value) for entry in entries] == [(b"user:%02d" % n, b"v%d" % n) for n in range(25)]
    assert (entries[3].version, entries[3].update_time_ms, entries[3].guarantee) == (4, 9, Guarantee.LINEARIZABLE)
    assert len(asked(gateway)) == 3
    backwards = [entry.key async for entry in client.scan(b"user:", start="user:05", end=b"user:08", reverse=True)]
    assert backwards == [b"user:07", b"user:06", b"user:05"]
    assert [entry.value async for entry in client.scan("user:", keys_only=True, limit=2)] == [b"", b""]
    weak = [entry async for entry in client.scan(consistency=Consistency.EVENTUAL, max_staleness_ms=70)]
    assert (len(weak), weak[0].guarantee) == (26, Guarantee.ANY)
    assert asked(gateway)[-1].options.max_staleness_ms == 70


async def test_nothing_is_asked_for_before_it_is_wanted(client: AsyncClient, gateway: FakeGateway) -> None:
    gateway.page_rows = 10
    scan = client.scan("user:")
    assert asked(gateway) == []
    async for entry in scan:
        if entry.key == b"user:12":
            break
    assert len(asked(gateway)) == 2


@pytest.mark.parametrize(("limit", "page_size", "sizes"), [(7, 0, [7]), (7, 3, [3, 3, 1]), (5_000, 0, [1_000])])
async def test_limits(client: AsyncClient, gateway: FakeGateway, limit: int, page_size: int, sizes: list[int]) -> None:
    entries = [entry async for entry in client.scan("user:", limit=limit, page_size=page_size)]
    assert len(entries) == min(limit, 25)
    assert [request.limit for request in asked(gateway)] == sizes


async def test_a_token_goes_on_in_another_scan(client: AsyncClient, gateway: FakeGateway) -> None:
    gateway.page_rows = 10
    pages = [page async for page in client.scan("user:").pages()]
    assert [len(page.entries) for page in pages] == [10, 10, 5]
    assert pages[-1].token == b""
    assert pages[0].revisions == {"shard-0": 0}
    rest = [entry async for entry in client.scan("user:", token=pages[0].token)]
    assert rest == [*pages[1].entries, *pages[2].entries]
    again = [page async for page in client.scan("user:").pages()]
    assert again == pages


async def test_an_iteration_begins_anew(client: AsyncClient) -> None:
    scan = client.scan("user:", limit=4)
    assert [entry.key async for entry in scan] == [entry.key async for entry in scan]


async def test_pages_without_entries_are_passed_over(client: AsyncClient, gateway: FakeGateway) -> None:
    def scan(request: ScanRequest) -> object:
        answer = real(request)
        if request.page_token != b"user:03":
            del answer.entries[:]
            answer.next_page_token = b"user:03"
        return answer

    real, gateway._scan = gateway._scan, scan  # type: ignore[method-assign,assignment]
    pages = [page async for page in client.scan("user:").pages()]
    assert [len(page.entries) for page in pages] == [21]
    gateway.rows.clear()
    assert [page async for page in client.scan("user:").pages()] == [Page((), b"")]


async def test_overload_is_waited_out_and_other_failures_are_raised(client: AsyncClient, gateway: FakeGateway) -> None:
    gateway.page_rows = 10
    gateway.script = [BUSY, None, BUSY, BUSY, None]
    assert len([entry async for entry in client.scan("user:")]) == 25
    assert await client.count("user:") == 25
    gateway.script = [None, DOWN]
    seen = []
    with pytest.raises(flotta.UnavailableError, match="no shards"):
        async for entry in client.scan("user:"):
            seen.append(entry.key)  # noqa: PERF401 - what came before the error counts
    assert len(seen) == 10, "what came before is right"
    gateway.script = [BUSY] * 100
    with pytest.raises(flotta.RateLimitedError):
        await client.count(timeout_ms=500)


async def test_a_lost_gateway_is_left_for_the_next(gateway: FakeGateway) -> None:
    other = await FakeGateway().start()
    fill(other)
    for one in (gateway, other):
        one.page_rows = 10
    async with AsyncClient(other.address, gateway.address, timeout_ms=10_000) as client:
        scan = aiter(client.scan("user:"))
        first = [await anext(scan) for _ in range(10)]
        await other.kill()
        rest = [entry async for entry in scan]
    assert [entry.key for entry in (*first, *rest)] == [b"user:%02d" % number for number in range(25)]


async def test_what_can_never_be_is_said_at_once(client: AsyncClient, gateway: FakeGateway) -> None:
    for fields, words in (
        ({"limit": -1}, "limit is -1"),
        ({"page_size": -1}, "page_size is -1"),
        ({"page_size": 10_001}, "1 to 10000"),
        ({"start": "b", "end": "a"}, "start comes after end"),
    ):
        with pytest.raises(flotta.InvalidArgumentError, match=words):
            client.scan(**fields)  # type: ignore[arg-type]
    assert asked(gateway) == []
    async with AsyncClient.smart(gateway.address, internal_token="t") as smart:
        with pytest.raises(flotta.InvalidArgumentError, match="client of a gateway"):
            await smart.count()


def test_the_blocking_client_does_the_same() -> None:
    with LoopThread() as loop:
        gateway = loop.run(FakeGateway().start())
        fill(gateway)
        gateway.page_rows = 10
        with Client(gateway.address, timeout_ms=3_000) as client:
            assert [entry.key for entry in client.scan("user:")] == [b"user:%02d" % number for number in range(25)]
            assert [len(page.entries) for page in client.scan("user:").pages()] == [10, 10, 5]
            assert client.count() == 26
            first = next(iter(client.scan("user:", limit=1)))
            assert (first.key, first.value) == (b"user:00", b"v0")
        loop.run(gateway.kill())
