"""The map view: deltas add up to the full state, gaps are seen, versions never go back, routes keep identity."""

from __future__ import annotations

import pytest
from flotta_gateway.core.routing import any_replica_may_serve, first_address, next_address, quickest
from flotta_gateway.core.shard_map import ForeignClusterError, Gap, Route, ShardMap
from flotta_proto.flotta import storage_pb2 as sp
from flotta_proto.kvdb import coordinator_pb2 as cp
from flotta_proto.kvdb import gateway_pb2 as gw
from hypothesis import given
from hypothesis import strategies as st

NODES = [f"node-{n}" for n in range(1, 5)]
SHARDS = [f"shard-{n}" for n in range(4)]


def node(node_id: str, status: int = cp.ALIVE, port: int = 8001) -> cp.NodeRecord:
    return cp.NodeRecord(node_id=node_id, address=f"{node_id}:{port}", status=status)  # type: ignore[arg-type]


def shard(shard_id: str, leader: str = "node-1", epoch: int = 1, replicas: list[str] | None = None) -> cp.ShardRecord:
    return cp.ShardRecord(shard_id=shard_id, leader=leader, epoch=epoch, replicas=replicas or NODES[:3])


def full_state(version: int = 3) -> cp.ClusterState:
    state = cp.ClusterState(map_version=version, cluster_id="c")
    for node_id in NODES:
        state.nodes[node_id].CopyFrom(node(node_id))
    for shard_id in SHARDS:
        state.shards[shard_id].CopyFrom(shard(shard_id))
    state.partitioning.CopyFrom(cp.PartitioningConfig(num_shards=4, replication_factor=3))
    return state


def seen(view: ShardMap) -> tuple[object, ...]:
    return (
        view.version,
        {key: record.SerializeToString(deterministic=True) for key, record in view.nodes.items()},
        {key: record.SerializeToString(deterministic=True) for key, record in view.shards.items()},
        view.routes,
        view.num_shards,
        view.replication_factor,
    )


changes = st.one_of(
    st.builds(node, st.sampled_from(NODES), st.sampled_from([cp.ALIVE, cp.SUSPECT, cp.DEAD]), st.integers(1, 3)),
    st.builds(
        shard,
        st.sampled_from(SHARDS),
        st.sampled_from(["", *NODES]),
        st.integers(1, 9),
        st.lists(st.sampled_from(NODES), min_size=1, max_size=3, unique=True),
    ),
    st.sampled_from(SHARDS).map(lambda shard_id: ("remove shard", shard_id)),
    st.sampled_from(NODES).map(lambda node_id: ("remove node", node_id)),
    st.integers(1, 5).map(lambda n: cp.PartitioningConfig(num_shards=n, replication_factor=2)),
)


def commit(state: cp.ClusterState, batch: list[object]) -> cp.ShardMapDelta:
    """Change the coordinator's state, as one version, and make the delta that tells of it."""
    delta = cp.ShardMapDelta(previous_map_version=state.map_version, new_map_version=state.map_version + 1)
    state.map_version += 1
    nodes: dict[str, cp.NodeRecord] = {}
    shards: dict[str, cp.ShardRecord] = {}
    for change in batch:
        match change:
            case cp.NodeRecord():
                nodes[change.node_id] = change
                state.nodes[change.node_id].CopyFrom(change)
            case cp.ShardRecord():
                shards[change.shard_id] = change
                state.shards[change.shard_id].CopyFrom(change)
            case cp.PartitioningConfig():
                delta.partitioning.CopyFrom(change)
                state.partitioning.CopyFrom(change)
            case ("remove shard", str(shard_id)):
                shards.pop(shard_id, None)
                state.shards.pop(shard_id, None)
                delta.removed_shards.append(shard_id)
            case ("remove node", str(node_id)):
                nodes.pop(node_id, None)
                state.nodes.pop(node_id, None)
                delta.removed_nodes.append(node_id)
    removed = set(delta.removed_shards) - set(shards), set(delta.removed_nodes) - set(nodes)
    del delta.removed_shards[:], delta.removed_nodes[:]
    delta.removed_shards.extend(sorted(removed[0]))
    delta.removed_nodes.extend(sorted(removed[1]))
    delta.shards.extend(shards.values())
    delta.nodes.extend(nodes.values())
    delta.changed_shards.extend([*shards, *removed[0]])
    delta.changed_nodes.extend([*nodes, *removed[1]])
    return delta


@given(st.lists(st.lists(changes, max_size=4), max_size=8), st.data())
def test_deltas_add_up_to_the_full_state(batches: list[list[object]], data: st.DataObject) -> None:
    state = full_state()
    view = ShardMap().with_state(state)
    for batch in batches:
        delta = commit(state, batch)
        if data.draw(st.booleans(), label="the delta is lost"):
            continue
        following = view.with_delta(delta)
        if isinstance(following, Gap):
            assert delta.previous_map_version > view.version
            following = view.with_state(state)
        assert following.version > view.version
        assert seen(following) == seen(ShardMap().with_state(state))
        # Sent again, late or twice, it changes nothing.
        assert following.with_delta(delta) is following
        view = following


@given(st.lists(changes, max_size=4), st.integers(1, 3))
def test_a_delta_that_goes_further_back_than_the_view_is_taken(batch: list[object], behind: int) -> None:
    state = full_state()
    view = ShardMap().with_state(state)
    delta = commit(state, batch)
    delta.previous_map_version -= min(behind, delta.previous_map_version - 1)
    assert seen(view.with_delta(delta)) == seen(ShardMap().with_state(state))  # type: ignore[arg-type]


