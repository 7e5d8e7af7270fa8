"""The client's shard map: the hash, routes, and what a delta makes of it. It must agree with the services' own."""

from __future__ import annotations

import pytest
from flotta.shard_map import ForeignClusterError, Route, ShardMap, key_hash
from flotta_proto.kvdb import coordinator_pb2 as cp
from flotta_runtime import hashing
from hypothesis import given
from hypothesis import strategies as st


def state(version: int = 3, cluster_id: str = "c") -> cp.ClusterState:
    made = cp.ClusterState(map_version=version, cluster_id=cluster_id)
    made.partitioning.num_shards = 2
    for number in (1, 2, 3):
        node_id = f"node-{number}"
        made.nodes[node_id].CopyFrom(cp.NodeRecord(node_id=node_id, address=f"h:{number}", status=cp.ALIVE))
    for index in (0, 1):
        made.shards[f"shard-{index}"].CopyFrom(record(index))
    return made


def record(index: int, epoch: int = 1, leader: str = "node-1") -> cp.ShardRecord:
    return cp.ShardRecord(
        shard_id=f"shard-{index}", epoch=epoch, replicas=["node-1", "node-2", "node-3"], leader=leader
    )


@pytest.mark.parametrize(
    ("key", "expected"),
    [(b"a", 128), (b"k-0", 134061), (b"hello", 127791473), (b"bench-key", 469728865), (b"smoke-key10", -735052737)],
)
def test_known_hashes(key: bytes, expected: int) -> None:
    assert key_hash(key) == expected


@given(st.binary(max_size=64))
def test_the_hash_is_the_services_own(key: bytes) -> None:
    assert key_hash(key) == hashing.key_hash(key)


def test_routes_name_living_nodes_first_and_no_dead_leader() -> None:
    told = state()
    told.nodes["node-1"].status = cp.DEAD
    found = ShardMap().with_state(told).route_of(b"a")
    assert found == Route("shard-0", 1, "", ("h:2", "h:3", "h:1"), shard_count=2)
    assert ShardMap().route_of(b"a") is None
    del told.shards["shard-0"]
    told.map_version += 1
    assert ShardMap().with_state(told).route_of(b"a") is None


def test_only_newer_states_of_the_same_cluster_count() -> None:
    view = ShardMap().with_state(state(3))
    assert view.with_state(state(3)) is view
    assert view.with_state(state(2)) is view
    assert view.with_state(state(4)).version == 4
    with pytest.raises(ForeignClusterError, match="cluster d"):
        view.with_state(state(9, "d"))


def test_a_delta_joins_on_or_is_refused() -> None:
    view = ShardMap().with_state(state(3))
    assert view.with_delta(cp.ShardMapDelta()) is view
    delta = cp.ShardMapDelta(new_map_version=5, previous_map_version=3, changed_shards=["shard-0"])
    assert view.with_delta(delta) is None
    delta.shards.append(record(0, epoch=2, leader="node-2"))
    following = view.with_delta(delta)
    assert following is not None
    assert (following.version, following.shards["shard-0"].leader) == (5, "node-2")
    assert view.shards["shard-0"].leader == "node-1"
    delta.previous_map_version = 4
    assert view.with_delta(delta) is None
    gone = cp.ShardMapDelta(new_map_version=4, previous_map_version=3, removed_shards=["shard-1"])
    gone.removed_nodes.append("node-3")
    gone.partitioning.num_shards = 1
    smaller = view.with_delta(gone)
    assert smaller is not None
    assert (set(smaller.shards), set(smaller.nodes), smaller.num_shards) == ({"shard-0"}, {"node-1", "node-2"}, 1)
    whole = view.with_delta(cp.ShardMapDelta(new_map_version=9, full_state=state(9)))
    assert whole is not None and whole.version == 9
