"""The client that goes to the leaders itself, against coordinators and nodes that fail on command."""

from __future__ import annotations

from collections.abc import AsyncIterator

import flotta
import pytest
from fake_cluster import FakeCluster, wait_until
from fake_node import TOKEN, FakeNode
from flotta import AsyncClient, Consistency, Delete, Entry, Get, Guarantee, Put
from flotta.shard_map import key_hash
from flotta_proto.flotta import storage_pb2 as sp
from flotta_proto.kvdb.gateway_pb2 import Status

NOBODY = "127.0.0.1:1"


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    made = await FakeCluster().start(nodes=3, shards=4, coordinators=2)
    yield made
    await made.stop()


@pytest.fixture
async def client(cluster: FakeCluster) -> AsyncIterator[AsyncClient]:
    addresses = [coordinator.address for coordinator in cluster.coordinators]
    async with AsyncClient.smart(*addresses, internal_token=TOKEN, timeout_ms=3_000) as made:
        yield made


def shard_of(key: str) -> str:
    return f"shard-{key_hash(key.encode()) % 4}"


def seen(cluster: FakeCluster) -> int:
    return sum(len(node.seen) for node in cluster.nodes)


async def test_what_is_put_is_got_from_the_leader_at_once(client: AsyncClient, cluster: FakeCluster) -> None:
    for number in range(20):
        key = f"k{number}"
        version = await client.put(key, "v")
        entry = await client.get(key)
        assert entry is not None
        assert (entry.value, entry.version, entry.shard_id) == (b"v", version, shard_of(key))
        assert entry.guarantee is Guarantee.LINEARIZABLE
        assert await client.delete(key) == version + 1
        assert await client.delete(key) is None
        assert await client.get(key) is None
    # With a true map nothing is asked twice.
    assert seen(cluster) == 20 * 5
    assert all(op.epoch == 1 for node in cluster.nodes for op in node.seen)
    assert [len(set(node.tokens)) for node in cluster.nodes] == [1, 1, 1]
    assert [len(node.tokens) for node in cluster.nodes] == [1, 1, 1]


async def test_options_travel(client: AsyncClient, cluster: FakeCluster) -> None:
    await client.get("k", consistency=Consistency.EVENTUAL, max_staleness_ms=9, head_only=True)
    await client.put("k", "v", ttl_ms=5, if_absent=True)
    with pytest.raises(flotta.VersionMismatchError):
        await client.put("k", "v", if_version=7, request_id="mine")
    with pytest.raises(flotta.VersionMismatchError):
        await client.delete("k", if_version=2)
    leader = cluster.leader_of(shard_of("k"))
    put, conditional, delete = [op for op in leader.seen if op.kind != sp.GET]
    (get,) = [op for node in cluster.nodes for op in node.seen if op.kind == sp.GET]
    assert (get.consistency, get.max_staleness_ms, get.head_only) == (2, 9, True)
    assert (put.ttl_ms, put.if_not_exists) == (5, True)
    assert put.request_id.startswith("flotta:")
    assert (conditional.request_id, conditional.if_version_equals) == ("mine", 7)
    assert (delete.kind, delete.if_version_equals) == (sp.DELETE, 2)
    assert all(0 < op.deadline_ms <= 3_000 for op in (get, put, conditional, delete))


async def test_weak_reads_are_spread_over_the_replicas(client: AsyncClient, cluster: FakeCluster) -> None:
    await client.put("k", "v")
    for _ in range(60):
        entry = await client.get("k", consistency=Consistency.EVENTUAL)
        assert entry is not None and entry.guarantee is Guarantee.ANY
    assert all(any(op.kind == sp.GET for op in node.seen) for node in cluster.nodes)