def test_old_news_and_heartbeats_change_nothing() -> None:
    view = ShardMap().with_state(full_state(7))
    assert view.with_state(full_state(7)) is view
    assert view.with_state(full_state(6)) is view
    assert view.with_delta(cp.ShardMapDelta()) is view
    assert view.with_delta(cp.ShardMapDelta(new_map_version=7, previous_map_version=6)) is view
    assert view.with_delta(cp.ShardMapDelta(new_map_version=6, full_state=full_state(6))) is view


@pytest.mark.parametrize(
    "delta",
    [
        cp.ShardMapDelta(new_map_version=9, previous_map_version=8),
        cp.ShardMapDelta(new_map_version=8, changed_shards=["shard-1"]),
        cp.ShardMapDelta(new_map_version=8),
        cp.ShardMapDelta(new_map_version=8, previous_map_version=7, changed_shards=["shard-1"]),
        cp.ShardMapDelta(new_map_version=8, previous_map_version=7, changed_nodes=["node-1"]),
    ],
    ids=["version skipped", "ids only", "nothing told", "shard not told", "node not told"],
)
def test_a_delta_that_does_not_tell_all_is_a_gap(delta: cp.ShardMapDelta) -> None:
    view = ShardMap().with_state(full_state(7))
    assert view.with_delta(delta) == Gap(7, delta.new_map_version)


def test_unchanged_routes_keep_their_identity() -> None:
    state = full_state()
    view = ShardMap().with_state(state)
    following = view.with_delta(commit(state, [shard("shard-2", leader="node-2")]))
    assert isinstance(following, ShardMap)
    assert [new is old for new, old in zip(following.routes, view.routes, strict=True)] == [True, True, False, True]
    assert following.routes[2] == Route("shard-2", 1, "node-2:8001", ("node-1:8001", "node-2:8001", "node-3:8001"), 4)


def test_dead_nodes_come_last_and_do_not_lead() -> None:
    state = full_state()
    state.nodes["node-1"].status = cp.DEAD
    route = ShardMap().with_state(state).routes[0]
    assert route == Route("shard-0", 1, "", ("node-2:8001", "node-3:8001", "node-1:8001"), 4)


def test_another_cluster_is_refused() -> None:
    view = ShardMap().with_state(full_state())
    foreign = full_state(100)
    foreign.cluster_id = "another"
    with pytest.raises(ForeignClusterError, match="another"):
        view.with_state(foreign)
    with pytest.raises(ForeignClusterError, match="another"):
        view.with_delta(cp.ShardMapDelta(new_map_version=100, full_state=foreign))


def test_keys_go_to_their_residue_and_to_nobody_without_a_record() -> None:
    state = full_state()
    view = ShardMap().with_state(state)
    route = view.route_of(b"hello")  # 127791473 % 4 == 1
    assert route is not None
    assert route.shard_id == "shard-1"
    del state.shards["shard-1"]
    state.map_version += 1
    assert view.with_state(state).route_of(b"hello") is None
    assert ShardMap().route_of(b"hello") is None
    assert view.addresses() == {"node-1:8001", "node-2:8001", "node-3:8001"}


ROUTE = Route("shard-0", 1, "b:1", ("a:1", "b:1", "c:1"))


def test_only_reads_that_said_so_leave_the_leader() -> None:
    def read(**fields: int) -> bool:
        return any_replica_may_serve(sp.Operation(kind=sp.GET, **fields))  # type: ignore[arg-type]

    assert read(consistency=gw.EVENTUAL)
    assert read(consistency=gw.EVENTUAL, read_mode=gw.READ_YOUR_WRITES, session_revision=5)
    assert not read(consistency=gw.EVENTUAL, read_mode=gw.READ_YOUR_WRITES)
    assert not read(consistency=gw.STRONG)
    assert not read(read_mode=gw.LOW_LATENCY)
    assert not any_replica_may_serve(sp.Operation(kind=sp.PUT, consistency=gw.EVENTUAL))
    assert {first_address(ROUTE, True, spread) for spread in range(3)} == {"a:1", "b:1", "c:1"}
    assert {first_address(ROUTE, False, spread) for spread in range(3)} == {"b:1"}


def test_the_quickest_replica_is_the_one_with_least_to_do() -> None:
    work = {"a:1": (False, 4), "b:1": (False, 2), "c:1": (True, 0)}
    assert {quickest(ROUTE, spread, work.__getitem__) for spread in range(6)} == {"b:1"}, "c:1 cannot be reached"
    assert [quickest(ROUTE, spread, lambda _: (False, 0)) for spread in range(3)] == ["a:1", "b:1", "c:1"]
    assert quickest(Route("shard-0", 1, "b:1", ()), 5, work.__getitem__) == "b:1"


def test_further_attempts_go_to_those_not_asked() -> None:
    assert next_address(ROUTE, False, 0, ()) == "b:1"
    assert next_address(ROUTE, False, 0, ("b:1",)) == "a:1"
    assert next_address(ROUTE, False, 0, ("b:1", "a:1")) == "c:1"
    assert next_address(ROUTE, False, 0, ("b:1", "a:1", "c:1")) == "b:1"
    assert next_address(Route("shard-0", 1, "", ()), False, 0, ()) == ""
