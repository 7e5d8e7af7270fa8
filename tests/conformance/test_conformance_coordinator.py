"""Bad input at the coordinators, at the leader and at a follower: refused with the field's name, and in no log."""

from __future__ import annotations

from typing import Any

import pytest
from conformance_support import (
    CLUSTER,
    COORDINATOR,
    GARBAGE,
    NOT_UTF8,
    Door,
    Doors,
    changes_nothing,
    length_delimited,
    names,
    refused,
)
from flotta_proto.flotta import cluster_pb2 as cluster
from flotta_proto.kvdb import coordinator_pb2 as pb

LONG = "x" * 129
BAD_IDS = {
    "": "must not be empty",
    LONG: "128",
    "a b": "letters, digits",
    "-a": "letter or digit",
    "a\n": "letters, digits",
    "é": "letters, digits",
}
BAD_ADDRESSES = {
    "": "host:port",
    "host": "host:port",
    ":8001": "host:port",
    "host:": "port between 1 and 65535",
    "host:0": "port between 1 and 65535",
    "host:65536": "port between 1 and 65535",
    "host:80a": "port between 1 and 65535",
    "host:-1": "port between 1 and 65535",
    "host:٣": "port between 1 and 65535",
    "a b:1": "host name",
    "a..b:1": "host name",
    "999.1.1.1:1": "IPv4",
    "[::::]:1": "IPv6",
    "::1:8001": "bracketed IPv6",
    "h" * 254 + ":1": "253",
}


def wrong_whatever_the_state() -> list[tuple[str, Any, tuple[str, ...]]]:
    """(method, request, words): INVALID_ARGUMENT."""
    register = [
        *(({"node_id": bad, "address": "h:1"}, ("node_id", words)) for bad, words in BAD_IDS.items()),
        *(({"node_id": "new", "address": bad}, ("address", words)) for bad, words in BAD_ADDRESSES.items()),
        ({"node_id": "new", "address": "h:1", "zone": LONG}, ("zone", "128", "129")),
        ({"node_id": "new", "address": "h:1", "zone": "a\x00b"}, ("zone", "printable")),
    ]
    init = [
        *(({"num_shards": bad, "replication_factor": 2}, ("num_shards", "1", "4096", str(bad))) for bad in HUGE),
        *(({"num_shards": 2, "replication_factor": bad}, ("replication_factor", "1", "16", str(bad))) for bad in HUGE),
    ]
    replicas = [
        ({"shard_id": "", "replicas": ["node-1"]}, ("shard_id", "empty")),
        ({"shard_id": "shard-0"}, ("replicas", "at least one")),
        ({"shard_id": "shard-0", "replicas": ["node-1", "node-2", "node-1"]}, ("replicas", "once", "node-1")),
        ({"shard_id": "shard-0", "replicas": [f"n{i}" for i in range(17)]}, ("replicas", "16", "17")),
        ({"shard_id": "shard-0", "replicas": ["node-1", "a b"]}, ("replicas[1]", "letters")),
        ({"shard_id": "shard-0", "replicas": ["node-1", ""]}, ("replicas[1]", "empty")),
    ]
    leader = [
        ({"shard_id": "", "leader_node_id": "node-1"}, ("shard_id", "empty")),
        ({"shard_id": "a b", "leader_node_id": "node-1"}, ("shard_id", "letters")),
        ({"shard_id": "shard-0", "leader_node_id": ""}, ("leader_node_id", "empty")),
        ({"shard_id": "shard-0", "leader_node_id": LONG}, ("leader_node_id", "128")),
    ]
    status = [
        *(({"node_id": "node-1", "status": bad}, ("status", "ALIVE", str(bad))) for bad in (0, 4, 99, -1)),
        ({"node_id": "", "status": 3}, ("node_id", "empty")),
        ({"node_id": LONG, "status": 3}, ("node_id", "128")),
    ]
    hello = [
        *(({"node_id": bad, "address": "h:1", "store_id": "s"}, ("node_id", words)) for bad, words in BAD_IDS.items()),
        *(({"node_id": "n", "address": bad, "store_id": "s"}, ("address", w)) for bad, w in BAD_ADDRESSES.items()),
        ({"node_id": "n", "address": "h:1", "store_id": ""}, ("store_id", "empty")),
        ({"node_id": "n", "address": "h:1", "store_id": LONG}, ("store_id", "128")),
        ({"node_id": "n", "address": "h:1", "store_id": "s", "zone": LONG}, ("zone", "128")),
    ]
    return [
        *((COORDINATOR + "RegisterNode", pb.RegisterNodeRequest(**fields), words) for fields, words in register),
        *((COORDINATOR + "InitShards", pb.InitShardsRequest(**fields), words) for fields, words in init),
        *((COORDINATOR + "SetShardReplicas", pb.SetShardReplicasRequest(**f), words) for f, words in replicas),
        *((COORDINATOR + "SetShardLeader", pb.SetShardLeaderRequest(**f), words) for f, words in leader),
        *((COORDINATOR + "ReportShardLeader", pb.ReportShardLeaderRequest(**f), words) for f, words in leader),
        *((COORDINATOR + "SetNodeStatus", pb.SetNodeStatusRequest(**f), words) for f, words in status),
        *((CLUSTER + "NodeHello", cluster.NodeHelloRequest(**f), words) for f, words in hello),
        (COORDINATOR + "ResolveShard", pb.ResolveShardRequest(), ("key", "empty")),
        (COORDINATOR + "ResolveShard", pb.ResolveShardRequest(key=b"k" * 1025), ("key", "1025", "1024")),
        (COORDINATOR + "GetNode", pb.GetNodeRequest(), ("node_id", "empty")),
        (COORDINATOR + "Heartbeat", pb.HeartbeatRequest(), ("node_id", "empty")),
        (CLUSTER + "NodeHeartbeat", cluster.NodeHeartbeatRequest(store_id="s"), ("node_id", "empty")),
        (CLUSTER + "NodeHeartbeat", cluster.NodeHeartbeatRequest(node_id="node-1"), ("store_id", "empty")),
    ]


