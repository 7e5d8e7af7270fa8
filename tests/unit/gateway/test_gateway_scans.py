"""Pages of a scan, whatever the shards have next: all rows once and in order, within bounds, and clear refusals."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from flotta_gateway.core.scans import ScanLimits, missing, page_of, plan_of
from flotta_proto.flotta.kv_pb2 import ScanRequest, ScanResponse
from flotta_proto.flotta.storage_pb2 import Operation, Reply, ScanPart
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.errors import RateLimited
from flotta_runtime.hashing import shard_index
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_world import ScanWorld

KEYS = st.binary(min_size=1, max_size=3)
ROWS = st.dictionaries(KEYS, st.binary(max_size=300), max_size=50)
MANY = {b"user:%04d" % number: b"value %d" % number for number in range(500)}


def rows_of(pages: list[ScanResponse]) -> list[tuple[bytes, bytes]]:
    return [(entry.key, entry.value) for page in pages for entry in page.entries]


def expected(rows: dict[bytes, bytes], fields: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    prefix, start, end = (fields.get(name, b"") for name in ("prefix", "start", "end"))
    inside = [key for key in rows if key.startswith(prefix) and key >= start and (not end or key < end)]
    return [(key, rows[key]) for key in sorted(inside, reverse=fields.get("reverse", False))]


RANGES = st.fixed_dictionaries(
    {},
    optional={
        "prefix": st.one_of(st.binary(max_size=2), st.just(b"\xff")),
        "start": st.binary(max_size=2),
        "end": st.binary(max_size=2),
        "reverse": st.booleans(),
    },
).filter(lambda fields: not fields.get("end") or fields.get("start", b"") <= fields["end"])


@settings(deadline=None)
@given(ROWS, RANGES, st.integers(1, 6), st.integers(1, 20), st.sampled_from([1, 100, 700, 100_000]), st.integers(0, 2))
def test_pages_add_up_to_what_a_model_has(
    rows: dict[bytes, bytes], fields: dict[str, Any], shards: int, limit: int, limit_bytes: int, steps_max: int
) -> None:
    async def all_of_it() -> None:
        world = ScanWorld(rows, shards)
        world.steps_max, world.step_rows = steps_max, 3
        pages = await world.pages(limit=limit, limit_bytes=limit_bytes, **fields)
        assert rows_of(pages) == expected(rows, fields)
        assert all(len(page.entries) <= limit for page in pages)
        assert all(page.count == len(page.entries) for page in pages)
        names = await world.pages(limit=limit, keys_only=True, **fields)
        assert rows_of(names) == [(key, b"") for key, _ in expected(rows, fields)]
        counted = await world.pages(count_only=True, **fields)
        assert sum(page.count for page in counted) == len(expected(rows, fields))
        assert rows_of(counted) == []
        assert world.scanner.bytes_open == world.dispatcher.calls_open == 0

    asyncio.run(all_of_it())


@settings(deadline=None, max_examples=50)
@given(ROWS, RANGES, st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2)), max_size=4), st.booleans(), st.data())
def test_a_scan_goes_on_while_shards_are_divided(
    rows: dict[bytes, bytes], fields: dict[str, Any], divisions: list[tuple[int, int]], flips: bool, data: Any
) -> None:
    """Divided between two pages and between two shards of one page; the map is behind, or routes to all of them."""

    async def all_of_it() -> None:
        world = ScanWorld(rows, 3)
        planned = dict(divisions)

        def divide(count: int) -> None:
            shard_id = f"shard-{planned.pop(count)}"
            if world.classes[shard_id][1] == 3:
                world.divide(shard_id, 2)
            if flips and all(count == 6 for _, count in world.classes.values()):
                world.publish(6)

        def script(operation: Operation) -> Reply | None:
            if len(world.asked) in planned:
                divide(len(world.asked))
            return None

        world.script = script
        assert rows_of(await world.pages(limit=4, **fields)) == expected(rows, fields)
        counted = await world.pages(count_only=True, **fields)
        assert sum(page.count for page in counted) == len(expected(rows, fields))

    asyncio.run(all_of_it())


@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from([1, 2, 3, 4, 8])), min_size=1, max_size=5, unique=True))
def test_classes_make_a_whole_or_name_what_is_missing(found: list[tuple[int, int]]) -> None:
    found = [(index % count, count) for index, count in found]
    covered = [[value % count == index for value in range(24)] for index, count in found]
    times = [sum(column) for column in zip(*covered, strict=True)]
    more = missing(found)
    if max(times) > 1:
        assert more is None
    elif more is not None:
        owned = [value for value in range(24) for index, count in more if value % count == index]
        assert sorted(owned) == [value for value in range(24) if not times[value]]


def test_a_row_at_the_frontier_is_of_the_next_page() -> None:
    """A piece that stopped behind `a` says that its rest begins at the key after it, which may be another shard's."""
    plan = plan_of(ScanRequest(), ScanLimits())
    parts = {
        (0, 2): ScanPart(keys=[b"a"], entries=[b""], rest=b"a\x00"),
        (1, 2): ScanPart(keys=[b"a\x00", b"b"], entries=[b"", b""]),
    }
    page = page_of(plan, parts)
    assert (page.rows, page.rest) == ([(b"a", b"")], b"a\x00")


