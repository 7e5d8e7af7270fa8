"""A cluster before shard-init: too early is refused with a reason, at each door, and leaves no trace.

Its own processes: one coordinator, an admin service, a gateway and, later, a node that was announced but never came.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance_support import CLUSTER, COORDINATOR, GATEWAY, Door, Http, names
from flotta_proto.flotta import cluster_pb2
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb import gateway_pb2
from flotta_runtime.settings import Transport
from free_ports import free_base_port

TOKEN, KEY = "empty-cluster-token", "empty-cluster-key"


class Empty:
    """The doors of the cluster."""

    def __init__(self, base: int) -> None:
        self.coordinator = Door(f"127.0.0.1:{base}", TOKEN)
        self.gateway = Door(f"127.0.0.1:{base + 1}", None)
        self.gateway_http = Http(base + 10_001)
        self.admin = Http(base + 2, KEY)

    def trace(self) -> tuple[Any, ...]:
        request = cluster_pb2.CoordinatorStatusRequest()
        told = self.coordinator.ask(CLUSTER + "CoordinatorStatus", request, cluster_pb2.CoordinatorStatusResponse)
        decisions = self.admin.call("GET", "/admin/decisions?limit=1000")[1]["decisions"]
        return (
            told.term,
            told.map_version,
            told.applied_index,
            len(decisions),
            self.admin.call("GET", "/admin/nodes")[1],
        )

    def unchanged_by(self, body: Callable[[], None]) -> None:
        before = self.trace()
        body()
        assert self.trace() == before

    def init(self, num_shards: int, factor: int, timeout: float = 4) -> Any:
        request = pb.InitShardsRequest(num_shards=num_shards, replication_factor=factor)
        return self.coordinator.ask(COORDINATOR + "InitShards", request, pb.InitShardsResponse, timeout=timeout)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, transport: Transport) -> Iterator[Empty]:
    folder = Path(tmp_path_factory.mktemp("empty"))
    base = free_base_port(3)
    env = {"PATH": "/usr/bin:/bin", "KVDB_INTERNAL_GRPC_TOKEN": TOKEN, "KVDB_ADMIN_SECURITY_API_KEY": KEY}
    env["FLOTTA_TRANSPORT"] = transport
    coordinator = f"127.0.0.1:{base}"
    commands = {
        "coordinator": ("--peers", f"coordinator-1={coordinator}", "--listen", coordinator, "--data-dir", folder / "c"),
        "gateway": ("--listen", f"127.0.0.1:{base + 1}", "--coordinators", coordinator),
        "admin": ("--listen", f"127.0.0.1:{base + 2}", "--coordinators", coordinator),
    }
    running = []
    try:
        for service, arguments in commands.items():
            with (folder / f"{service}.log").open("wb") as log:
                command = [sys.executable, "-m", f"flotta_{service}", *map(str, arguments)]
                running.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
        found = Empty(base)
        _until_ready(found)
        yield found
        found.coordinator.close()
        found.gateway.close()
    finally:
        for process in running:
            process.terminate()
        assert [process.wait(30) for process in running] == [0, 0, 0]


def _until_ready(found: Empty) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            # Before it has heard a coordinator, a gateway keeps requests waiting.
            heard = found.gateway_http.call("GET", "/readyz")[1]["reason"]
            if found.admin.call("GET", "/readyz")[0] == 200 and "no shards" in heard:
                return
        except OSError:
            assert time.monotonic() < deadline, "somebody does not answer"
        assert time.monotonic() < deadline, "the coordinator does not lead"
        time.sleep(0.1)


def test_shard_init_before_any_node(empty: Empty) -> None:
    def both_doors() -> None:
        reply = empty.init(8, 2)
        assert not reply.success and reply.rejection.code == "FAILED_PRECONDITION", reply
        assert reply.rejection.field == "num_shards"
        names(reply.message, "no node is registered", "register the storage nodes first")
        status, told = empty.admin.json("POST", "/admin/config/shard-init", {"num_shards": 8, "replication_factor": 2})
        assert (status, told["error"]) == (409, "PRECONDITION_FAILED"), told
        names(told["message"], "no node is registered")
        for numbers, field in (({"num_shards": 0}, "num_shards"), ({"replication_factor": 99}, "replication_factor")):
            status, told = empty.admin.json("POST", "/admin/config/shard-init", numbers)
            assert status == 400, told
            names(told["message"], field)

    empty.unchanged_by(both_doors)


def test_shards_that_do_not_exist_yet(empty: Empty) -> None:
    def all_of_them() -> None:
        replicas = pb.SetShardReplicasRequest(shard_id="shard-0", replicas=["node-1"])
        moved = empty.coordinator.ask(COORDINATOR + "SetShardReplicas", replicas, pb.SetShardReplicasResponse)
        assert (moved.success, moved.rejection.code, moved.rejection.field) == (False, "NOT_FOUND", "shard_id"), moved
        leader = pb.SetShardLeaderRequest(shard_id="shard-0", leader_node_id="node-1", epoch=1)
        led = empty.coordinator.ask(COORDINATOR + "SetShardLeader", leader, pb.SetShardLeaderResponse)
        assert (led.success, led.rejection.code, led.rejection.field) == (False, "NOT_FOUND", "shard_id"), led
        status = pb.SetNodeStatusRequest(node_id="node-1", status=pb.DEAD)
        set_to = empty.coordinator.ask(COORDINATOR + "SetNodeStatus", status, pb.SetNodeStatusResponse)
        assert (set_to.success, set_to.rejection.field) == (False, "node_id"), set_to
        resolved = empty.coordinator.ask(
            COORDINATOR + "ResolveShard", pb.ResolveShardRequest(key=b"k"), pb.ResolveShardResponse
        )
        assert not resolved.shard_id
        for path, body in (
            ("/admin/shards/shard-0/replicas", b'["node-1"]'),
            ("/admin/shards/shard-0/leader", b"node-1"),
        ):
            assert empty.admin.call("POST", path, body)[0] == 404, path
        assert empty.admin.call("GET", "/admin/shards")[:2] == (200, [])
        assert empty.admin.call("GET", "/admin/cluster/summary")[1]["total_shards"] == 0

    empty.unchanged_by(all_of_them)


def test_a_gateway_without_shards_says_so(empty: Empty) -> None:
    def put() -> None:
        answer = empty.gateway.raw(GATEWAY + "Put", gateway_pb2.PutRequest(key=b"k", value=b"v").SerializeToString())
        status = gateway_pb2.PutResponse.FromString(answer.body).status
        assert status.code == gateway_pb2.Status.UNAVAILABLE, status
        names(status.message, "shard")
        told = empty.gateway_http.call("GET", "/readyz")
        assert told[0] == 503 and told[1]["reason"], told

    empty.unchanged_by(put)


def test_shard_init_on_a_node_that_never_came(empty: Empty) -> None:
    """It is registered, and has never sent a heartbeat: named in the refusal, which is not logged."""
    status, told = empty.admin.json("POST", "/admin/nodes", {"node_id": "ghost", "address": "127.0.0.1:1", "zone": "z"})
    assert (status, told["node_id"]) == (200, "ghost"), told

    def refused_for_now() -> None:
        reply = empty.init(8, 2, timeout=2)  # half of that is waited
        assert not reply.success and reply.rejection.code == "FAILED_PRECONDITION", reply
        names(reply.message, "ghost", "heartbeat")

    for _ in range(5):  # its silence is noticed meanwhile: SUSPECT, then DEAD, once each
        before = empty.trace()
        refused_for_now()
        after = empty.trace()
        if after == before:
            break
    assert after == before
    assert empty.admin.call("GET", "/admin/config")[1]["num_shards"] == 0