HUGE = (0, -1, 4097, 2**31 - 1, -(2**31))


@pytest.fixture(params=["leader", "follower"])
def door(request: pytest.FixtureRequest, doors: Doors) -> Door:
    return doors.leader() if request.param == "leader" else doors.follower()


def test_wrong_arguments_are_refused_and_logged_nowhere(doors: Doors, door: Door) -> None:
    def all_of_them() -> None:
        for method, request, words in wrong_whatever_the_state():
            refused(door.raw(method, request.SerializeToString()), "INVALID_ARGUMENT", *words)

    changes_nothing(doors, all_of_them)


def refused_by_the_state(doors: Doors) -> list[tuple[str, Any, Any, str, str, tuple[str, ...]]]:
    """(method, request, reply class, code, field, words): OK with success=false."""
    shard = doors.state().shards["shard-0"]
    outsider = next(f"node-{n}" for n in (1, 2, 3) if f"node-{n}" not in shard.replicas)

    def init(num_shards: int, factor: int) -> Any:
        return pb.InitShardsRequest(num_shards=num_shards, replication_factor=factor)

    def leader(shard_id: str, node_id: str, epoch: int) -> Any:
        return pb.SetShardLeaderRequest(shard_id=shard_id, leader_node_id=node_id, epoch=epoch)

    def replicas(shard_id: str, *nodes: str) -> Any:
        return pb.SetShardReplicasRequest(shard_id=shard_id, replicas=nodes)

    unmet, missing, taken = "FAILED_PRECONDITION", "NOT_FOUND", "ALREADY_EXISTS"
    return [
        ("InitShards", init(8, 2), pb.InitShardsResponse, taken, "num_shards", ("num_shards 2", "8")),
        ("InitShards", init(2, 3), pb.InitShardsResponse, taken, "replication_factor", ("replication_factor 2", "3")),
        ("InitShards", init(1, 1), pb.InitShardsResponse, taken, "num_shards", ("num_shards 2", "1")),
        *(
            (method, request, reply, missing, "shard_id", ("shard_id", "'shard-2'"))
            for method, request, reply in (
                ("SetShardLeader", leader("shard-2", "node-1", 1), pb.SetShardLeaderResponse),
                ("SetShardReplicas", replicas("shard-2", "node-1"), pb.SetShardReplicasResponse),
            )
        ),
        *(
            (method, request, reply, missing, field, (field, "'node-9'"))
            for method, request, reply, field in (
                (
                    "SetShardLeader",
                    leader("shard-0", "node-9", shard.epoch),
                    pb.SetShardLeaderResponse,
                    "leader_node_id",
                ),
                ("SetShardReplicas", replicas("shard-0", "node-9"), pb.SetShardReplicasResponse, "replicas"),
                (
                    "SetShardReplicas",
                    replicas("shard-0", *shard.replicas, "node-9"),
                    pb.SetShardReplicasResponse,
                    "replicas",
                ),
                (
                    "SetNodeStatus",
                    pb.SetNodeStatusRequest(node_id="node-9", status=pb.DEAD),
                    pb.SetNodeStatusResponse,
                    "node_id",
                ),
            )
        ),
        (
            *("SetShardLeader", leader("shard-0", outsider, shard.epoch), pb.SetShardLeaderResponse),
            *(unmet, "leader_node_id", (outsider, "not a replica of shard-0", *shard.replicas)),
        ),
        *(
            (
                *("SetShardLeader", leader("shard-0", shard.replicas[0], epoch), pb.SetShardLeaderResponse),
                *(unmet, "epoch", ("epoch", str(shard.epoch), str(epoch))),
            )
            for epoch in (0, shard.epoch + 1, 2**64 - 1)
        ),
    ]


