"""The admin API's answers, field by field, and its refusals, which change nothing."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from admin_support import Cluster, add_nodes, storage_node
from flotta_proto.kvdb import coordinator_pb2 as pb

NODE_1 = {
    "node_id": "node-1",
    "address": "localhost:8001",
    "zone": "z",
    "rack": "",
    "status": "ALIVE",
    "last_heartbeat_ms": 77,
    "capacity_hints": {},
}
SHARD_0 = {
    "shard_id": "shard-0",
    "epoch": 1,
    "replicas": ["node-1", "node-2"],
    "leader": "node-1",
    "config_state": "STABLE",
    "key_range": {"start_key": "AAAAAA==", "end_key": "AAAAAQ=="},
}


async def bootstrap(web: httpx.AsyncClient, shards: int = 11) -> None:
    await add_nodes(web)
    answer = await web.post("/admin/config/shard-init", json={"num_shards": shards, "replication_factor": 2})
    assert answer.json() == {"success": True, "num_shards": shards, "replication_factor": 2}


async def test_an_empty_cluster_reads_as_empty(web: httpx.AsyncClient, cluster: Cluster) -> None:
    assert (await web.get("/admin/nodes")).json() == []
    assert (await web.get("/admin/shards")).json() == []
    assert (await web.get("/admin/config")).json() == {"map_version": 0, "num_shards": 0, "replication_factor": 0}
    assert (await web.get("/admin/cluster/shard-map/version")).json() == {"map_version": 0}
    assert (await web.get("/admin/cluster/summary")).json() == {
        "map_version": 0,
        "total_nodes": 0,
        "alive_nodes": 0,
        "suspect_nodes": 0,
        "dead_nodes": 0,
        "total_shards": 0,
        "stable_shards": 0,
        "moving_shards": 0,
        "replication_factor": 0,
        "partitioning_config": {"num_shards": "0", "replication_factor": "0"},
        "nodes": [],
        "shards": [],
    }


async def test_nodes_are_seen_before_the_map_has_a_version(web: httpx.AsyncClient, cluster: Cluster) -> None:
    """KvDB's coordinator registers nodes without raising the version, and has no map to give at version 0."""
    cluster.state.nodes["node-1"].CopyFrom(pb.NodeRecord(node_id="node-1", address="h:1", status=pb.ALIVE))
    assert [node["node_id"] for node in (await web.get("/admin/nodes")).json()] == ["node-1"]


async def test_every_read_after_bootstrap(web: httpx.AsyncClient) -> None:
    await bootstrap(web)
    assert (await web.get("/admin/nodes/node-1")).json() == NODE_1
    nodes = (await web.get("/admin/nodes")).json()
    assert [node["node_id"] for node in nodes] == ["node-1", "node-2", "node-3"]
    assert nodes[0] == NODE_1
    assert (await web.get("/admin/shards/shard-0")).json() == SHARD_0
    shards = (await web.get("/admin/shards")).json()
    assert [shard["shard_id"] for shard in shards] == [f"shard-{i}" for i in range(11)]
    summary = (await web.get("/admin/cluster/summary")).json()
    assert summary.pop("nodes") == nodes
    assert summary.pop("shards") == shards
    assert summary == {
        "map_version": 4,
        "total_nodes": 3,
        "alive_nodes": 3,
        "suspect_nodes": 0,
        "dead_nodes": 0,
        "total_shards": 11,
        "stable_shards": 11,
        "moving_shards": 0,
        "replication_factor": 2,
        "partitioning_config": {"num_shards": "11", "replication_factor": "2"},
    }
    shard_map = (await web.get("/admin/cluster/shard-map")).json()
    assert shard_map["map_version"] == 4
    assert shard_map["nodes"]["node-1"] == NODE_1
    assert shard_map["shards"]["shard-0"] == SHARD_0
    assert shard_map["partitioning"] == {"num_shards": 11, "replication_factor": 2}
    assert (await web.get("/admin/config")).json() == {"map_version": 4, "num_shards": 11, "replication_factor": 2}


