"""Where a key goes while the shards of a table divide: everybody who routes must say the same."""

from __future__ import annotations

import asyncio

import pytest
from flotta.shard_map import ShardMap as ClientMap
from flotta_coordinator.core.state import ClusterState, Phase, Shard, Table
from flotta_gateway.call import Call
from flotta_gateway.core.shard_map import ShardMap
from flotta_proto.flotta.storage_pb2 import PUT
from flotta_proto.kvdb import coordinator_pb2 as cp
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.hashing import home_count, key_hash
from flotta_storage.map_model import MapModel
from gateway_support import Cluster
from hypothesis import given
from hypothesis import strategies as st

KEYS = [b"key-%d" % number for number in range(64)]


def dividing(num_shards: int, factor: int, divided: set[int], version: int = 2) -> cp.ClusterState:
    """The map when these shards have reported that they divided."""
    state = cp.ClusterState(map_version=version, cluster_id="c")
    state.partitioning.num_shards = num_shards
    state.nodes["node-1"].CopyFrom(cp.NodeRecord(node_id="node-1", address="h:1", status=cp.ALIVE))
    for index in range(num_shards * factor):
        first = index < num_shards
        count = num_shards if first and index not in divided else num_shards * factor
        detail = cp.ShardDetail(shard_index=index, shard_count=count, group_id=100 + index)
        if not first:
            detail.phase, detail.parent = cp.ShardDetail.AWAITED, f"shard-{index % num_shards}"
        record = cp.ShardRecord(shard_id=f"shard-{index}", epoch=1, leader="node-1", replicas=["node-1"], detail=detail)
        state.shards[record.shard_id].CopyFrom(record)
    return state


def coordinators(state: cp.ClusterState) -> ClusterState:
    shards = {
        name: Shard(name, "default", 1, one.detail.shard_index, one.detail.shard_count, 1, Phase.ACTIVE, (), ())
        for name, one in state.shards.items()
    }
    table = Table("default", state.partitioning.num_shards, 1)
    return ClusterState(tables={"default": table}, shards=shards)


@given(st.integers(1, 5), st.integers(1, 4), st.sets(st.integers(0, 4)))
def test_everybody_routes_a_key_to_the_shard_that_owns_it(num_shards: int, factor: int, divided: set[int]) -> None:
    state = dividing(num_shards, factor, divided)
    gateway, client, node = ShardMap().with_state(state), ClientMap().with_state(state), MapModel()
    node.take_state(state)
    of_coordinator = coordinators(state)
    for key, route in zip(KEYS, gateway.routes_of(KEYS), strict=True):
        hashed = key_hash(key)
        parent = hashed % num_shards
        home = f"shard-{hashed % (num_shards * factor) if parent in divided else parent}"
        owner = state.shards[home].detail
        assert hashed % owner.shard_count == owner.shard_index
        of_gateway, of_client = gateway.route_of(key), client.route_of(key)
        assert route is not None and of_gateway is route and of_client is not None
        found = (route.shard_id, of_client.shard_id, node.home_of(key), of_coordinator.home_of(hashed).shard_id)
        assert found == (home, home, home, home)
        assert route.shard_count == of_client.shard_count == owner.shard_count, "what sessions go by"


def merging(num_shards: int, factor: int, merged: set[int]) -> cp.ClusterState:
    """The map when these shards, of `num_shards` that there are to be, have reported that they took their kin over."""
    state = dividing(num_shards, factor, set(range(num_shards)))
    for index in merged & set(range(num_shards)):
        state.shards[f"shard-{index}"].detail.shard_count = num_shards
        for other in range(index + num_shards, num_shards * factor, num_shards):
            del state.shards[f"shard-{other}"]
    return state


@given(st.integers(1, 5), st.integers(1, 4), st.sets(st.integers(0, 4)))
def test_so_does_everybody_while_shards_grow_together(num_shards: int, factor: int, merged: set[int]) -> None:
    state = merging(num_shards, factor, merged)
    gateway, client, node = ShardMap().with_state(state), ClientMap().with_state(state), MapModel()
    node.take_state(state)
    of_coordinator = coordinators(state)
    for key, route in zip(KEYS, gateway.routes_of(KEYS), strict=True):
        hashed = key_hash(key)
        first = hashed % num_shards
        home = f"shard-{first if first in merged else hashed % (num_shards * factor)}"
        of_client = client.route_of(key)
        assert route is not None and of_client is not None
        found = (route.shard_id, of_client.shard_id, node.home_of(key), of_coordinator.home_of(hashed).shard_id)
        assert found == (home, home, home, home)
    for index in range(num_shards * factor):
        route = gateway.route_at(index)
        owner = f"shard-{index % num_shards if index % num_shards in merged else index}"
        assert route is not None and route.shard_id == owner, "a piece of a scan goes on to who has the keys"


@pytest.mark.parametrize(("own", "meant"), [(0, 4), (2, 4), (4, 4), (6, 4), (8, 8), (12, 12)])
def test_a_modulus_that_cannot_be_counts_for_nothing(own: int, meant: int) -> None:
    assert home_count(4, own) == meant


def test_routes_of_shards_that_do_not_divide_keep_their_identity() -> None:
    before = ShardMap().with_state(dividing(2, 3, set()))
    half = before.with_state(dividing(2, 3, {1}, version=3))
    done = half.with_state(dividing(6, 1, set(), version=4))
    assert (len(before.routes), len(half.routes), len(done.routes)) == (2, 6, 6)
    for key in KEYS:
        same = half.route_of(key) is before.route_of(key)
        assert same is (key_hash(key) % 2 == 0)
        if key_hash(key) % 2:
            assert done.route_of(key) is half.route_of(key)


async def test_a_call_that_was_told_moved_goes_to_the_child_as_soon_as_the_map_has_it() -> None:
    cluster = Cluster()
    said: list[bytes] = []
    key = next(one for one in KEYS if key_hash(one) % 8 == 6)
    request = gw.PutRequest(key=key, value=b"v")
    cluster.dispatcher.submit([Call(PUT, request, cluster.clock.monotonic_ms() + 5_000, said.append)])
    assert [one.shard_id for one in cluster.sent()] == ["shard-2"]
    cluster.answer(Status.SHARD_MOVED)
    assert not said
    state = dividing(4, 2, {2})
    for name, record in state.shards.items():
        record.leader = "node-0" if name == "shard-6" else "node-1"
        record.replicas[:] = ["node-0", "node-1"]
    for number in (0, 1):
        node = cp.NodeRecord(node_id=f"node-{number}", address=f"node-{number}:1")
        state.nodes[f"node-{number}"].CopyFrom(node)
    cluster.current = cluster.current.with_state(state)
    cluster.dispatcher.map_changed()
    await asyncio.sleep(0)
    assert [one.shard_id for one in cluster.sent()] == ["shard-6"]
    cluster.answer(Status.OK)
    assert [gw.PutResponse.FromString(one).status.code for one in said] == [Status.OK]
    cluster.dispatcher.close()