def test_what_the_state_refuses_is_explained_and_logged_nowhere(doors: Doors, door: Door) -> None:
    def all_of_them() -> None:
        for method, request, reply_class, code, field, words in refused_by_the_state(doors):
            reply = door.ask(COORDINATOR + method, request, reply_class)
            assert not reply.success, (method, request, reply)
            assert (reply.rejection.code, reply.rejection.field) == (code, field), reply
            names(reply.message, *words)
            assert reply.map_version == doors.state().map_version

    changes_nothing(doors, all_of_them)


def test_a_report_that_is_no_news_is_refused_with_a_reason(doors: Doors, door: Door) -> None:
    def all_of_them() -> None:
        shard = doors.state().shards["shard-0"]
        outsider = next(f"node-{n}" for n in (1, 2, 3) if f"node-{n}" not in shard.replicas)
        for fields, field in (
            ({"shard_id": "shard-2", "epoch": 1, "leader_node_id": "node-1", "term": 99}, "shard_id"),
            ({"shard_id": "shard-0", "epoch": 1, "leader_node_id": outsider, "term": 99}, "leader_node_id"),
            ({"shard_id": "shard-0", "epoch": 7, "leader_node_id": shard.replicas[0], "term": 99}, "epoch"),
            ({"shard_id": "shard-0", "epoch": 1, "leader_node_id": shard.replicas[0]}, "epoch"),
        ):
            request: Any = pb.ReportShardLeaderRequest(**fields)  # type: ignore[arg-type]
            reply = door.ask(COORDINATOR + "ReportShardLeader", request, pb.ReportShardLeaderResponse)
            assert not reply.accepted, fields
            assert reply.rejection.field == field, reply
            names(reply.message, field)

    changes_nothing(doors, all_of_them)


def test_repeats_succeed_and_are_logged_nowhere(doors: Doors, door: Door) -> None:
    """A shard that an operator wants where it is stays there by hand from then on: that much is said once."""

    def all_of_them() -> None:
        request = pb.InitShardsRequest(num_shards=2, replication_factor=2)
        again = door.ask(COORDINATOR + "InitShards", request, pb.InitShardsResponse)
        assert again.success and list(again.shard_ids) == ["shard-0", "shard-1"], again
        state = doors.state()
        for node in state.nodes.values():
            same = pb.RegisterNodeRequest(node_id=node.node_id, address=node.address, zone=node.zone)
            assert door.ask(COORDINATOR + "RegisterNode", same, pb.RegisterNodeResponse).success
        for shard in state.shards.values():
            stay = pb.SetShardReplicasRequest(shard_id=shard.shard_id, replicas=[shard.leader, *_others(shard)])
            kept = door.ask(COORDINATOR + "SetShardReplicas", stay, pb.SetShardReplicasResponse)
            assert kept.success and kept.new_epoch == shard.epoch, kept

    all_of_them()
    changes_nothing(doors, all_of_them)