async def test_one_round_fills_a_page() -> None:
    world = ScanWorld(MANY, 8)
    page = await world.page(prefix=b"user:", limit=100)
    assert len(world.asked) == 8
    assert 90 <= len(page.entries) <= 100
    assert sum(operation.scan.rows_max for _, operation in world.asked) < 300
    assert {shard.shard_id for shard in page.shards} == set(world.classes)
    world.asked.clear()
    page = await world.page(limit=10)
    assert 5 <= len(page.entries) <= 10
    assert sum(operation.scan.rows_max for _, operation in world.asked) < 80


async def test_what_nobody_can_have_is_asked_of_nobody() -> None:
    world = ScanWorld(MANY)
    for fields in (
        {"prefix": b"user:", "end": b"user:"},
        {"start": b"a", "end": b"a"},
        {"prefix": b"a", "start": b"b"},
    ):
        page = await world.page(**fields)
        assert (page.status.code, page.next_page_token, len(page.entries)) == (Status.OK, b"", 0)
    assert world.asked == []


async def test_a_row_larger_than_its_share_comes_alone_and_is_bounded() -> None:
    rows = {**{b"%02d" % number: b"x" * 200_000 for number in range(6)}, b"a": b"small", b"b": b"small"}
    world = ScanWorld(rows, 4)
    pages = await world.pages(limit_bytes=1_000)
    assert rows_of(pages) == expected(rows, {})
    assert [len(page.entries) for page in pages if page.entries] == [1] * 6 + [2]
    assert all(operation.scan.bytes_max <= 1_000 for _, operation in world.asked)
    assert all(operation.scan.rows_max == 1 for _, operation in world.asked if not operation.scan.bytes_max)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"start": b"b", "end": b"a"}, "start comes after end"),
        ({"limit": 10_001}, "limit is 10001; the limit is 10000"),
        ({"limit": 0xFFFFFFFF}, "limit is 4294967295"),
        ({"limit_bytes": 1 << 30}, "limit_bytes is 1073741824"),
        ({"prefix": b"k" * 1_025}, "prefix is 1025 bytes long; the limit is 1024"),
        ({"start": b"k" * 2_000}, "start is 2000 bytes"),
        ({"end": b"k" * 2_000}, "end is 2000 bytes"),
        ({"keys_only": True, "count_only": True}, "contradict"),
        ({"options": gw.ReadOptions(consistency=9)}, "options.consistency has the unknown value 9"),  # type: ignore[arg-type]
        ({"options": gw.ReadOptions(session_revision=3)}, "options.session_revision"),
        ({"ctx": gw.RequestContext(tenant_id="t" * 300)}, "ctx.tenant_id"),
        ({"page_token": b"\x01"}, "page_token is damaged"),
        ({"page_token": b"\x02abcdefgh"}, "page_token is damaged"),
    ],
)
async def test_what_can_never_be_served_is_said(fields: dict[str, Any], words: str) -> None:
    world = ScanWorld(MANY)
    page = await world.page(**fields)
    assert page.status.code == Status.INVALID_ARGUMENT
    assert words in page.status.message
    assert world.asked == []


async def test_tokens_are_of_one_scan_and_notice_damage() -> None:
    world = ScanWorld(MANY)
    token = (await world.page(prefix=b"user:", limit=10)).next_page_token
    for fields in ({"prefix": b"user"}, {"prefix": b"user:", "reverse": True}, {"prefix": b"user:", "end": b"z"}, {}):
        page = await world.page(page_token=token, **fields)
        assert (page.status.code, "of another scan" in page.status.message) == (Status.INVALID_ARGUMENT, True)
    for position in range(len(token)):
        damaged = token[:position] + bytes((token[position] ^ 0x55,)) + token[position + 1 :]
        assert (await world.page(prefix=b"user:", page_token=damaged)).status.code == Status.INVALID_ARGUMENT
    page = await world.page(prefix=b"user:", page_token=token, limit=3, keys_only=True)
    assert page.status.code == Status.OK, "how much is asked for may change from page to page"


async def test_weak_scans_go_to_any_replica_and_others_to_the_leader() -> None:
    world = ScanWorld(MANY)
    weak = gw.ReadOptions(consistency=gw.EVENTUAL, max_staleness_ms=70)
    for _ in range(6):
        assert (await world.page(options=weak)).status.code == Status.OK
    assert {address for address, _ in world.asked} == {"node-0:1", "node-1:1"}
    assert {operation.max_staleness_ms for _, operation in world.asked} == {70}
    for options in (gw.ReadOptions(), gw.ReadOptions(consistency=gw.EVENTUAL, read_mode=gw.READ_YOUR_WRITES)):
        world.asked.clear()
        await world.page(options=options)
        assert {address for address, _ in world.asked} == {"node-0:1"}
        assert all(operation.read_mode == 0 for _, operation in world.asked)


