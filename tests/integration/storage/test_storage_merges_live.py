"""Shards that grow together on real nodes: while they are written to, with nodes killed, and called off half-way."""

from __future__ import annotations

import asyncio

from flotta_proto.flotta import storage_pb2 as pb
from flotta_runtime.hashing import shard_index
from storage_cluster import Cluster, Code, get, put
from test_storage_nodes import THREE, equal_digests
from test_storage_splits_live import TEST_KEYS, check_all, fill, lose_log


class Writers:
    """Each counts up under one key, in steps that are done once or not at all."""

    def __init__(self, cluster: Cluster, count: int) -> None:
        self._cluster = cluster
        self._stopping = asyncio.Event()
        self._tasks = [asyncio.create_task(self._run(b"count-%d" % number)) for number in range(count)]
        self.done = [0] * count

    async def _run(self, key: bytes) -> int:
        number, version = 0, 0
        while not self._stopping.is_set():
            number += 1
            step = put(key, b"%d" % number, request_id=f"{key!r}-{number}", if_version_equals=version)
            (reply,) = await self._cluster.settle(step)
            assert reply.code == Code.OK and reply.version > version, (number, version, reply)
            (again,) = await self._cluster.settle(step)
            assert (again.code, again.duplicate, again.version) == (Code.OK, True, reply.version)
            (found,) = await self._cluster.settle(get(key))
            assert (found.value, found.version) == (b"%d" % number, reply.version)
            version = reply.version
            self.done[int(key[6:])] = number
        return number

    async def grow(self) -> None:
        """Wait until each of them has done some more."""
        before = list(self.done)
        await self._cluster.until(lambda: all(now > was + 2 for now, was in zip(self.done, before, strict=True)))

    async def stop(self) -> int:
        """How many keys they have written."""
        self._stopping.set()
        return len(await asyncio.gather(*self._tasks))

    async def __aenter__(self) -> Writers:
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def check_whole(cluster: Cluster, count: int, nodes: list[str], keys: int) -> None:
    """All replicas of a shard are the same, and what they own adds up to all keys."""
    found = [(await equal_digests(cluster, f"shard-{index}", nodes))[0].keys for index in range(count)]
    assert sum(found) == keys
    for node in nodes:
        replicas = list(cluster.nodes[node].replicas)
        assert sorted(one.shard_id for one in replicas) == [f"shard-{index}" for index in range(count)]
        assert not any(one.has_strangers() or one.is_noted() for one in replicas)


async def test_shards_grow_together_while_they_are_written_to(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(6, THREE)
    written = await fill(cluster)
    async with Writers(cluster, 6) as writers:
        await writers.grow()
        before = cluster.coordinator.reports["shard-1"].epoch
        await cluster.merge(2)
        await cluster.merge_done(2)
        await writers.grow()
        extra = await writers.stop()
        assert cluster.coordinator.reports["shard-1"].epoch == before + 1
        await check_all(cluster, written)
        await check_whole(cluster, 2, THREE, len(TEST_KEYS) + extra)
        # As any other shards they divide again, into shards of the same names.
        await cluster.split(6)
        await cluster.split_done(6)
        await check_whole(cluster, 6, THREE, len(TEST_KEYS) + extra)


async def test_leaders_that_stop_on_the_way_and_a_node_that_was_away(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(3, THREE)
    written = await fill(cluster)
    away = next(node for node in THREE if node not in (cluster.leader("shard-0"), cluster.leader("shard-2")))
    await cluster.stop(away)
    async with Writers(cluster, 3) as writers:
        cluster.coordinator.seals = False
        await cluster.merge(1)
        await cluster.until(lambda: cluster.coordinator.reports["shard-0"].caught_up == 1)
        staying = [node for node in THREE if node != away]
        for node in staying:
            await lose_log(cluster, node, "shard-0")
        await cluster.start(away)
        await writers.grow()
        # What leads the one that takes over goes, and then what leads one of the others once that has been sealed.
        stopped = cluster.leader("shard-0")
        await cluster.stop(stopped)
        cluster.coordinator.seals = True
        await cluster.until(lambda: any(one.detail.sealing for one in cluster.coordinator.state.shards.values()))
        await cluster.start(stopped)
        for shard_id in ("shard-2", "shard-1"):
            if shard_id in cluster.coordinator.state.shards:
                node = cluster.leader(shard_id)
                await cluster.stop(node)
                await cluster.start(node)
        await cluster.merge_done(1)
        await writers.grow()
        extra = await writers.stop()
        await check_all(cluster, written)
        await check_whole(cluster, 1, THREE, len(TEST_KEYS) + extra)


async def test_called_off_it_leaves_nothing_behind_and_may_begin_again(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(4, THREE)
    written = await fill(cluster)
    async with Writers(cluster, 4) as writers:
        cluster.coordinator.seals = False
        await cluster.merge(2)
        await cluster.until(lambda: all(cluster.coordinator.reports[f"shard-{n}"].caught_up == 1 for n in (0, 1)))
        leader = cluster.nodes[cluster.leader("shard-0")].replicas.of_shard("shard-0")
        assert leader is not None and leader.has_strangers()
        key = next(key for key in TEST_KEYS if shard_index(key, 4) == 2)
        for operation in (
            get(key, shard_id="shard-0"),
            pb.Operation(kind=pb.SCAN, shard_id="shard-0", scan=all_rows()),
        ):
            (reply,) = await cluster.execute(cluster.leader("shard-0"), operation)
            seen = pb.ScanPart.FromString(reply.value).keys if operation.kind == pb.SCAN else [key]
            assert reply.code != Code.OK or key not in seen, "what is copied is not seen before its time"
        await cluster.merge(4, order=0)
        replicas = lambda: [one for node in cluster.nodes.values() for one in node.replicas]  # noqa: E731
        await cluster.until(lambda: not any(one.has_strangers() or one.is_noted() for one in replicas()))
        await writers.grow()
        cluster.coordinator.seals = True
        await cluster.merge(1, order=2)
        await cluster.merge_done(1)
        extra = await writers.stop()
        await check_all(cluster, written)
        await check_whole(cluster, 1, THREE, len(TEST_KEYS) + extra)


def all_rows() -> pb.ScanRange:
    return pb.ScanRange(rows_max=1_000, bytes_max=1 << 20)