def _others(shard: pb.ShardRecord) -> list[str]:
    return [node_id for node_id in shard.replicas if node_id != shard.leader]


def test_strangers_among_storage_nodes_are_not_taken(doors: Doors, door: Door) -> None:
    def all_of_them() -> None:
        state = doors.state()
        node = state.nodes["node-1"]
        store = node.detail.store_id
        where = {"node_id": "node-1", "address": node.address}
        for fields, words in (
            ({**where, "store_id": "another"}, ("node-1", "another data directory", store)),
            ({**where, "store_id": store, "cluster_id": "foreign"}, ("cluster foreign", state.cluster_id)),
            ({"node_id": "node-9", "address": "h:1", "store_id": store}, ("node-9", "belongs to node-1")),
            (
                {"node_id": "node-9", "address": "h:1", "store_id": "new", "cluster_id": state.cluster_id},
                ("never welcomed",),
            ),
        ):
            hello = door.ask(CLUSTER + "NodeHello", cluster.NodeHelloRequest(**fields), cluster.NodeHelloResponse)
            assert not hello.accepted, fields
            names(hello.message, *words)
        for fields, words in (
            ({"node_id": "node-9", "store_id": "s"}, ("node-9", "hello")),
            ({"node_id": "node-1", "store_id": "another"}, ("node-1", store, "another")),
        ):
            reports = [cluster.ShardReport(shard_id="shard-0", group_id=2**64 - 1, epoch=99, term=99, voters=[1])]
            request = cluster.NodeHeartbeatRequest(reports=reports, **fields)
            beat = door.ask(CLUSTER + "NodeHeartbeat", request, cluster.NodeHeartbeatResponse)
            assert not beat.accepted, fields
            names(beat.message, *words)

    changes_nothing(doors, all_of_them)


def test_reports_that_cannot_be_true_are_passed_over(doors: Doors, door: Door) -> None:
    """A known node says impossible things of shards: it counts as alive, and the map stays."""

    def all_of_them() -> None:
        state = doors.state()
        node, shard = state.nodes["node-1"], state.shards["shard-0"]
        mine = next((r.replica_id for r in shard.detail.members if r.node_id == "node-1"), node.detail.node_num << 32)
        honest = {"shard_id": "shard-0", "group_id": shard.detail.group_id, "epoch": 2**64 - 1, "term": 2**64 - 1}
        reports = [
            cluster.ShardReport(shard_id="shard-2", group_id=1, epoch=1, term=9),
            cluster.ShardReport(**{**honest, "group_id": 999}, leader_replica=mine, voters=[mine]),
            cluster.ShardReport(**honest, leader_replica=mine, voters=[]),
            cluster.ShardReport(**honest, leader_replica=77 << 32 | 1, voters=[77 << 32 | 1]),
            cluster.ShardReport(**honest, leader_replica=mine, voters=[mine, 77 << 32 | 1], conf_index=2**64 - 1),
            cluster.ShardReport(**honest, leader_replica=0, voters=[0]),
        ]
        request = cluster.NodeHeartbeatRequest(node_id="node-1", store_id=node.detail.store_id, reports=reports)
        assert door.ask(CLUSTER + "NodeHeartbeat", request, cluster.NodeHeartbeatResponse).accepted

    changes_nothing(doors, all_of_them)


def test_bytes_that_are_no_message_are_refused(doors: Doors, door: Door) -> None:
    def all_of_them() -> None:
        for method, field in (
            ("RegisterNode", "node_id"),
            ("SetShardReplicas", "shard_id"),
            ("SetShardLeader", "shard_id"),
            ("SetNodeStatus", "node_id"),
            ("ReportShardLeader", "shard_id"),
            ("GetNode", "node_id"),
            ("Heartbeat", "node_id"),
        ):
            message = f"kvdb.coordinator.{method}Request"
            answer = door.raw(COORDINATOR + method, length_delimited(1, NOT_UTF8))
            refused(answer, "INVALID_ARGUMENT", field, "not UTF-8", message)
        for method in pb.DESCRIPTOR.services_by_name["Coordinator"].methods:
            if method.input_type.fields and not method.server_streaming:
                refused(door.raw(COORDINATOR + method.name, GARBAGE), "INVALID_ARGUMENT", method.input_type.full_name)
        for method in cluster.DESCRIPTOR.services_by_name["Cluster"].methods:
            refused(door.raw(CLUSTER + method.name, GARBAGE), "INVALID_ARGUMENT", method.input_type.full_name)
        watched, _ = door.stream(COORDINATOR + "WatchShardMap", [GARBAGE])
        refused(watched, "INVALID_ARGUMENT", "WatchShardMapRequest")

    changes_nothing(doors, all_of_them)


