"""Shards that divide on real nodes: under load, with nodes away, and through power cuts in the middle of it."""

from __future__ import annotations

import asyncio

import pytest
from flotta_embedded.generations import generations
from flotta_proto.flotta import storage_pb2 as pb
from flotta_proto.kvdb import coordinator_pb2
from flotta_runtime.hashing import shard_index
from flotta_storage.core.replicas import Origin
from storage_cluster import Cluster, Code, get, put
from test_storage_nodes import THREE, equal_digests

TEST_KEYS = [b"k%d" % number for number in range(36)]


async def fill(cluster: Cluster) -> dict[bytes, pb.Reply]:
    """All keys, each with a request id; a third of them expire long after the test."""
    written = {}
    for number, key in enumerate(TEST_KEYS):
        ttl_ms = 3_600_000 if number % 3 == 0 else 0
        (written[key],) = await cluster.settle(put(key, b"v-" + key, request_id=f"id-{number}", ttl_ms=ttl_ms))
        assert written[key].code == Code.OK
    return written


async def check_all(cluster: Cluster, written: dict[bytes, pb.Reply]) -> None:
    """Every key is where it belongs, as it was; a repeated write is known as one."""
    for number, key in enumerate(TEST_KEYS):
        ttl_ms = 3_600_000 if number % 3 == 0 else 0
        (found,) = await cluster.settle(get(key))
        assert (found.code, found.value, found.version) == (Code.OK, b"v-" + key, written[key].version)
        assert bool(found.expire_time_ms) is bool(ttl_ms)
        (again,) = await cluster.settle(put(key, b"v-" + key, request_id=f"id-{number}", ttl_ms=ttl_ms))
        assert (again.code, again.duplicate, again.version) == (Code.OK, True, written[key].version)
    for key in TEST_KEYS:
        (fresh,) = await cluster.settle(put(key, b"new"))
        assert fresh.code == Code.OK and fresh.version > written[key].version


