"""A shard whose other nodes are lost for good goes on from its last replica; what comes back is of no consequence."""

from __future__ import annotations

import pytest
from flotta_proto.flotta import storage_pb2
from flotta_storage.core.takeover import REVISIONS_SKIPPED
from storage_cluster import METADATA, OK, Cluster, Code, get, put

pytestmark = pytest.mark.timeout(120)
NODES = ("node-1", "node-2", "node-3")


async def bereaved(cluster: Cluster) -> tuple[list[storage_pb2.Reply], str]:
    """Two of three nodes are gone, the one that leads among them; what was written, and who is left."""
    await cluster.open(3)
    await cluster.create_shards(1, NODES)
    written = await cluster.settle(*(put(b"key %d" % n, b"before") for n in range(20)))
    assert {reply.code for reply in written} == {OK}

    async def same() -> bool:
        found = await cluster.digests("shard-0", NODES)
        return len({(one.applied_index, one.sha256) for one in found}) == 1

    await cluster.until_async(same)
    left = "node-3" if cluster.leader("shard-0") != "node-3" else "node-1"
    for node_id in NODES:
        if node_id != left:
            await cluster.nodes.pop(node_id).stop()
    return written, left


async def surveyed(cluster: Cluster, node_id: str) -> storage_pb2.SurveyResponse:
    return await cluster.shards(node_id).Survey(storage_pb2.SurveyRequest(shard_id="shard-0"), metadata=METADATA)


async def serves(cluster: Cluster, written: list[storage_pb2.Reply], epoch_min: int) -> None:
    """All that was written is there, and what is written now is above everything the lost ones may have given."""
    read = await cluster.settle(*(get(b"key %d" % n) for n in range(20)))
    assert [(reply.value, reply.version) for reply in read] == [(b"before", reply.version) for reply in written]
    (fresh,) = await cluster.settle(put(b"key 1", b"after", if_version_equals=written[1].version))
    assert fresh.code == OK and fresh.version > REVISIONS_SKIPPED
    assert cluster.coordinator.state.shards["shard-0"].epoch >= epoch_min


async def test_the_survivor_goes_on_and_the_old_ones_come_back_for_nothing(cluster: Cluster) -> None:
    written, left = await bereaved(cluster)
    old = cluster.coordinator.reports["shard-0"]

    async def without_leader() -> bool:
        return not (await surveyed(cluster, left)).leader_replica

    await cluster.until_async(without_leader)
    heir = await cluster.recover("shard-0", left)
    await cluster.until(lambda: list(cluster.coordinator.reports["shard-0"].voters) == [heir.replica_id])
    report = cluster.coordinator.reports["shard-0"]
    assert report.epoch >= heir.epoch_min > old.epoch and report.term > heir.term_min
    await serves(cluster, written, heir.epoch_min)

    back = [node_id for node_id in NODES if node_id != left]
    for node_id in back:
        await cluster.start(node_id)
        assert cluster.nodes[node_id].replicas.of_shard("shard-0") is None
        (reply,) = await cluster.execute(node_id, put(b"key 2", b"stale", shard_id="shard-0"))
        assert reply.code not in (OK, Code.TIMEOUT)
    await cluster.until(lambda: all(not cluster.nodes[node_id].backend.manager.state.replicas for node_id in back))
    assert not cluster.coordinator.refused
    assert cluster.coordinator.state.shards["shard-0"].leader == left

    await cluster.set_targets("shard-0", NODES)
    await cluster.until(lambda: cluster.voters("shard-0") == set(NODES))
    (reply,) = await cluster.settle(put(b"key 3", b"whole again"))
    assert reply.code == OK

    async def same() -> bool:
        found = await cluster.digests("shard-0", NODES)
        return len(found) == 3 and len({(one.applied_index, one.sha256, one.epoch) for one in found}) == 1

    await cluster.until_async(same)
    (reply,) = await cluster.settle(get(b"key 2"))
    assert reply.value == b"before"


async def test_old_ones_that_come_back_without_any_coordinator_stay_among_themselves(cluster: Cluster) -> None:
    written, left = await bereaved(cluster)
    heir = await cluster.recover("shard-0", left)
    await cluster.until(lambda: list(cluster.coordinator.reports["shard-0"].voters) == [heir.replica_id])
    await cluster.stop_coordinator()
    back = [node_id for node_id in NODES if node_id != left]
    for node_id in back:
        await cluster.start(node_id)
    hosts = [cluster.nodes[node_id].backend.host for node_id in back]
    group = cluster.coordinator.state.shards["shard-0"].detail.group_id
    # They cannot know better, and are a quorum of what the shard was.
    await cluster.until(lambda: any((role := host.role(group)) and role.is_leader for host in hosts))
    await cluster.start_coordinator()
    await cluster.until(lambda: all(not cluster.nodes[node_id].backend.manager.state.replicas for node_id in back))
    assert (await surveyed(cluster, left)).voters == [heir.replica_id]
    await serves(cluster, written, heir.epoch_min)


async def test_a_node_that_dies_while_it_takes_over_goes_on_with_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, left = await bereaved(cluster)
    await cluster.nodes.pop(left).stop()
    monkeypatch.setenv("FLOTTA_FAILPOINTS", "storage.taken_over=error@1")
    node = await cluster.start(left)
    monkeypatch.delenv("FLOTTA_FAILPOINTS")
    heir = await cluster.recover("shard-0", left)
    with pytest.raises(Exception, match=r"storage\.taken_over"):
        await node.wait()
    await cluster.nodes.pop(left).stop()
    await cluster.start(left)
    await cluster.until(lambda: list(cluster.coordinator.reports["shard-0"].voters) == [heir.replica_id])
    await serves(cluster, written, heir.epoch_min)


async def test_a_survivor_that_is_lost_in_its_turn_leaves_the_shard_to_one_that_was_given_up(cluster: Cluster) -> None:
    written, left = await bereaved(cluster)
    first = await cluster.recover("shard-0", left)
    await cluster.until(lambda: list(cluster.coordinator.reports["shard-0"].voters) == [first.replica_id])
    await cluster.nodes.pop(left).stop()
    other = next(node_id for node_id in NODES if node_id != left)
    await cluster.start(other)
    assert cluster.nodes[other].replicas.of_shard("shard-0") is None
    second = await cluster.recover("shard-0", other)
    await cluster.until(lambda: list(cluster.coordinator.reports["shard-0"].voters) == [second.replica_id])
    await serves(cluster, written, second.epoch_min)