async def test_a_hint_is_followed_before_the_map_knows(client: AsyncClient, cluster: FakeCluster) -> None:
    await client.put("k", "v")
    fetched = sum(coordinator.gets for coordinator in cluster.coordinators)
    shard = shard_of("k")
    old = cluster.leader_of(shard)
    new = next(node for node in cluster.nodes if node is not old)
    cluster.move_leader(shard, new, tell=False)
    assert await client.put("k", "w") == 102
    assert sum(coordinator.gets for coordinator in cluster.coordinators) == fetched
    assert new.seen[-1].epoch == 0


async def test_a_change_of_the_map_is_followed(client: AsyncClient, cluster: FakeCluster) -> None:
    await client.put("k", "v")
    await wait_until(lambda: any(coordinator.watches for coordinator in cluster.coordinators))
    shard = shard_of("k")
    old = cluster.leader_of(shard)
    new = next(node for node in cluster.nodes if node is not old)
    cluster.move_leader(shard, new, epoch=2)
    leaders = client._calls.cluster
    assert isinstance(leaders, flotta._async.leaders.AsyncLeaders)
    await wait_until(lambda: leaders.map.current.shards[shard].epoch == 2)
    before = len(old.seen)
    assert await client.put("k", "w") == 102
    assert len(old.seen) == before
    assert new.seen[-1].epoch == 2


async def test_a_moved_shard_is_found_by_a_new_map(client: AsyncClient, cluster: FakeCluster) -> None:
    await client.put("k", "v")
    for coordinator in cluster.coordinators:
        coordinator.watchable = False
        coordinator.end_watches()
    shard = shard_of("k")
    new = next(node for node in cluster.nodes if node is not cluster.leader_of(shard))
    cluster.move_leader(shard, new, tell=False, epoch=2)
    cluster.record_leader(shard, announce=False)
    assert await client.put("k", "w") == 102


async def test_a_dead_leader_is_waited_out(client: AsyncClient, cluster: FakeCluster) -> None:
    await client.put("k", "v")
    shard = shard_of("k")
    old = cluster.leader_of(shard)
    new = next(node for node in cluster.nodes if node is not old)
    await old.kill()
    cluster.move_leader(shard, new)
    assert await client.put("k", "w") == 102


async def test_a_lost_answer_is_asked_for_again_only_when_that_is_safe(cluster: FakeCluster) -> None:
    address = cluster.coordinator.address
    leader = cluster.leader_of(shard_of("k"))

    def die_once(node: FakeNode) -> None:
        def fault(op: sp.Operation) -> str:
            node.fault = None
            return "apply-and-die"

        node.fault = fault

    async with AsyncClient.smart(address, internal_token=TOKEN, timeout_ms=3_000) as client:
        die_once(leader)
        assert await client.put("k", "v") == 101
        assert [op.request_id for op in leader.seen[:2]] == [leader.seen[0].request_id] * 2
        assert cluster.shards.revision == 101
    async with AsyncClient.smart(address, internal_token=TOKEN, idempotent_writes=False) as client:
        die_once(leader)
        with pytest.raises(flotta.OutcomeUnknownError):
            await client.put("k", "w")
        assert cluster.shards.revision == 102
        die_once(leader)
        assert await client.get("k") is not None


async def test_the_timeout_holds_and_doubt_is_told(client: AsyncClient, cluster: FakeCluster) -> None:
    await client.put("k", "v")  # connected
    for node in cluster.nodes:
        node.fault = lambda op: "drop"
    with pytest.raises(flotta.OutcomeUnknownError):
        await client.put("k", "v", timeout_ms=200)
    for node in cluster.nodes:
        node.fault = lambda op: sp.Reply(code=Status.UNAVAILABLE, message="no quorum")
    with pytest.raises(flotta.UnavailableError, match="no quorum"):
        await client.put("k", "v", timeout_ms=200)
    answers = iter([sp.Reply(code=Status.TIMEOUT, message="perhaps")])
    for node in cluster.nodes:
        node.fault = lambda op: next(answers, sp.Reply(code=Status.UNAVAILABLE, message="no quorum"))
    with pytest.raises(flotta.OutcomeUnknownError, match="earlier attempt"):
        await client.put("k", "v", timeout_ms=400)


