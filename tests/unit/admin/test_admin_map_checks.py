"""A map that cannot be, and a cluster that is not well, each told by a sentence of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flotta_admin.core.map_checks import broken, troubles
from flotta_proto.kvdb import coordinator_pb2 as pb


def replica(node: int, sequence: int) -> pb.ReplicaRef:
    return pb.ReplicaRef(node_id=f"node-{node}", replica_id=node << 32 | sequence)


def healthy() -> pb.ClusterState:
    state = pb.ClusterState(map_version=7)
    state.partitioning.num_shards, state.partitioning.replication_factor = 2, 2
    for number in (1, 2, 3):
        node = pb.NodeRecord(node_id=f"node-{number}", status=pb.ALIVE, detail=pb.NodeDetail(node_num=number))
        state.nodes[f"node-{number}"].CopyFrom(node)
    for index in (0, 1):
        members = [replica(index + 1, 10 + index), replica(index + 2, 20 + index)]
        detail = pb.ShardDetail(group_id=index + 1, shard_index=index, shard_count=2, members=members)
        record = pb.ShardRecord(shard_id=f"shard-{index}", leader=f"node-{index + 1}", detail=detail)
        state.shards[record.shard_id].CopyFrom(record)
    return state


def test_nothing_is_wrong_with_a_healthy_cluster() -> None:
    assert [*broken(healthy()), *troubles(healthy())] == []


def shard(state: pb.ClusterState) -> pb.ShardRecord:
    return state.shards["shard-0"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda state: state.shards.pop("shard-1"), "do not own every key once"),
        (lambda state: setattr(shard(state).detail, "shard_index", 1), "do not own every key once"),
        (lambda state: setattr(shard(state).detail, "shard_count", 3), "do not own every key once"),
        (lambda state: setattr(shard(state).detail, "shard_count", 2**31), "do not own every key once"),
        (lambda state: setattr(shard(state).detail, "group_id", 2), "one Raft group"),
        (lambda state: setattr(state.nodes["node-3"].detail, "node_num", 2), "one number"),
        (lambda state: shard(state).detail.ClearField("members"), "has no replica"),
        (lambda state: shard(state).detail.members.append(replica(1, 30)), "on one node"),
        (lambda state: shard(state).detail.targets.extend([replica(3, 30), replica(3, 31)]), "on one node"),
        (lambda state: state.nodes.pop("node-2"), "which is not on the map"),
        (lambda state: setattr(shard(state).detail.members[0], "replica_id", 5), "not numbered for node-1"),
        (lambda state: setattr(shard(state), "leader", "node-3"), "is led by node-3, which has no replica"),
    ],
)
def test_what_cannot_be_is_told(damage: Callable[[pb.ClusterState], object], words: str) -> None:
    state = healthy()
    damage(state)
    assert any(words in sentence for sentence in broken(state)), list(broken(state))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: setattr(state.nodes["node-3"], "status", pb.SUSPECT), "node-3 is SUSPECT"),
        (lambda state: setattr(shard(state), "leader", ""), "shard-0 has no leader"),
        (lambda state: setattr(state.partitioning, "replication_factor", 3), "has 2 of 3 replicas"),
        (lambda state: shard(state).detail.heir.CopyFrom(pb.Heir(node_id="node-2")), "being recovered from node-2"),
    ],
)
def test_what_passes_is_told(change: Callable[[pb.ClusterState], object], words: str) -> None:
    state = healthy()
    change(state)
    assert any(words in sentence for sentence in troubles(state))
    assert not list(broken(state))


def test_a_table_that_is_being_divided_is_nothing_wrong() -> None:
    """shard-0 of 2 has divided into shard-0 and shard-2 of 4, shard-1 is still to."""
    state = healthy()
    shard(state).detail.shard_count = 4
    for index, phase, parent in ((2, pb.ShardDetail.ACTIVE, 0), (3, pb.ShardDetail.AWAITED, 1)):
        child = state.shards[f"shard-{index}"]
        child.CopyFrom(state.shards[f"shard-{parent}"])
        child.detail.shard_index, child.detail.shard_count, child.detail.group_id = index, 4, 10 + index
        child.detail.phase, child.detail.parent = phase, f"shard-{parent}"
        if phase == pb.ShardDetail.AWAITED:
            child.leader = ""
    assert [*broken(state), *troubles(state)] == []