async def test_json_is_pretty_and_nulls_are_written(web: httpx.AsyncClient, cluster: Cluster) -> None:
    await bootstrap(web)
    cluster.state.shards["shard-0"].ClearField("key_range")
    text = (await web.get("/admin/shards/shard-0")).text
    assert '\n  "key_range": null\n' in text


async def test_changes_show_at_once(web: httpx.AsyncClient) -> None:
    await bootstrap(web)
    for content_type in ("text/plain", "application/json", "application/x-www-form-urlencoded"):
        answer = await web.post("/admin/nodes/node-3/status", content="DEAD", headers={"Content-Type": content_type})
        assert answer.status_code == 200
        assert answer.json()["status"] == "DEAD"
    answer = await web.post("/admin/nodes/node-2/status", content="SUSPECT\n")
    assert answer.json()["status"] == "SUSPECT"
    summary = (await web.get("/admin/cluster/summary")).json()
    assert (summary["alive_nodes"], summary["suspect_nodes"], summary["dead_nodes"]) == (1, 1, 1)
    moved = (await web.post("/admin/shards/shard-0/replicas", json=["node-2", "node-3"])).json()
    assert (moved["replicas"], moved["epoch"], moved["config_state"]) == (["node-2", "node-3"], 2, "MOVING")
    led = (await web.post("/admin/shards/shard-0/leader", content="node-3")).json()
    assert led["leader"] == "node-3"


async def test_registering_again_moves_a_node_and_what_was_read_can_be_sent_back(web: httpx.AsyncClient) -> None:
    await add_nodes(web, 1)
    node = (await web.get("/admin/nodes/node-1")).json()
    version = (await web.get("/admin/config")).json()["map_version"]
    assert (await web.post("/admin/nodes", json=node)).json() == node
    assert (await web.get("/admin/config")).json()["map_version"] == version
    moved = await web.post("/admin/nodes", json={"node_id": "node-1", "address": "[::1]:9", "zone": None})
    assert (moved.json()["address"], moved.json()["zone"]) == ("[::1]:9", "")


async def test_shard_init_once_again_and_differently(web: httpx.AsyncClient, cluster: Cluster) -> None:
    numbers = {"num_shards": 8, "replication_factor": 2}
    early = await web.post("/admin/config/shard-init", json=numbers)
    assert early.status_code == 409
    assert (early.json()["error"], early.json()["code"]) == ("PRECONDITION_FAILED", "409")
    assert early.json()["message"] == "no node is registered yet"
    await add_nodes(web)
    assert (await web.post("/admin/config/shard-init", json={})).json() == {"success": True, **numbers}
    before = cluster.state.SerializeToString(deterministic=True)
    assert (await web.post("/admin/config/shard-init", json=numbers)).json() == {"success": True, **numbers}
    other = await web.post("/admin/config/shard-init", json={"num_shards": 4, "replication_factor": 2})
    assert other.status_code == 409
    body = other.json()
    assert body.pop("timestamp_ms") > 0
    assert body == {
        "error": "ALREADY_EXISTS",
        "message": "num_shards: the shards are already initialized",
        "code": "409",
        "shard_id": None,
        "leader_hint": None,
        "new_node_hint": None,
    }
    assert cluster.state.SerializeToString(deterministic=True) == before