async def test_batches_go_to_all_leaders(client: AsyncClient, cluster: FakeCluster) -> None:
    keys = [f"k{number}" for number in range(40)]
    put = await client.batch([Put(key, key) for key in keys])
    assert all(isinstance(version, int) for version in put)
    got = await client.batch([Get(key) for key in keys])
    assert [entry.value for entry in got if isinstance(entry, Entry)] == [key.encode() for key in keys]
    assert [len(node.frames) for node in cluster.nodes] == [2, 2, 2]
    assert await client.batch([]) == []


async def test_operations_of_a_key_are_done_in_their_order(client: AsyncClient, cluster: FakeCluster) -> None:
    found = await client.batch([Put("a", "1"), Get("a"), Put("a", "2"), Get("a"), Delete("a"), Get("a")])
    assert [entry.value for entry in found if isinstance(entry, Entry)] == [b"1", b"2"]
    assert found[5] is None
    leader = cluster.leader_of(shard_of("a"))
    leader.fault = lambda op: sp.Reply(code=Status.RATE_LIMITED, message="busy", retry_after_ms=60_000)
    other = next(f"b{number}" for number in range(99) if cluster.leader_of(shard_of(f"b{number}")) is not leader)
    before = len(leader.seen)
    limited = await client.batch([Put("a", "3"), Put("a", "4"), Put(other, "1")])
    assert [type(result) for result in limited] == [flotta.RateLimitedError, flotta.RateLimitedError, int]
    assert len(leader.seen) == before + 1


async def test_nobody_there_and_a_wrong_token_say_so(cluster: FakeCluster) -> None:
    async with AsyncClient.smart(NOBODY, internal_token=TOKEN, timeout_ms=300) as client:
        with pytest.raises(flotta.UnavailableError, match=NOBODY):
            await client.get("k")
    async with AsyncClient.smart(cluster.coordinator.address, internal_token="wrong", timeout_ms=1_500) as client:
        with pytest.raises(flotta.UnavailableError, match="UNAUTHENTICATED"):
            await client.put("k", "v")
    assert not seen(cluster)
    cluster.state.Clear()
    async with AsyncClient.smart(cluster.coordinator.address, internal_token=TOKEN, timeout_ms=1_000) as client:
        with pytest.raises(flotta.UnavailableError, match="the cluster is empty"):
            await client.put("k", "v")


async def test_another_coordinator_is_asked_when_one_hangs(cluster: FakeCluster) -> None:
    cluster.coordinators[0].hang = True
    addresses = [coordinator.address for coordinator in cluster.coordinators]
    async with AsyncClient.smart(*addresses, internal_token=TOKEN, timeout_ms=5_000) as client:
        assert await client.put("k", "v") == 101


async def test_too_large_a_value_is_refused_here(client: AsyncClient, cluster: FakeCluster) -> None:
    with pytest.raises(flotta.PayloadTooLargeError, match="the limit is"):
        await client.put("k", b"x" * ((16 << 20) + 1))
    assert not seen(cluster)
    assert await client.put("k", b"x" * (3 << 20)) == 101


async def test_coordinators_that_hang_hold_up_no_call(client: AsyncClient, cluster: FakeCluster) -> None:
    await client.put("k", "v")
    for coordinator in cluster.coordinators:
        coordinator.hang = True
    leader = cluster.leader_of(shard_of("k"))
    answers = iter([sp.Reply(code=Status.UNAVAILABLE, message="no quorum")] * 5)
    leader.fault = lambda op: next(answers, None)
    # A request to a coordinator is given up after 1.5 s only: a call that waited for one would be out of time.
    assert await client.put("k", "w", timeout_ms=1_400) == 102
    async with AsyncClient.smart(cluster.coordinator.address, internal_token=TOKEN) as late:
        with pytest.raises(flotta.UnavailableError, match="no shard map"):
            await late.get("k", timeout_ms=200)
