"""Three coordinators: any member takes any call, and the map outlives every one of them."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import grpc
import grpc.aio
import pytest
from coordinator_harness import CALL_S, WAIT_S, Coordinators, eventually, join_nodes, report_leaders
from flotta_coordinator.app import launch
from flotta_coordinator.forward import FORWARDED
from flotta_proto.flotta import cluster_pb2
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_runtime.errors import StartupError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

pytestmark = pytest.mark.parametrize("transport", ["native", "grpcio"])


async def test_bootstrap_through_any_member(three: Coordinators) -> None:
    c1, c2, c3 = (three.client(name) for name in ("c1", "c2", "c3"))
    assert (await c1.register("node-1", "node-1:8001")).success
    assert (await c2.register("node-2", "node-2:8001")).success
    assert (await c3.register("node-3", "node-3:8001")).success
    # Read your writes on every member: reads are linearizable, not leader-only.
    for client in (c1, c2, c3):
        assert sorted((await client.map()).nodes) == ["node-1", "node-2", "node-3"]
        listed = await client.coordinator.ListNodes(pb.ListNodesRequest(), timeout=CALL_S)
        assert len(listed.nodes) == 3
    for client, number in ((c3, 1), (c1, 2), (c2, 3)):
        assert (await client.hello(f"node-{number}", f"store-{number}")).accepted
        assert (await client.heartbeat(f"node-{number}", f"store-{number}")).accepted
    assert (await c2.init(8, 3)).success
    assert len((await c3.map()).shards) == 8


async def test_grpc_health_follows_readiness(three: Coordinators) -> None:
    leader = await three.leader()
    others = [name for name in three.apps if name != leader]
    health = HealthStub(three.client(leader).grpc)
    watching = aiter(health.Watch(HealthCheckRequest(service="kvdb.coordinator.Coordinator"), timeout=WAIT_S))

    async def becomes(status: int) -> None:
        while (await anext(watching)).status != status:
            pass

    await becomes(HealthCheckResponse.SERVING)
    await three.stop(*others)  # without a majority nothing it knows is known to be current
    await becomes(HealthCheckResponse.NOT_SERVING)
    assert (await health.Check(HealthCheckRequest(service=""))).status == HealthCheckResponse.SERVING


async def test_a_stop_waits_for_no_stream_of_another_member(
    three: Coordinators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flotta_coordinator.app.GRACE_MS_MAX", 600_000)  # longer than any test may take
    leader = await three.leader()
    for app in three.apps.values():
        monkeypatch.setattr(app, "settings", app.settings.model_copy(update={"stop_timeout_ms": 1_200_000}))
    follower = next(name for name in three.apps if name != leader)
    await join_nodes(three.client(follower), 1)
    watched = three.client(leader).watch()
    assert (await anext(watched)).full_state.nodes
    async with asyncio.timeout(60):
        await three.stop(leader)
        await three.stop(follower)


async def test_exactly_one_leads_and_everybody_names_it(three: Coordinators) -> None:
    leader = await three.leader()

    async def agreed() -> bool:
        asked = [
            three.client(name).coordinator.GetCoordinatorLeader(pb.GetCoordinatorLeaderRequest()) for name in three.apps
        ]
        replies = [await call for call in asked]
        return (
            [reply.is_leader for reply in replies].count(True) == 1
            and {reply.leader_id for reply in replies} == {leader}
            and {reply.leader_address for reply in replies} == {dict(three.peers)[leader]}
            and replies[list(three.apps).index(leader)].is_leader
        )

    assert await eventually(agreed, "the members disagree about who leads")


async def test_a_forwarded_call_goes_one_hop_and_names_the_leader(three: Coordinators) -> None:
    leader = await three.leader()
    follower = three.client((await three.followers())[0])
    metadata = (*follower.metadata, (FORWARDED, "1"))
    request = pb.RegisterNodeRequest(node_id="node-1", address="h:1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await follower.coordinator.RegisterNode(request, metadata=metadata, timeout=CALL_S)
    address = dict(three.peers)[leader]
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == f"Not the leader. Leader hint: {address}"
    assert ("x-leader-hint", address) in tuple(caught.value.trailing_metadata() or ())
    call = follower.coordinator.RegisterNode(request, metadata=follower.metadata, timeout=CALL_S)
    assert (await call).success
    assert ("x-leader-hint", address) in tuple(await call.trailing_metadata())


async def test_a_follower_refuses_a_watch_with_the_hint(three: Coordinators) -> None:
    address = dict(three.peers)[await three.leader()]
    for name in await three.followers():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(three.client(name).watch())
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.details() == f"Not the leader. Leader hint: {address}"


async def test_a_new_leader_serves_the_same_map_and_resumes_watches(three: Coordinators) -> None:
    leader = await three.leader()
    client = three.client(leader)
    await join_nodes(client, 3)
    assert (await client.init(4, 3)).success
    await report_leaders(client)
    before = await client.map()
    watch = client.watch(before.map_version)

    await three.stop(leader)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while True:
            await anext(watch)
    assert caught.value.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE)

    successor = await three.leader()
    assert successor != leader
    other = three.client(successor)
    assert await other.map() == before
    # The successor has applied the same entries, so it can resume from a version by a delta.
    resumed = other.watch(before.map_version - 1, records=True)
    delta = await anext(resumed)
    assert not delta.HasField("full_state")
    assert (delta.previous_map_version, delta.new_map_version) == (before.map_version - 1, before.map_version)
    assert (await other.register("node-4", "node-4:8001")).success
    delta = await anext(resumed)
    assert (list(delta.changed_nodes), delta.new_map_version) == (["node-4"], before.map_version + 1)

    await three.start(leader)
    returned = three.apps[leader]
    assert await eventually(lambda: returned.readiness()[0], "the restarted member never caught up")
    assert (await three.client(leader).map()).map_version == before.map_version + 1


async def test_a_rejected_call_then_a_restart_of_all_leaves_the_map_unchanged(three: Coordinators) -> None:
    client = three.client(await three.leader())
    await join_nodes(client, 3)
    await client.init(8, 3)
    before = await client.map()
    rejected = await client.init(4, 3)
    assert not rejected.success
    assert not (await client.hello("node-1", "store-other")).accepted
    await three.stop()
    await three.start()
    for name in three.apps:
        assert await three.client(name).map() == before


async def test_without_a_quorum_nobody_pretends(three: Coordinators) -> None:
    leader = await three.leader()
    await three.client(leader).register("node-1", "node-1:8001")
    client = three.client(leader)
    watch = client.watch()
    await anext(watch)
    await three.stop(*await three.followers())
    request = pb.RegisterNodeRequest(node_id="node-2", address="h:2")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.coordinator.RegisterNode(request, metadata=client.metadata, timeout=1.5)
    # Proposed before the leader noticed: unknown. After: certainly refused.
    assert caught.value.code() in (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNAVAILABLE,
    )
    assert "null" not in (caught.value.details() or "")
    with pytest.raises(grpc.aio.AioRpcError):
        await client.coordinator.GetShardMap(pb.GetShardMapRequest(), timeout=1.5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(watch)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "Coordinator stepped down from leader"
    status = await client.cluster.CoordinatorStatus(cluster_pb2.CoordinatorStatusRequest(), metadata=client.metadata)
    assert status.map_version >= 1


async def test_a_coordinator_that_lost_its_directory_may_not_come_back(three: Coordinators) -> None:
    client = three.client(await three.leader())
    await client.register("node-1", "node-1:8001")
    lost = (await three.followers())[0]
    await three.stop(lost)
    shutil.rmtree(three.root / lost)
    app = await launch(three.settings(lost))
    with pytest.raises(StartupError, match="a coordinator that lost its directory cannot come back"):
        await app.formed()
    await app.stop()
    assert (await client.register("node-2", "node-2:8001")).success


async def test_the_order_of_the_coordinators_is_fixed(three: Coordinators) -> None:
    await three.stop("c2")
    swapped = (three.peers[1], three.peers[0], three.peers[2])
    with pytest.raises(StartupError, match="belongs to the coordinators c1, c2, c3, but peers says c2, c1, c3"):
        await launch(three.settings("c2", peers=swapped))


async def test_changes_from_all_sides_at_once_are_applied_once_each(three: Coordinators) -> None:
    names = list(three.apps)
    calls = [three.client(names[number % 3]).register(f"node-{number}", f"node-{number}:8001") for number in range(60)]
    replies = await asyncio.gather(*calls)
    assert all(reply.success for reply in replies)
    state = await three.client("c1").map()
    assert len(state.nodes) == 60
    assert state.map_version == 60
    assert sorted(reply.map_version for reply in replies) == list(range(1, 61))


async def same_everywhere(three: Coordinators) -> bool:
    states = [await three.client(name).map() for name in three.apps]
    decided = [await decisions(three, name) for name in three.apps]
    return states[1:] == states[:-1] and decided[1:] == decided[:-1]


async def decisions(three: Coordinators, name: str) -> list[tuple[int, str, str]]:
    client = three.client(name)
    request = cluster_pb2.ListDecisionsRequest(limit=1_000)
    reply = await client.cluster.ListDecisions(request, metadata=client.metadata, timeout=CALL_S)
    return [(one.number, one.kind, one.subject) for one in reply.decisions]


async def test_a_verdict_is_one_decision_on_every_member(tmp_path: Path, transport: str) -> None:
    """All members watch the same silence, and the leader alone says what it means."""
    verdicts = {"suspect_after_ms": 1_000, "dead_after_ms": 2_000, "liveness_check_ms": 50}
    three = Coordinators(tmp_path, 3, transport=transport, **verdicts)
    await three.start()
    try:
        follower = three.client((await three.followers())[0])
        await join_nodes(follower, 2)

        async def both_dead() -> bool:
            return {node.status for node in (await follower.map()).nodes.values()} == {pb.DEAD}

        await eventually(both_dead, "nobody missed the nodes")
        assert await eventually(lambda: same_everywhere(three), "the members disagree")
        told = await decisions(three, next(iter(three.apps)))
        for node_id in ("node-1", "node-2"):
            kinds = [kind for _, kind, subject in told if subject == node_id]
            assert kinds.count("node-dead") == 1, told
    finally:
        await three.close()


async def test_a_report_at_a_follower_changes_every_map(three: Coordinators) -> None:
    leader, (first, second) = await three.leader(), await three.followers()
    await join_nodes(three.client(leader), 3)
    await three.client(leader).init(2, 3)
    await report_leaders(three.client(leader))
    before = await three.client(leader).map()
    shard = before.shards["shard-0"]
    other = next(node_id for node_id in shard.replicas if node_id != shard.leader)
    follower = three.client(first)
    for epoch, node_id in ((shard.epoch + 1, other), (shard.epoch, "node-9")):
        wrong = pb.ReportShardLeaderRequest(shard_id="shard-0", epoch=epoch, leader_node_id=node_id)
        reply = await follower.coordinator.ReportShardLeader(wrong, metadata=follower.metadata, timeout=CALL_S)
        assert not reply.accepted
    for name in three.apps:
        assert await three.client(name).map() == before
    report = pb.ReportShardLeaderRequest(shard_id="shard-0", epoch=shard.epoch, leader_node_id=other)
    reply = await follower.coordinator.ReportShardLeader(report, metadata=follower.metadata, timeout=CALL_S)
    states = [await three.client(name).map() for name in (leader, first, second)]
    assert states[0] == states[1] == states[2]
    assert (states[0].shards["shard-0"].leader == other) == reply.accepted