INIT = "/admin/config/shard-init"
NODES = "/admin/nodes"
JSON = "application/json"
DEEP = b"[" * 100_000
BAD: list[tuple[str, bytes, str, int, str]] = [
    (INIT, b"{", JSON, 400, "body: not valid JSON at character 1"),
    (INIT, b"", JSON, 400, "body: the body is missing"),
    (INIT, b"\xff\xfe", JSON, 400, "body"),
    (INIT, DEEP, JSON, 400, "body"),
    (INIT, b"[]", JSON, 400, "body"),
    (INIT, b'{"num_shard": 8}', JSON, 400, "num_shard: there is no such field"),
    (INIT, b'{"num_shards": "8"}', JSON, 400, "num_shards"),
    (INIT, b'{"num_shards": 8.5}', JSON, 400, "num_shards"),
    (INIT, b'{"num_shards": true}', JSON, 400, "num_shards"),
    (INIT, b'{"num_shards": null}', JSON, 400, "num_shards"),
    (INIT, b'{"num_shards": NaN}', JSON, 400, "num_shards"),
    (INIT, b'{"num_shards": 0}', JSON, 400, "num_shards"),
    (INIT, b'{"num_shards": -1}', JSON, 400, "num_shards"),
    (INIT, b'{"num_shards": 2147483648}', JSON, 400, "2147483647"),
    (INIT, b'{"num_shards": ' + b"9" * 5000 + b"}", JSON, 400, "body"),
    (INIT, b'{"replication_factor": 0}', JSON, 400, "replication_factor"),
    (INIT, b'{"num_shards": 8}', "application/x-www-form-urlencoded", 415, "Content-Type: application/json"),
    (NODES, b"{}", JSON, 400, "node_id: the field is missing"),
    (NODES, b'{"node_id": "n"}', JSON, 400, "address: the field is missing"),
    (NODES, b'{"node_id": "n", "address": "localhost"}', JSON, 400, "address: 'localhost' has no port"),
    (NODES, b'{"node_id": "n", "address": "localhost:"}', JSON, 400, "address"),
    (NODES, b'{"node_id": "n", "address": "localhost:x"}', JSON, 400, "address"),
    (NODES, b'{"node_id": "n", "address": "localhost:0"}', JSON, 400, "1 to 65535"),
    (NODES, b'{"node_id": "n", "address": "localhost:70000"}', JSON, 400, "1 to 65535"),
    (NODES, b'{"node_id": "n", "address": "h:' + b"9" * 5000 + b'"}', JSON, 400, "1 to 65535"),
    (NODES, b'{"node_id": "n", "address": ":80"}', JSON, 400, "address"),
    (NODES, b'{"node_id": "n", "address": ""}', JSON, 400, "address"),
    (NODES, b'{"node_id": "n", "address": 80}', JSON, 400, "address"),
    (NODES, b'{"node_id": "", "address": "h:1"}', JSON, 400, "node_id"),
    (NODES, b'{"node_id": "  ", "address": "h:1"}', JSON, 400, "node_id"),
    (NODES, b'{"node_id": "a/b", "address": "h:1"}', JSON, 400, "node_id"),
    (NODES, b'{"node_id": "\\ud800", "address": "h:1"}', JSON, 400, "node_id"),
    (NODES, b'{"node_id": null, "address": "h:1"}', JSON, 400, "node_id"),
    (NODES, b'{"node_id": 7, "address": "h:1"}', JSON, 400, "node_id"),
    (NODES, b'{"node_id": "n", "address": "h:1", "zone": 3}', JSON, 400, "zone"),
    (NODES, b'{"node_id": "n", "address": "h:1", "zone": "' + b"z" * 200 + b'"}', JSON, 400, "128"),
    (NODES, b'{"node_id": "n", "address": "h:1", "nodeId": "x"}', JSON, 400, "nodeId: there is no such field"),
    (NODES, b'{"node_id": "n", "address": "localhost:8001"}', JSON, 409, "address: taken"),
    (NODES, b" " * (1 << 20) + b"{}", JSON, 413, "1048576 bytes"),
    ("/admin/nodes/node-1/status", b"dead", "text/plain", 400, "status: it must be ALIVE, SUSPECT or DEAD"),
    ("/admin/nodes/node-1/status", b'"DEAD"', JSON, 400, "status"),
    ("/admin/nodes/node-1/status", b"", "text/plain", 400, "status"),
    ("/admin/nodes/node-1/status", b"\xff", "text/plain", 400, "status"),
    ("/admin/nodes/node-1/status", b"x" * 5000, "text/plain", 400, "1024 bytes"),
    ("/admin/nodes/node-9/status", b"DEAD", "text/plain", 404, "node-9"),
    ("/admin/shards/shard-0/replicas", b"[]", JSON, 400, "at least 1"),
    ("/admin/shards/shard-0/replicas", b'{"replicas": []}', JSON, 400, "replicas: "),
    ("/admin/shards/shard-0/replicas", b'["node-1", 2]', JSON, 400, "replicas[1]: "),
    ("/admin/shards/shard-0/replicas", b'["node-9"]', JSON, 404, "replicas"),
    ("/admin/shards/shard-0/leader", b"node-3", "text/plain", 412, "leader_node_id"),
    ("/admin/shards/shard-0/leader", b"", "text/plain", 400, "leader"),
    ("/admin/shards/shard-99/leader", b"node-1", "text/plain", 404, "shard-99"),
]