def test_unknown_fields_and_absurd_numbers_of_reads_do_no_harm(doors: Doors, door: Door) -> None:
    def all_of_them() -> None:
        newest = pb.GetShardMapRequest(if_version_gt=2**64 - 1)
        assert door.ask(COORDINATOR + "GetShardMap", newest, pb.GetShardMapResponse).not_modified
        unknown = door.ask(COORDINATOR + "GetNode", pb.GetNodeRequest(node_id="node-9"), pb.GetNodeResponse)
        assert not unknown.HasField("node")
        stranger = pb.HeartbeatRequest(node_id="node-9", now_ms=-1)
        assert not door.ask(COORDINATOR + "Heartbeat", stranger, pb.HeartbeatResponse).accepted
        extra = pb.ListNodesRequest().SerializeToString() + length_delimited(15, b"unknown field")
        assert door.raw(COORDINATOR + "ListNodes", extra).code.name == "OK"
        all_of = cluster.ListDecisionsRequest(after_number=2**64 - 1, limit=2**32 - 1, subject="x" * 5000)
        assert not door.ask(CLUSTER + "ListDecisions", all_of, cluster.ListDecisionsResponse).decisions

    changes_nothing(doors, all_of_them)


def test_a_watch_from_the_future_gets_the_whole_map(doors: Doors) -> None:
    def watch() -> None:
        body = pb.WatchShardMapRequest(from_version=2**64 - 1).SerializeToString()
        answer, _ = doors.leader().stream(COORDINATOR + "WatchShardMap", [body])
        delta = pb.ShardMapDelta.FromString(answer.body)
        assert set(delta.full_state.shards) == {"shard-0", "shard-1"}, answer
        turned_away, _ = doors.follower().stream(COORDINATOR + "WatchShardMap", [body])
        refused(turned_away, "FAILED_PRECONDITION", "Leader hint: 127.0.0.1:")
        assert turned_away.trailers["x-leader-hint"] == doors.leader().address

    changes_nothing(doors, watch)


def test_foreign_raft_is_turned_away(doors: Doors, door: Door) -> None:
    def all_of_them() -> None:
        for method in ("RequestVote", "AppendEntries"):
            answer = door.raw("/kvdb.raft.RaftService/" + method, b"")
            refused(answer, "FAILED_PRECONDITION", "flotta.raft.v1")
        refused(door.raw("/kvdb.raft.RaftService/AddServer", GARBAGE), "INVALID_ARGUMENT", "AddServerRequest")

    changes_nothing(doors, all_of_them)


def test_the_proof_notices_what_was_changed(doors: Doors) -> None:
    """`changes_nothing` fails on a change of the map, a logged command and a write."""
    from flotta_proto.kvdb import gateway_pb2 as gateway

    node = doors.state().nodes["node-1"]

    def zone(name: str) -> None:
        request = pb.RegisterNodeRequest(node_id=node.node_id, address=node.address, zone=name)
        assert doors.follower().ask(COORDINATOR + "RegisterNode", request, pb.RegisterNodeResponse).success

    def write() -> None:
        put = gateway.PutRequest(key=b"noticed", value=b"x")
        assert doors.gateway.raw("/kvdb.gateway.KvGateway/Put", put.SerializeToString()).code.name == "OK"

    with pytest.raises(AssertionError):
        changes_nothing(doors, lambda: zone("elsewhere"))
    with pytest.raises(AssertionError):
        changes_nothing(doors, lambda: zone(node.zone))
    with pytest.raises(AssertionError, match="shard's log"):
        changes_nothing(doors, write)
