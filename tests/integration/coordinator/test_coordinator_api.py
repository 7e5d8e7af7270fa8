"""One coordinator over gRPC: KvDB's API, bad input, what survives a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import grpc
import grpc.aio
import pytest
from coordinator_harness import CALL_S, Client, Coordinators, eventually, free_ports, join_nodes, report_leaders
from flotta_coordinator.app import launch
from flotta_coordinator.store import MetadataStore
from flotta_proto.flotta import cluster_pb2
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb import raft_pb2, raft_pb2_grpc
from flotta_runtime.errors import StartupError


async def test_a_cluster_is_bootstrapped_and_survives_a_restart(one: Coordinators) -> None:
    client = one.client("c1")
    first = await client.coordinator.GetShardMap(pb.GetShardMapRequest(), timeout=CALL_S)
    assert first.not_modified and not first.HasField("state")

    assert (await client.register("node-1", "node-1:8001", "a")).message == "Node registered successfully"
    assert (await client.map()).nodes["node-1"].status == pb.ALIVE
    early = await client.init(4, 1)
    assert not early.success
    assert "node-1 never sent a heartbeat" in early.message
    assert (early.rejection.code, early.rejection.field) == ("FAILED_PRECONDITION", "replication_factor")

    await join_nodes(client, 3)
    made = await client.init(4, 3)
    assert made.success and made.message == "Shards initialized successfully"
    assert list(made.shard_ids) == ["shard-0", "shard-1", "shard-2", "shard-3"]
    await report_leaders(client)
    before = await client.map()
    assert [before.shards[f"shard-{index}"].leader for index in range(4)] == ["node-1", "node-2", "node-3", "node-1"]
    assert before.cluster_id

    repeat = await client.init(4, 3)
    assert repeat.success and repeat.map_version == before.map_version
    await one.stop()
    await one.start()
    assert await client.map() == before


async def test_bad_numbers_are_refused_before_anything_is_waited_for(one: Coordinators) -> None:
    client = one.client("c1")
    assert (await client.register("node-1", "node-1:8001")).success  # announced, and never heard
    with mock.patch.object(MetadataStore, "changed", side_effect=AssertionError("it waits for nodes")):
        for numbers in ((0, 1), (1, 0), (5_000, 1), (1, 99)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.init(*numbers)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_shards_are_born_on_every_announced_node_that_comes_in_time(one: Coordinators) -> None:
    """Three of four would do for three replicas; the fourth would get its share only by moves."""
    await one.stop()
    one.patience = replace(one.patience, nodes_ms=20_000)
    await one.start()
    client = one.client("c1")
    for number in range(1, 5):
        assert (await client.hello(f"node-{number}", f"store-{number}")).accepted
    for number in range(1, 4):
        assert (await client.heartbeat(f"node-{number}", f"store-{number}")).accepted
    made = asyncio.create_task(client.init(4, 3))
    for _ in range(3):
        assert not (await client.map()).shards
    assert (await client.heartbeat("node-4", "store-4")).accepted
    assert (await made).success
    shards = (await client.map()).shards.values()
    assert {node for shard in shards for node in shard.replicas} == {f"node-{number}" for number in range(1, 5)}


async def test_shards_are_born_without_an_announced_node_that_does_not_come(one: Coordinators) -> None:
    client = one.client("c1")
    await join_nodes(client, 2)
    assert (await client.hello("node-3", "store-3")).accepted
    assert (await client.init(4, 2)).success
    shards = (await client.map()).shards.values()
    assert {node for shard in shards for node in shard.replicas} == {"node-1", "node-2"}


async def test_kvdb_vectors_of_resolve_shard(one: Coordinators) -> None:
    client = one.client("c1")
    assert (await resolve(client, b"a")).shard_id == ""
    await join_nodes(client, 1)
    await client.init(8, 1)
    expected = {
        b"a": 0,
        b"k-0": 5,
        b"hello": 1,
        b"bench-key": 1,
        b"smoke-key10": 7,
        b"\xff": 6,
    }
    for key, index in expected.items():
        reply = await resolve(client, key)
        assert reply.shard_id == reply.shard.shard_id == f"shard-{index}"
        assert reply.shard.detail.shard_index == index


async def resolve(client: Client, key: bytes) -> pb.ResolveShardResponse:
    return await client.coordinator.ResolveShard(pb.ResolveShardRequest(key=key), timeout=CALL_S)


Call = Callable[[Client], Awaitable[object]]

INVALID: list[tuple[str, Call, str]] = [
    ("empty node id", lambda c: c.register("", "h:1"), "node_id must not be empty"),
    ("no port", lambda c: c.register("node-1", "localhost"), "address must be host:port"),
    ("port 0", lambda c: c.register("node-1", "localhost:0"), "address must end in a port between 1 and 65535"),
    ("long id", lambda c: c.register("n" * 200, "h:1"), "node_id must be at most 128 characters, not 200"),
    ("no shards", lambda c: c.init(0, 1), "num_shards must be between 1 and 4096, not 0"),
    ("many shards", lambda c: c.init(4097, 1), "num_shards must be between 1 and 4096, not 4097"),
    ("rf 0", lambda c: c.init(8, 0), "replication_factor must be between 1 and 16, not 0"),
    (
        "status 9",
        lambda c: c.coordinator.SetNodeStatus(
            pb.SetNodeStatusRequest(node_id="node-1", status=9),  # type: ignore[arg-type]
            metadata=c.metadata,
        ),
        "status must be ALIVE (1), SUSPECT (2) or DEAD (3), not 9",
    ),
    ("no node", lambda c: c.coordinator.GetNode(pb.GetNodeRequest()), "node_id must not be empty"),
    ("no key", lambda c: c.coordinator.ResolveShard(pb.ResolveShardRequest()), "key must not be empty"),
    ("no replicas", lambda c: set_replicas(c, "shard-0", []), "replicas must name at least one node"),
    ("no shard id", lambda c: set_replicas(c, "", ["node-1"]), "shard_id must not be empty"),
    ("empty replica", lambda c: set_replicas(c, "shard-0", ["node-1", ""]), "replicas[1] must not be empty"),
    ("no store", lambda c: c.heartbeat("node-1", ""), "store_id must not be empty"),
    ("no id in heartbeat", lambda c: c.coordinator.Heartbeat(pb.HeartbeatRequest()), "node_id must not be empty"),
]


async def set_replicas(client: Client, shard_id: str, replicas: list[str]) -> pb.SetShardReplicasResponse:
    request = pb.SetShardReplicasRequest(shard_id=shard_id, replicas=replicas)
    return await client.coordinator.SetShardReplicas(request, metadata=client.metadata, timeout=CALL_S)


async def set_leader(client: Client, shard_id: str, epoch: int, node_id: str) -> pb.SetShardLeaderResponse:
    request = pb.SetShardLeaderRequest(shard_id=shard_id, epoch=epoch, leader_node_id=node_id)
    return await client.coordinator.SetShardLeader(request, metadata=client.metadata, timeout=CALL_S)


async def test_bad_arguments_are_statuses_that_name_the_field_and_change_nothing(one: Coordinators) -> None:
    client = one.client("c1")
    await join_nodes(client, 2)
    await client.init(2, 2)
    before = await client.map()
    applied = one.apps["c1"].member.group.applied_index()
    for name, call, message in INVALID:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(client)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
        assert message in (caught.value.details() or ""), name
    assert await client.map() == before
    assert one.apps["c1"].member.group.applied_index() == applied, "something reached the log"


async def test_what_the_state_refuses_is_said_precisely_and_never_logged(one: Coordinators) -> None:
    client = one.client("c1")
    await join_nodes(client, 3)
    await client.init(2, 2)
    await report_leaders(client)
    before = await client.map()
    applied = one.apps["c1"].member.group.applied_index()
    status = pb.SetNodeStatusRequest(node_id="node-9", status=pb.DEAD)
    refused = [
        (await client.init(4, 2), "ALREADY_EXISTS", "num_shards", "so 4 is refused"),
        (await client.init(2, 3), "ALREADY_EXISTS", "replication_factor", "so 3 is refused"),
        (await set_leader(client, "shard-0", 1, "node-3"), "FAILED_PRECONDITION", "leader_node_id", "is not a replica"),
        (await set_leader(client, "shard-0", 1, "node-9"), "NOT_FOUND", "leader_node_id", "no node is registered"),
        (await set_leader(client, "shard-0", 5, "node-2"), "FAILED_PRECONDITION", "epoch", "at epoch 1, not 5"),
        (await set_leader(client, "shard-7", 1, "node-2"), "NOT_FOUND", "shard_id", "there is no shard"),
        (await set_replicas(client, "shard-0", ["node-1", "x"]), "NOT_FOUND", "replicas", "no node is registered"),
        (
            await client.coordinator.SetNodeStatus(status, metadata=client.metadata),
            "NOT_FOUND",
            "node_id",
            "no node is registered as 'node-9'",
        ),
    ]
    for reply, code, field, words in refused:
        assert not reply.success
        assert (reply.rejection.code, reply.rejection.field) == (code, field)
        assert words in reply.message
        assert reply.map_version == before.map_version
    report = pb.ReportShardLeaderRequest(shard_id="shard-0", epoch=1, leader_node_id="node-1")
    assert not (await client.coordinator.ReportShardLeader(report, metadata=client.metadata)).accepted
    assert one.apps["c1"].member.group.applied_index() == applied
    await one.stop()
    await one.start()
    assert await client.map() == before


async def test_operator_intents_are_recorded(one: Coordinators) -> None:
    client = one.client("c1")
    await join_nodes(client, 3)
    await client.init(1, 2)
    await report_leaders(client)
    moved = await set_replicas(client, "shard-0", ["node-3", "node-2"])
    assert moved.success and moved.new_epoch == 2 and moved.message == "Shard replicas updated"
    shard = (await client.map()).shards["shard-0"]
    assert shard.config_state == pb.MOVING and shard.epoch == 1
    assert list(shard.replicas) == ["node-1", "node-2"]
    assert [target.node_id for target in shard.detail.targets] == ["node-3", "node-2"]
    assert shard.detail.target_leader == "node-3"
    request = cluster_pb2.ListDecisionsRequest(subject="shard-0")
    told = await client.cluster.ListDecisions(request, metadata=client.metadata)
    assert "an operator moves shard-0 from node-1, node-2 to node-3, node-2" in [d.reason for d in told.decisions]
    newest = await client.cluster.ListDecisions(cluster_pb2.ListDecisionsRequest(limit=2), metadata=client.metadata)
    assert [d.number for d in newest.decisions] == sorted(d.number for d in newest.decisions)
    assert len(newest.decisions) == 2


async def test_a_node_that_lost_its_directory_is_refused_and_nothing_is_logged(one: Coordinators) -> None:
    client = one.client("c1")
    hello = await client.hello("node-1", "store-1")
    assert hello.accepted and hello.node_num == 1 and hello.cluster_id
    again = await client.hello("node-1", "store-1", hello.cluster_id)
    assert again == hello
    applied = one.apps["c1"].member.group.applied_index()
    amnesia = await client.hello("node-1", "store-2")
    assert not amnesia.accepted and "is known with another data directory (store store-1" in amnesia.message
    foreign = await client.hello("node-2", "store-9", "another-cluster")
    assert not foreign.accepted and "belongs to cluster another-cluster" in foreign.message
    stranger = await client.heartbeat("node-1", "store-2")
    assert not stranger.accepted and "is known with store store-1" in stranger.message
    assert not (await client.heartbeat("node-7", "store-7")).accepted
    assert one.apps["c1"].member.group.applied_index() == applied


async def test_heartbeats_are_not_logged_and_are_seen(one: Coordinators) -> None:
    client = one.client("c1")
    await join_nodes(client, 1)
    applied = one.apps["c1"].member.group.applied_index()
    for _ in range(20):
        assert (await client.heartbeat("node-1", "store-1")).accepted
    assert one.apps["c1"].member.group.applied_index() == applied
    node = (await client.coordinator.GetNode(pb.GetNodeRequest(node_id="node-1"))).node
    assert node.detail.placeable
    assert node.last_heartbeat_ms >= (await client.map()).nodes["node-1"].last_heartbeat_ms
    assert not (await client.coordinator.GetNode(pb.GetNodeRequest(node_id="node-9"))).HasField("node")
    listed = await client.coordinator.ListNodes(pb.ListNodesRequest())
    assert [item.node_id for item in listed.nodes] == ["node-1"]


async def test_changes_and_internal_services_need_the_token(one: Coordinators) -> None:
    client = one.client("c1")
    request = pb.RegisterNodeRequest(node_id="node-1", address="h:1")
    for metadata in ((), (("x-kvdb-internal-token", "wrong"),)):
        for call in (
            client.coordinator.RegisterNode(request, metadata=metadata),
            client.cluster.NodeHello(cluster_pb2.NodeHelloRequest(), metadata=metadata),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert (await client.map()).map_version == 0


async def test_kvdbs_raft_port_gets_clear_answers(one: Coordinators) -> None:
    await one.leader()
    client = one.client("c1")
    stub = raft_pb2_grpc.RaftServiceStub(client.grpc)
    added = await stub.AddServer(raft_pb2.AddServerRequest(server_id="x", address="h:1"), metadata=client.metadata)
    assert (added.status, added.leader_hint) == (raft_pb2.AddServerResponse.NOT_LEADER, one.peers[0][1])
    removed = await stub.RemoveServer(raft_pb2.RemoveServerRequest(server_id="x"), metadata=client.metadata)
    assert removed.status == raft_pb2.RemoveServerResponse.NOT_LEADER
    snapshot = await stub.InstallSnapshot(raft_pb2.InstallSnapshotRequest(term=99), metadata=client.metadata)
    assert not snapshot.success and snapshot.follower_id == "c1"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.RequestVote(raft_pb2.RequestVoteRequest(term=99), metadata=client.metadata)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "flotta.raft.v1" in (caught.value.details() or "")


async def test_the_failure_detector_writes_its_verdicts_into_the_map(tmp_path: Path) -> None:
    cluster = Coordinators(tmp_path, 1, suspect_after_ms=1_000, dead_after_ms=1_500, liveness_check_ms=50)
    await cluster.start()
    await cluster.leader()
    try:
        client = cluster.client("c1")
        watch = client.watch(records=True)
        assert not (await anext(watch)).full_state.nodes, "whoever looks later may miss the first of it"
        await join_nodes(client, 1)
        seen: list[int] = []
        while not seen or seen[-1] != pb.DEAD:
            delta = await anext(watch)
            records = [*delta.nodes, *delta.full_state.nodes.values()]
            seen += [record.status for record in records if not seen or record.status != seen[-1]]
        assert seen == [pb.ALIVE, pb.SUSPECT, pb.DEAD]
        assert (await client.heartbeat("node-1", "store-1")).accepted
        assert (await client.map()).nodes["node-1"].status == pb.ALIVE
    finally:
        await cluster.close()


async def test_a_taken_port_and_a_foreign_directory_stop_the_start_with_a_sentence(one: Coordinators) -> None:
    with pytest.raises(StartupError, match="in use by another process"):
        await launch(one.settings("c1"))
    with pytest.raises(StartupError, match="cannot listen on"):
        await launch(one.settings("c1", data_dir=one.root / "other"))
    await one.stop()
    port = free_ports(1)[0]
    renamed = (("c9", f"127.0.0.1:{port}"),)
    with pytest.raises(StartupError, match="belongs to node c1, not to node c9"):
        await launch(one.settings("c1", node_id="c9", peers=renamed, listen=renamed[0][1]))
    grown = (*one.peers, ("c2", "127.0.0.1:1"), ("c3", "127.0.0.1:2"))
    with pytest.raises(StartupError, match="belongs to the coordinators c1, but peers says c1, c2, c3"):
        await launch(one.settings("c1", peers=grown))


async def test_readiness_follows_the_group(one: Coordinators) -> None:
    app = one.apps["c1"]
    await eventually(lambda: app.readiness() == (True, "leads"), "never ready")
    assert app.http_port > 0
    text = app.metrics.render().decode()
    assert "flotta_coordinator_is_leader 1.0" in text