FIELDS = {"error", "message", "code", "timestamp_ms", "shard_id", "leader_hint", "new_node_hint"}


@pytest.mark.parametrize("path", sorted({case[0] for case in BAD}))
async def test_bad_input_is_a_4xx_that_names_the_field_and_changes_nothing(
    web: httpx.AsyncClient, cluster: Cluster, path: str
) -> None:
    await bootstrap(web)
    before = cluster.state.SerializeToString(deterministic=True)
    writes = list(cluster.writes)
    for _, content, content_type, status, words in (case for case in BAD if case[0] == path):
        case = f"{content[:80]!r} as {content_type}"
        answer = await web.post(path, content=content, headers={"Content-Type": content_type})
        assert answer.status_code == status, f"{case}: {answer.text}"
        body: dict[str, Any] = answer.json()
        assert words in body["message"], f"{case}: {answer.text}"
        assert (body["code"], set(body)) == (str(status), FIELDS), f"{case}: {answer.text}"
        assert len(answer.text) < 1000, case
        assert cluster.state.SerializeToString(deterministic=True) == before, case
        assert cluster.writes == writes, case


@pytest.mark.parametrize("path", ["/admin/nodes/node-9", "/admin/nodes/node-9/health", "/admin/shards/shard-99"])
async def test_unknown_ids_are_404(web: httpx.AsyncClient, path: str) -> None:
    await bootstrap(web)
    answer = await web.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"] == "NOT_FOUND"
    assert path.split("/")[3] in answer.json()["message"]
    assert answer.json()["shard_id"] == ("shard-99" if "shards" in path else None)


async def test_unknown_paths_and_methods(web: httpx.AsyncClient) -> None:
    assert (await web.get("/admin/nope")).status_code == 404
    assert (await web.get("/admin/nodes/")).status_code == 404
    answer = await web.delete("/admin/nodes")
    assert answer.status_code == 405
    assert answer.json()["error"] == "METHOD_NOT_ALLOWED"
    assert "GET" in answer.headers["allow"]


async def test_node_health_pings_the_node(web: httpx.AsyncClient) -> None:
    async with storage_node() as address:
        await web.post("/admin/nodes", json={"node_id": "node-1", "address": address, "zone": ""})
        up = (await web.get("/admin/nodes/node-1/health")).json()
        assert up["timestamp_ms"] > 0
        assert (up["status"], up["message"]) == ("UP", "pong")
    down = await web.get("/admin/nodes/node-1/health")
    assert down.status_code == 200
    assert down.json()["status"] == "DOWN"
    assert address in down.json()["message"]


async def test_decisions(web: httpx.AsyncClient) -> None:
    await bootstrap(web)
    found = (await web.get("/admin/decisions")).json()["decisions"]
    assert [decision["number"] for decision in found] == [1, 2, 3, 4]
    assert found[0] == {
        "number": 1,
        "time_ms": 1001,
        "map_version": 1,
        "kind": "node",
        "subject": "node-1",
        "reason": "asked",
    }
    page = (await web.get("/admin/decisions", params={"after": 1, "limit": 2})).json()["decisions"]
    assert [decision["number"] for decision in page] == [3, 4]
    one = (await web.get("/admin/decisions", params={"subject": "node-2"})).json()["decisions"]
    assert [decision["subject"] for decision in one] == ["node-2"]
    for name, value in (("limit", 0), ("limit", "x"), ("after", -1), ("after", 2**64)):
        answer = await web.get("/admin/decisions", params={name: value})
        assert answer.status_code == 400
        assert answer.json()["message"].startswith(name)