async def test_shards_divide_and_everything_is_where_it_belongs(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(2, THREE)
    written = await fill(cluster)
    assert len(await cluster.split(6)) == 4
    await cluster.split_done(6)
    await check_all(cluster, written)
    keys = 0
    for index in range(6):
        (digest, *_) = await equal_digests(cluster, f"shard-{index}", THREE)
        keys += digest.keys
        report = cluster.coordinator.reports[f"shard-{index}"]
        assert (report.shard_count, report.epoch) == (6, 2 if index < 2 else 1)
        assert cluster.voters(f"shard-{index}") == set(THREE)
    assert keys == len(TEST_KEYS)
    key = next(one for one in TEST_KEYS if shard_index(one, 6) == 3)
    leader = cluster.leader("shard-1")
    (old, stray) = await cluster.execute(
        leader, put(key, b"x", shard_id="shard-1", epoch=1), put(key, b"x", shard_id="shard-1", epoch=2)
    )
    assert old.code == Code.SHARD_MOVED
    assert (stray.code, stray.message) == (Code.INVALID_ARGUMENT, "shard_id does not match key's resolved shard")
    await asyncio.gather(*(cluster.stop(node) for node in THREE))
    await asyncio.gather(*(cluster.start(node) for node in THREE))
    assert sum([(await equal_digests(cluster, f"shard-{index}", THREE))[0].keys for index in range(6)]) == keys
    assert await cluster.split(12)
    await cluster.split_done(12)
    (once_more,) = await cluster.settle(get(key))
    assert once_more.value == b"new"


async def test_an_operation_of_a_child_is_told_where_it_is_while_the_rows_are_still_here(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    await fill(cluster)
    # The third node is away, so the children are not whole, and nothing is pruned.
    await cluster.stop("node-3")
    await cluster.until(lambda: cluster.leader("shard-0") != "node-3")
    await cluster.split(3)
    await cluster.until(lambda: all(f"shard-{index}" in cluster.coordinator.reports for index in range(3)))
    leader = cluster.leader("shard-0")
    replica = cluster.nodes[leader].replicas.of_shard("shard-0")
    assert replica is not None and replica.division() is not None
    for key in TEST_KEYS:
        home = f"shard-{shard_index(key, 3)}"
        if home == "shard-0":
            continue
        for epoch in (0, 1, 2):
            (moved,) = await cluster.execute(leader, put(key, b"x", shard_id="shard-0", epoch=epoch))
            assert (moved.code, moved.shard_id) == (Code.SHARD_MOVED, home)
    dumped = sum([one.keys for one in await cluster.digests("shard-0", [leader])])
    assert dumped == sum(shard_index(key, 3) == 0 for key in TEST_KEYS), "what went to children is no content"


@pytest.mark.parametrize("meanwhile", ["little", "much"])
async def test_a_node_that_was_away_gets_its_share(cluster: Cluster, meanwhile: str) -> None:
    """It has to divide by its own log, or, when that is gone, by the rows that the snapshot brings."""
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    written = await fill(cluster)
    away = next(node for node in THREE if node != cluster.leader("shard-0"))
    staying = [node for node in THREE if node != away]
    await cluster.stop(away)
    await cluster.split(4)
    await cluster.until(lambda: all(f"shard-{index}" in cluster.coordinator.reports for index in range(4)))
    assert any(one.detail.parent for one in cluster.coordinator.state.shards.values())
    if meanwhile == "much":
        for node in staying:
            await lose_log(cluster, node, "shard-0")
        # What was already under way to the node, in a connection that comes back, is no longer.
        await asyncio.gather(*(cluster.stop(node) for node in staying))
        await asyncio.gather(*(cluster.start(node) for node in staying))
    await cluster.start(away)
    await cluster.split_done(4)
    backend = cluster.nodes[away].backend
    assert backend is not None
    came_by_snapshot = generations(backend.engine, "group-100") != [1]
    assert came_by_snapshot is (meanwhile == "much")
    origins = {record.shard_id: record.origin for record in backend.manager.state.replicas.values()}
    assert {origins[f"shard-{index}"] for index in (1, 2, 3)} == {Origin.SPLIT}
    await check_all(cluster, written)
    for index in range(4):
        await equal_digests(cluster, f"shard-{index}", THREE)


async def lose_log(cluster: Cluster, node_id: str, shard_id: str) -> None:
    """Let the log of a replica go as far as it may."""
    node = cluster.nodes[node_id]
    backend, replica = node.backend, node.replicas.of_shard(shard_id)
    assert backend is not None and replica is not None
    await asyncio.to_thread(replica.machine.flush())
    backend.host._host.compact(replica.group, replica.machine.durable_index())


async def test_voters_stay_while_the_shard_divides_and_move_afterwards(cluster: Cluster) -> None:
    await cluster.open(4)
    await cluster.create_shards(1, THREE)
    written = await fill(cluster)
    away = next(node for node in THREE if node != cluster.leader("shard-0"))
    await cluster.stop(away)
    await cluster.split(2)
    await cluster.until(lambda: "shard-1" in cluster.coordinator.reports)
    targets = [*(node for node in THREE if node != away), "node-4"]
    await cluster.set_targets("shard-0", targets)
    waits = "the shard divides, and its voters stay until that is done with"
    await cluster.until(lambda: cluster.coordinator.reports["shard-0"].progress.waits_for == waits)
    # The child is free to go elsewhere, and is whole then; that lets the shard itself go.
    await cluster.set_targets("shard-1", targets)
    await cluster.until(lambda: cluster.voters("shard-1") == set(targets))
    await cluster.split_done(2)
    await cluster.until(lambda: cluster.voters("shard-0") == set(targets))
    await check_all(cluster, written)
    for shard_id in ("shard-0", "shard-1"):
        await equal_digests(cluster, shard_id, targets)


async def test_a_division_that_the_map_has_wrong_changes_nothing(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(2, THREE)
    written = await fill(cluster)

    def misfit(state: coordinator_pb2.ClusterState) -> None:
        state.shards["shard-2"].detail.shard_index = 3

    await cluster.split(4, misfit)
    await cluster.until(lambda: "shard-3" in cluster.coordinator.reports)
    replica = cluster.nodes[cluster.leader("shard-0")].replicas.of_shard("shard-0")
    assert replica is not None and replica.division() is None
    state = replica.state()
    assert state is not None and (state.epoch, state.shard_count) == (1, 2)

    def fit(state: coordinator_pb2.ClusterState) -> None:
        state.shards["shard-2"].detail.shard_index = 2

    await cluster.coordinator.change(fit, ["shard-2"])
    await cluster.split_done(4)
    await check_all(cluster, written)


async def test_a_write_on_its_way_when_the_shard_divides_is_done_or_certainly_not(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    await fill(cluster)
    leader = cluster.leader("shard-0")
    ending = asyncio.Event()
    said: list[pb.Reply] = []

    async def write() -> None:
        number = 0
        while not ending.is_set():
            number += 1
            frame = [put(key, b"n%d" % number, shard_id="shard-0", epoch=1) for key in TEST_KEYS]
            said.extend(await cluster.execute(leader, *frame))

    writing = asyncio.create_task(write())
    await cluster.split(2)
    await cluster.until(lambda: Code.SHARD_MOVED in {one.code for one in said})
    ending.set()
    await writing
    assert {one.code for one in said} <= {Code.OK, Code.SHARD_MOVED, Code.NOT_LEADER}
    first = min(number for number, one in enumerate(said) if one.code == Code.SHARD_MOVED)
    assert all(one.code != Code.OK for one in said[first:]), "from the division on nothing of the old epoch is done"
    await cluster.split_done(2)
    last = {}
    for number, one in enumerate(said):
        if one.code == Code.OK:
            last[TEST_KEYS[number % len(TEST_KEYS)]] = one.version
    for key, version in last.items():
        (found,) = await cluster.settle(get(key))
        assert found.version == version
