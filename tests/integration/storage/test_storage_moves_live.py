"""Replicas that move between nodes, and maps that are old, wrong or rolled back."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest
from flotta_embedded.generations import machines
from flotta_proto.flotta import storage_pb2 as pb
from flotta_proto.kvdb import coordinator_pb2
from flotta_runtime.errors import StartupError
from flotta_storage.replica_manager import ReplicaManager
from storage_cluster import METADATA, Cluster, Code, get, put
from test_storage_nodes import THREE, equal_digests

FOUR = [*THREE, "node-4"]


def manager(cluster: Cluster, node_id: str) -> ReplicaManager:
    backend = cluster.nodes[node_id].backend
    assert backend is not None
    return backend.manager


async def fill(cluster: Cluster, count: int, prefix: bytes = b"k") -> None:
    answers = await cluster.settle(*(put(prefix + b"%d" % number, b"v" * 100) for number in range(count)))
    assert {one.code for one in answers} == {Code.OK}


async def move(cluster: Cluster, targets: list[str]) -> None:
    await cluster.set_targets("shard-0", targets)
    await cluster.until(lambda: cluster.voters("shard-0") == set(targets))


@pytest.mark.parametrize("leaves", ["a follower", "the leader"])
async def test_a_replica_moves_to_a_fourth_node_and_its_old_place_is_emptied(cluster: Cluster, leaves: str) -> None:
    await cluster.open(4)
    await cluster.create_shards(1, THREE)
    await fill(cluster, 40)
    leader = cluster.leader("shard-0")
    leaving = leader if leaves == "the leader" else next(node for node in THREE if node != leader)
    old = cluster.nodes[leaving].replicas.of_shard("shard-0")
    assert old is not None
    staying = [node for node in THREE if node != leaving]
    await move(cluster, [*staying, "node-4"])
    assert cluster.coordinator.reports["shard-0"].epoch == 2
    await fill(cluster, 40, b"l")
    (digest, *_) = await equal_digests(cluster, "shard-0", [*staying, "node-4"])
    assert (digest.keys, digest.epoch) == (80, 2)

    await cluster.until(lambda: not manager(cluster, leaving).state.replicas)
    assert old.replica in manager(cluster, leaving).state.tombstones
    backend = cluster.nodes[leaving].backend
    assert backend is not None and machines(backend.engine) == []
    assert backend.host.tombstones() == {100: [old.replica]}
    now_leads = cluster.leader("shard-0")
    (stale, fresh) = await cluster.execute(
        now_leads, put(b"k0", b"x", shard_id="shard-0", epoch=1), put(b"k0", b"y", shard_id="shard-0", epoch=2)
    )
    assert (stale.code, fresh.code) == (Code.SHARD_MOVED, Code.OK)
    (gone,) = await cluster.execute(leaving, get(b"k0", shard_id="shard-0"))
    assert gone.code == Code.SHARD_MOVED and gone.new_node_hint


async def test_a_replica_can_come_back_under_a_new_id(cluster: Cluster) -> None:
    await cluster.open(4)
    await cluster.create_shards(1, THREE)
    await fill(cluster, 10)
    await move(cluster, ["node-1", "node-2", "node-4"])
    await move(cluster, ["node-1", "node-2", "node-3"])
    await fill(cluster, 10, b"l")
    (digest, *_) = await equal_digests(cluster, "shard-0", THREE)
    assert (digest.keys, digest.epoch) == (20, 3)


async def test_all_replicas_can_move_and_the_data_is_there_after_a_restart(cluster: Cluster) -> None:
    await cluster.open(4)
    await cluster.create_shards(1, ["node-1"])
    await fill(cluster, 20)
    await move(cluster, ["node-2", "node-3", "node-4"])
    await cluster.until(lambda: not manager(cluster, "node-1").state.replicas)
    await asyncio.gather(*(cluster.stop(node) for node in FOUR))
    await asyncio.gather(*(cluster.start(node) for node in FOUR))
    (digest, *_) = await equal_digests(cluster, "shard-0", ["node-2", "node-3", "node-4"])
    assert digest.keys == 20


async def test_maps_that_lie_delete_nothing_and_make_no_second_voter(cluster: Cluster) -> None:
    await cluster.open(4)
    await cluster.create_shards(1, THREE)
    await fill(cluster, 10)
    truth = coordinator_pb2.ClusterState()
    truth.CopyFrom(cluster.coordinator.state)

    def lie(edit: object) -> coordinator_pb2.ShardMapDelta:
        state = coordinator_pb2.ClusterState()
        state.CopyFrom(truth)
        assert callable(edit)
        edit(state)
        cluster.coordinator.state.map_version += 1
        state.map_version = cluster.coordinator.state.map_version
        return coordinator_pb2.ShardMapDelta(new_map_version=state.map_version, full_state=state)

    def forget_shard(state: coordinator_pb2.ClusterState) -> None:
        del state.shards["shard-0"]

    def forget_members(state: coordinator_pb2.ClusterState) -> None:
        del state.shards["shard-0"].detail.members[1:]

    def place_again(state: coordinator_pb2.ClusterState) -> None:
        detail = state.shards["shard-0"].detail
        detail.phase = coordinator_pb2.ShardDetail.CREATING
        del detail.birth[:]
        detail.birth.extend(cluster.coordinator.new_replica(node) for node in THREE)
        del detail.members[:]
        detail.members.extend(detail.birth)

    before = {node: manager(cluster, node).state.replicas for node in THREE}
    for edit in (forget_shard, forget_members, place_again):
        asked = [manager(cluster, node).questions for node in THREE]
        await cluster.coordinator.send(lie(edit))
        version = cluster.coordinator.state.map_version
        await cluster.until(lambda version=version: all(cluster.nodes[n].model.version == version for n in THREE))
        await cluster.until(lambda asked=asked: [manager(cluster, node).questions for node in THREE] != asked)
        for node in THREE:
            await manager(cluster, node).review()
        assert {node: manager(cluster, node).state.replicas for node in THREE} == before
    (digest, *_) = await equal_digests(cluster, "shard-0", THREE)
    assert digest.keys == 10


async def test_an_older_map_is_not_taken(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    version = cluster.nodes["node-1"].model.version
    old = coordinator_pb2.ClusterState(map_version=1, cluster_id="test-cluster")
    await cluster.coordinator.send(coordinator_pb2.ShardMapDelta(new_map_version=1, full_state=old))
    foreign = coordinator_pb2.ClusterState(map_version=version + 100, cluster_id="other")
    await cluster.coordinator.send(coordinator_pb2.ShardMapDelta(new_map_version=version + 100, full_state=foreign))
    await cluster.coordinator.change(lambda state: None)
    newest = cluster.coordinator.state.map_version
    await cluster.until(lambda: cluster.nodes["node-1"].model.version == newest)
    assert cluster.nodes["node-1"].model.shard("shard-0") is not None


async def test_a_lost_delta_is_noticed_and_the_whole_map_fetched(cluster: Cluster) -> None:
    await cluster.open(3)
    cluster.coordinator.state.map_version += 5  # five deltas that nobody was sent
    cluster.coordinator.state.partitioning.num_shards = 77
    await cluster.coordinator.change(lambda state: None)
    await cluster.until(lambda: all(cluster.nodes[node].model.num_shards == 77 for node in THREE))


async def test_a_birth_voter_that_missed_the_birth_is_born_late_and_votes(cluster: Cluster) -> None:
    """The other two served meanwhile, and one of them is gone before it has heard anything of that."""
    await cluster.open(3)
    await cluster.stop("node-3")
    await cluster.create_shards(1, THREE)
    await fill(cluster, 20)
    await cluster.stop("node-1")
    await cluster.stop("node-2")
    await cluster.start("node-3")
    await cluster.start("node-2")
    await cluster.until(lambda: cluster.leader("shard-0") == "node-2")
    await fill(cluster, 20)
    await cluster.start("node-1")
    (digest, *_) = await equal_digests(cluster, "shard-0", THREE)
    assert digest.keys == 20
    assert cluster.voters("shard-0") == set(THREE)


async def test_a_wanted_leader_becomes_it(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    for wanted in THREE:

        def edit(state: coordinator_pb2.ClusterState, wanted: str = wanted) -> None:
            state.shards["shard-0"].detail.target_leader = wanted

        await cluster.coordinator.change(edit, ["shard-0"])
        await cluster.until(lambda wanted=wanted: cluster.leader("shard-0") == wanted)


@pytest.mark.parametrize(
    "action",
    [
        "engine.after_create=error@2",
        "machine.create_flushed=error@2",
        "consensus.before_send=error@1",  # what is sent once links are bound does not pass there
        "consensus.before_apply=error@2",
    ],
)
async def test_a_creation_that_was_cut_short_is_finished(
    cluster: Cluster, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.open(2)
    monkeypatch.setenv("FLOTTA_FAILPOINTS", action)
    failing = await cluster.start("node-3")
    monkeypatch.delenv("FLOTTA_FAILPOINTS")
    await cluster.create_shards(2, THREE)
    with pytest.raises(Exception, match="failpoint"):
        await failing.wait()
    await cluster.stop("node-3")
    await cluster.start("node-3")
    for shard in ("shard-0", "shard-1"):
        await equal_digests(cluster, shard, THREE)


@pytest.mark.parametrize("point", ["consensus.before_destroy", "engine.before_drop", "consensus.after_destroy"])
async def test_a_removal_that_was_cut_short_is_finished(
    cluster: Cluster, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.open(3)
    monkeypatch.setenv("FLOTTA_FAILPOINTS", f"{point}=error@1")
    failing = await cluster.start("node-4")
    monkeypatch.delenv("FLOTTA_FAILPOINTS")
    await cluster.create_shards(1, ["node-1", "node-2", "node-4"])
    await fill(cluster, 10)
    await move(cluster, THREE)
    with pytest.raises(Exception, match="failpoint"):
        await failing.wait()
    await cluster.stop("node-4")
    await cluster.start("node-4")
    await cluster.until(lambda: not manager(cluster, "node-4").state.replicas)
    backend = cluster.nodes["node-4"].backend
    assert backend is not None
    assert machines(backend.engine) == []
    assert len(manager(cluster, "node-4").state.tombstones) == 1
    (digest, *_) = await equal_digests(cluster, "shard-0", THREE)
    assert digest.keys == 10


async def test_a_new_node_waits_for_admission_and_a_refused_one_ends(cluster: Cluster) -> None:
    await cluster.start_coordinator()
    cluster.coordinator.refusal = "node-1 is registered with another store"
    with pytest.raises(StartupError, match="refuses node node-1: node-1 is registered with another store"):
        await cluster.start("node-1")
    cluster.coordinator.refusal = ""
    await cluster.start("node-1")


async def test_directories_are_not_shared_or_mixed_up(cluster: Cluster) -> None:
    await cluster.open(1)
    with pytest.raises(StartupError, match="in use by another process"):
        await cluster.start("node-1", listen="127.0.0.1:0")
    with pytest.raises(StartupError, match="belongs to node node-1, not to node node-2"):
        await cluster.stop("node-1")
        await cluster.start("node-2", data_dir=cluster.path / "node-1")


async def test_a_lost_log_or_lost_rows_stop_the_start(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    await fill(cluster, 10)
    await equal_digests(cluster, "shard-0", THREE)
    await asyncio.gather(*(cluster.stop(node) for node in THREE))
    (cluster.path / "node-1" / "raft").rename(cluster.path / "raft-away")
    with pytest.raises(StartupError, match=r"group 100 has applied [0-9]+, but the log does not know it"):
        await cluster.start("node-1")
    (cluster.path / "node-2" / "rocks").rename(cluster.path / "rocks-away")
    with pytest.raises(StartupError, match="its record of them is gone"):
        await cluster.start("node-2")


async def test_membership_is_answered_by_the_leader_alone(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    leader = cluster.leader("shard-0")
    replicas = [cluster.nodes[node].replicas.of_shard("shard-0") for node in THREE]

    async def ask(node: str, replica: int, group: int = 100) -> pb.MembershipResponse:
        request = pb.MembershipRequest(group_id=group, replica_id=replica)
        return await cluster.shards(node).MembershipOf(request, metadata=METADATA)

    for replica in replicas:
        assert replica is not None
        answer = await ask(leader, replica.replica)
        assert (answer.known, answer.member) == (True, True)
    stranger = await ask(leader, 99 << 32 | 1)
    assert (stranger.known, stranger.member) == (True, False)
    assert not (await ask(leader, 1, group=999)).known
    for node in THREE:
        if node != leader:
            assert not (await ask(node, 99 << 32 | 1)).known
    with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
        await cluster.shards(leader).MembershipOf(pb.MembershipRequest(group_id=100))


async def test_records_remember_what_was_made(cluster: Cluster) -> None:
    await cluster.open(1)
    await cluster.create_shards(1, ["node-1"])
    before = manager(cluster, "node-1").state
    assert [one.made for one in before.replicas.values()] == [True]
    await cluster.stop("node-1")
    await cluster.start("node-1")
    after = manager(cluster, "node-1").state
    assert replace(after, acted_version=0) == replace(before, acted_version=0)
