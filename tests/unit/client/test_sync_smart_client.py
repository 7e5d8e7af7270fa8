"""The blocking client that goes to the leaders itself: the same code as the asynchronous one, with threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import flotta
import pytest
from fake_cluster import FakeCluster, wait_until
from fake_node import TOKEN
from flotta import Client, Entry, Get, Put
from flotta._sync.leaders import Leaders
from flotta.shard_map import key_hash
from flotta_proto.flotta import storage_pb2 as sp
from loop_thread import LoopThread


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    with LoopThread() as made:
        yield made


@pytest.fixture
def cluster(loop: LoopThread) -> Iterator[FakeCluster]:
    made = loop.run(FakeCluster().start(nodes=3, shards=4))
    yield made
    loop.run(made.stop())


@pytest.fixture
def client(cluster: FakeCluster) -> Iterator[Client]:
    with Client.smart(cluster.coordinator.address, internal_token=TOKEN, timeout_ms=5_000) as made:
        yield made


def shard_of(key: str) -> str:
    return f"shard-{key_hash(key.encode()) % 4}"


def test_what_is_put_is_got_from_the_leader_at_once(client: Client, cluster: FakeCluster) -> None:
    for number in range(10):
        version = client.put(f"k{number}", "v")
        entry = client.get(f"k{number}")
        assert entry is not None
        assert (entry.value, entry.version) == (b"v", version)
        assert client.delete(f"k{number}") == version + 1
    assert sum(len(node.seen) for node in cluster.nodes) == 30
    assert client.get("k0") is None


def test_threads_share_one_stream_to_each_node(client: Client, cluster: FakeCluster) -> None:
    together = threading.Barrier(8)

    def write(number: int) -> list[object]:
        together.wait(10)
        return list(client.batch([Put(f"k{number}-{position}", "v") for position in range(20)]))

    with ThreadPoolExecutor(8) as pool:
        versions = [version for result in pool.map(write, range(8)) for version in result]
    assert len(set(versions)) == 160
    assert all(len(node.tokens) == 1 for node in cluster.nodes)


def test_hints_and_the_watch_are_followed(client: Client, cluster: FakeCluster, loop: LoopThread) -> None:
    client.put("k", "v")
    leaders = client._calls.cluster
    assert isinstance(leaders, Leaders)
    shard = shard_of("k")
    old = cluster.leader_of(shard)
    first, second = [node for node in cluster.nodes if node is not old]

    async def move() -> None:
        await wait_until(lambda: bool(cluster.coordinator.watches))
        cluster.move_leader(shard, second, epoch=2)
        await wait_until(lambda: leaders.map.current.shards[shard].epoch == 2)

    cluster.move_leader(shard, first, tell=False)
    assert client.put("k", "w") == 102
    assert first.seen[-1].epoch == 0
    loop.run(move())
    assert client.put("k", "x") == 103
    assert second.seen[-1].epoch == 2


def test_a_lost_answer_is_asked_for_again(client: Client, cluster: FakeCluster) -> None:
    leader = cluster.leader_of(shard_of("k"))

    def fault(op: sp.Operation) -> str:
        leader.fault = None
        return "apply-and-die"

    leader.fault = fault
    assert client.put("k", "v") == 101
    assert cluster.shards.revision == 101


def test_the_timeout_holds(client: Client, cluster: FakeCluster) -> None:
    client.put("k", "v")  # connected
    for node in cluster.nodes:
        node.fault = lambda op: "drop"
    with pytest.raises(flotta.OutcomeUnknownError):
        client.put("k", "v", timeout_ms=200)


def test_a_batch_comes_back_in_its_order(client: Client) -> None:
    keys = [f"k{number}" for number in range(30)]
    client.batch([Put(key, key) for key in keys])
    found = client.batch([Get(key) for key in keys])
    assert [entry.value for entry in found if isinstance(entry, Entry)] == [key.encode() for key in keys]


def test_closing_ends_the_threads(cluster: FakeCluster) -> None:
    before = {thread for thread in threading.enumerate() if thread.name == "flotta"}
    with Client.smart(cluster.coordinator.address, internal_token=TOKEN) as client:
        client.put("k", "v")
        running = {thread for thread in threading.enumerate() if thread.name == "flotta"} - before
        assert len(running) == 2
    assert not any(thread.is_alive() for thread in running)