async def test_a_shard_that_fails_fails_the_page_and_nothing_is_left_behind() -> None:
    world = ScanWorld(MANY)

    def script(operation: Operation) -> Reply | None:
        if operation.shard_id == "shard-1":
            return Reply(code=Status.INTERNAL, message="the disk is odd", shard_id="shard-1")
        return None

    world.script = script
    page = await world.page()
    assert (page.status.code, page.status.message) == (Status.INTERNAL, "the disk is odd")
    assert len(page.entries) == 0
    assert world.scanner.bytes_open == world.dispatcher.calls_open == 0


async def test_a_leader_that_has_changed_is_followed() -> None:
    world = ScanWorld(MANY)
    told: set[str] = set()

    def script(operation: Operation) -> Reply | None:
        if operation.shard_id in told:
            return None
        told.add(operation.shard_id)
        return Reply(code=Status.NOT_LEADER, leader_hint="node-1:1", shard_id=operation.shard_id)

    world.script = script
    assert len((await world.page(limit=500)).entries) > 400
    assert {address for address, _ in world.asked} == {"node-0:1", "node-1:1"}


@pytest.mark.parametrize("said", [(0, 1), (1, 3), (0, 2)])
async def test_shards_that_never_make_a_whole_are_unavailable_in_time(said: tuple[int, int]) -> None:
    world = ScanWorld(MANY)
    part = ScanPart(shard_id="shard-0", shard_index=said[0], shard_count=said[1])
    world.script = lambda operation: (
        Reply(code=Status.OK, value=part.SerializeToString()) if operation.shard_id == "shard-0" else None
    )
    page = await world.page(timeout_ms=300)
    assert (page.status.code, "their number is being changed" in page.status.message) == (Status.UNAVAILABLE, True)
    assert world.refreshes > 0
    assert world.scanner.bytes_open == 0


async def test_a_shard_divided_within_a_page_is_noticed() -> None:
    """Before its one large row is asked for, the shard is divided: the row belongs to the other half."""
    key = next(b"%d" % n for n in range(100) if shard_index(b"%d" % n, 2) == 1 and shard_index(b"%d" % n, 4) == 3)
    world = ScanWorld({key: b"x" * 10_000}, 2)

    def script(operation: Operation) -> Reply | None:
        if not operation.scan.bytes_max and world.classes["shard-1"] == (1, 2):
            world.divide("shard-1", 2)
        return None

    world.script = script
    assert rows_of([await world.page(limit_bytes=100)]) == [(key, b"x" * 10_000)]
    assert rows_of(await world.pages(limit_bytes=100)) == [(key, b"x" * 10_000)]


async def test_memory_is_taken_before_anything_is_asked() -> None:
    world = ScanWorld(MANY, 4, memory_bytes_max=5 << 20)
    running = [asyncio.create_task(world.page()) for _ in range(3)]
    pages = await asyncio.gather(*running)
    assert sorted(page.status.code for page in pages) == [Status.OK, Status.RATE_LIMITED, Status.RATE_LIMITED]
    refused = next(page for page in pages if page.status.code == Status.RATE_LIMITED)
    assert refused.status.retry_after_ms > 0
    assert len(world.asked) == 4
    assert (await world.page()).status.code == Status.OK


async def test_a_client_that_goes_leaves_nothing() -> None:
    world = ScanWorld(MANY)
    world.script = lambda operation: Reply(code=Status.UNAVAILABLE)
    running = asyncio.create_task(world.page())
    while not world.asked:  # noqa: ASYNC110 - nobody signals it
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert world.scanner.bytes_open == world.dispatcher.calls_open == 0


async def test_rates_count_a_page_once() -> None:
    class Once:
        admitted = 0

        def admit(self, request: Any, now_ms: float) -> None:
            self.admitted += 1
            if self.admitted > 1:
                raise RateLimited("over its rate", retry_after_ms=70)

    world = ScanWorld(MANY, 8, admission=Once())
    assert (await world.page(ctx=gw.RequestContext(tenant_id="t"))).status.code == Status.OK
    page = await world.page()
    assert (page.status.code, page.status.retry_after_ms) == (Status.RATE_LIMITED, 70)


async def test_without_shards_or_without_a_map_it_says_so() -> None:
    world = ScanWorld(MANY)
    world.current = type(world.current)()
    page = await world.page()
    assert (page.status.code, "the cluster has no shards yet" in page.status.message) == (Status.UNAVAILABLE, True)
    world.answered = False
    page = await world.page(timeout_ms=200)
    assert (page.status.code, "has given this gateway a shard map" in page.status.message) == (Status.UNAVAILABLE, True)


async def test_a_map_that_comes_late_is_waited_for() -> None:
    world = ScanWorld(MANY)
    current, world.current, world.answered = world.current, type(world.current)(), False

    def comes() -> None:
        world.current = current

    world.refresh_soon = comes  # type: ignore[method-assign]
    assert len((await world.page(limit=500)).entries) > 400
