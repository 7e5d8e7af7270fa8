"""Sessions: weak reads carry what was seen of their shard, and are STRONG where nothing is known of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import flotta
import pytest
from fake_cluster import FakeCluster
from fake_gateway import FakeGateway
from fake_node import TOKEN
from flotta import AsyncClient, Client, Consistency, Delete, Entry, Get, Put
from flotta.messages import request_of
from flotta.session_marks import SessionMarks
from flotta.shard_map import key_hash
from flotta_proto.flotta import storage_pb2 as sp
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_proto.kvdb.gateway_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from loop_thread import LoopThread

REFUSED = gw.Status(code=Status.PRECONDITION_FAILED, message="shard-0 has only reached 3")


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    made = await FakeGateway().start()
    yield made
    await made.kill()


@pytest.fixture
async def client(gateway: FakeGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address, timeout_ms=3_000) as made:
        yield made


def reads(gateway: FakeGateway) -> list[tuple[int, int, int, int]]:
    """What each get asked for: consistency, mode, revision, number of shards."""
    options = [request.options for request in gateway.seen if isinstance(request, gw.GetRequest)]
    return [(one.consistency, one.read_mode, one.session_revision, one.session_shard_count) for one in options]


STRONG = (gw.STRONG, 0, 0, 0)


def of_session(revision: int, shards: int = 1) -> tuple[int, int, int, int]:
    return (gw.EVENTUAL, gw.READ_YOUR_WRITES, revision, shards)


async def test_reads_carry_the_greatest_revision_seen(client: AsyncClient, gateway: FakeGateway) -> None:
    async with client.session() as session:
        assert await session.get("k") is None
        assert await session.put("k", "1") == 1
        entry = await session.get("k")
        assert entry is not None and entry.value == b"1"
        gateway.version = 40  # others write
        await session.get("k")
        await session.get("k")
        await session.put("l", "2")
        await session.get("k")
        assert await session.delete("k") == 42
        assert await session.get("k", head_only=True, max_staleness_ms=70) is None
        assert reads(gateway) == [STRONG, *map(of_session, (1, 1, 40, 41, 42))]
        assert (gateway.seen[-1].head_only, gateway.seen[-1].options.max_staleness_ms) == (True, 70)
        await session.get("k", consistency=Consistency.STRONG)
        assert reads(gateway)[-1] == STRONG
    await client.get("k", consistency=Consistency.EVENTUAL)
    assert reads(gateway)[-1] == (gw.EVENTUAL, 0, 0, 0), "the client itself has no session"


async def test_sessions_know_nothing_of_each_other(client: AsyncClient, gateway: FakeGateway) -> None:
    one, other = client.session(), client.session()
    await one.put("k", "1")
    await other.get("k")
    await one.get("k")
    assert reads(gateway) == [STRONG, of_session(1)]


async def test_a_revision_that_is_none_of_the_shard_is_given_up(client: AsyncClient, gateway: FakeGateway) -> None:
    session = client.session()
    await session.put("k", "1")
    gateway.script = [REFUSED]
    entry = await session.get("k")
    assert entry is not None and entry.value == b"1"
    await session.get("k")
    assert reads(gateway) == [of_session(1), STRONG, of_session(1)]


async def test_after_a_write_of_unknown_outcome_the_shard_is_asked(client: AsyncClient, gateway: FakeGateway) -> None:
    session = client.session()
    await session.put("k", "1")
    gateway.script = [gw.Status(code=Status.TIMEOUT, message="no answer")]
    with pytest.raises(flotta.OutcomeUnknownError):
        await session.put("k", "2")
    await session.get("k")
    gateway.script = ["hang"]
    with pytest.raises(flotta.OutcomeUnknownError):
        await session.put("k", "2", timeout_ms=700)
    await session.get("k")
    assert reads(gateway) == [STRONG, STRONG]


async def test_batches_are_of_the_session(client: AsyncClient, gateway: FakeGateway) -> None:
    session = client.session()
    weak = Consistency.EVENTUAL
    await session.batch([Put("a", "1"), Get("a", weak), Get("b", weak)])
    assert reads(gateway) == [STRONG, STRONG]
    found = await session.batch([Get("a", weak), Put("b", "2"), Get("b", weak), Get("a"), Delete("a"), Get("a", weak)])
    assert reads(gateway)[2:] == [of_session(1), STRONG, STRONG, STRONG]
    assert isinstance(found[2], Entry) and found[2].value == b"2"
    await session.get("b")
    assert reads(gateway)[-1] == of_session(3)
    gateway.script = [REFUSED]
    found = await session.batch([Get("b", weak), Get("b", weak)])
    assert [entry.value for entry in found if isinstance(entry, Entry)] == [b"2", b"2"]
    assert reads(gateway)[-3:] == [of_session(3), of_session(3), STRONG]


async def test_overload_and_other_errors_are_as_ever(client: AsyncClient, gateway: FakeGateway) -> None:
    session = client.session()
    gateway.script = [gw.Status(code=Status.RATE_LIMITED, message="busy", retry_after_ms=20)]
    assert await session.put("k", "1", if_absent=True) == 1
    with pytest.raises(flotta.AlreadyExistsError):
        await session.put("k", "1", if_absent=True)
    with pytest.raises(flotta.VersionMismatchError):
        await session.put("k", "1", if_version=9)


KEYS = [b"k%d" % number for number in range(12)]
STEPS = st.lists(
    st.tuples(st.sampled_from(["wrote", "read", "lost"]), st.sampled_from(KEYS), st.integers(1, 50), st.integers(1, 4)),
    max_size=40,
)


@given(STEPS)
def test_no_read_asks_for_less_than_was_seen(steps: list[tuple[str, bytes, int, int]]) -> None:
    """Against a model: what was seen of each shard since the number of shards was heard for the first time."""
    marks = SessionMarks()
    seen: dict[int, int] = {}
    known = 0
    for what, key, revision, count in steps:
        index = key_hash(key) % count
        status = gw.Status(code=Status.TIMEOUT if what == "lost" else Status.OK, shard_id=f"shard-{index}")
        request = request_of(Put(key, b"") if what != "read" else Get(key), False)
        kind: Any = gw.GetResponse if what == "read" else gw.PutResponse
        marks.saw(request, kind(status=status, revision=revision, shard_count=count))
        if what == "lost":
            seen.pop(key_hash(key) % known if known else 0, None)
        else:
            seen = seen if known == count else {}
            known = count
            seen[index] = max(revision, seen.get(index, 0))
        for other in KEYS:
            asked = request_of(Get(other, Consistency.EVENTUAL), False)
            assert isinstance(asked, gw.GetRequest)
            marks.ask(asked)
            options = asked.options
            expected = seen.get(key_hash(other) % known) if known else None
            if expected is None:
                assert (options.consistency, options.read_mode) == (gw.STRONG, 0)
            else:
                assert (options.session_revision, options.session_shard_count) == (expected, known)
                assert (options.consistency, options.read_mode) == (gw.EVENTUAL, gw.READ_YOUR_WRITES)


def test_an_answer_of_another_number_of_shards_than_it_was_routed_by_is_no_mark() -> None:
    marks = SessionMarks()
    key = next(key for key in KEYS if key_hash(key) % 4 != key_hash(key) % 2)
    request = request_of(Put(key, b""), False)
    old = f"shard-{key_hash(key) % 2}"
    marks.saw(request, gw.PutResponse(status=gw.Status(code=Status.OK, shard_id=old), revision=9, shard_count=4))
    asked = request_of(Get(key, Consistency.EVENTUAL), False)
    assert isinstance(asked, gw.GetRequest)
    marks.ask(asked)
    assert asked.options.consistency == gw.STRONG


async def test_a_smart_client_keeps_sessions_too() -> None:
    cluster = await FakeCluster().start(nodes=3, shards=4, coordinators=1)
    try:
        address = cluster.coordinators[0].address
        async with AsyncClient.smart(address, internal_token=TOKEN, timeout_ms=3_000) as client:
            session = client.session()
            await session.put("k", "v")
            for _ in range(20):
                await session.get("k")
            asked = [(node, op) for node in cluster.nodes for op in node.seen if op.kind == sp.GET]
            wanted = {(op.consistency, op.read_mode, op.session_revision > 0) for _, op in asked}
            assert wanted == {(gw.EVENTUAL, gw.READ_YOUR_WRITES, True)}
            assert len({node.address for node, _ in asked}) > 1, "any replica may answer"
    finally:
        await cluster.stop()


def test_the_blocking_session_does_the_same() -> None:
    with LoopThread() as loop:
        gateway = loop.run(FakeGateway().start())
        with Client(gateway.address, timeout_ms=3_000) as client, client.session() as session:
            session.put("k", "1")
            entry = session.get("k")
            assert entry is not None and entry.value == b"1"
            assert session.batch([Get("k", Consistency.EVENTUAL)]) == [entry]
            assert session.delete("k") == 2
        assert reads(gateway) == [of_session(1), of_session(1)]
        loop.run(gateway.kill())
