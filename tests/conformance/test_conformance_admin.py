"""Bad input over the admin API's HTTP: a 4xx whose message names the field, never a 500, and nothing changed."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

import pytest
from conformance_support import MIB, Doors, changes_nothing, names

NODES, INIT = "/admin/nodes", "/admin/config/shard-init"
REPLICAS, LEADER = "/admin/shards/shard-0/replicas", "/admin/shards/shard-0/leader"
STATUS = "/admin/nodes/node-1/status"
INVALID, MISSING, UNMET = (400, "INVALID_ARGUMENT"), (404, "NOT_FOUND"), (412, "PRECONDITION_FAILED")
LONG = "x" * 129


def node(**fields: Any) -> bytes:
    return json.dumps({"node_id": "new", "address": "h:1", **fields}).encode()


def sizes(**fields: Any) -> bytes:
    return json.dumps({"num_shards": 2, "replication_factor": 2, **fields}).encode()


# (path, body, (status, error), words)
NOT_JSON = [
    *((path, body, INVALID, ("body",)) for path in (NODES, INIT, REPLICAS) for body in (
        b"{", b"not json", b"\xff\xfe", b'{"node_id": "a\xff"}', b"[" * 50_000, b'{"a":' * 50_000, b"\x00",
        b'{"a": 1,}',
    )),
    *((path, b"", INVALID, ("missing",)) for path in (NODES, INIT, REPLICAS)),
    *((path, b" " * (MIB + 1), (413, "PAYLOAD_TOO_LARGE"), ("body", str(MIB))) for path in (NODES, INIT, REPLICAS)),
    *((path, b"x" * (2 * MIB), (413, "PAYLOAD_TOO_LARGE"), ("body", str(MIB))) for path in (LEADER, STATUS)),
    *((path, body, INVALID, ("body",)) for path in (NODES, INIT) for body in (b"[]", b"null", b"1", b'"x"', b"true")),
    *((REPLICAS, body, INVALID, ("replicas",)) for body in (b"{}", b"null", b"1", b'"node-1"', b"true")),
]  # fmt: skip
BAD_NODES = [
    (NODES, b"{}", INVALID, ("node_id", "missing")),
    (NODES, b'{"node_id": "new"}', INVALID, ("address", "missing")),
    (NODES, node(port=1), INVALID, ("port", "no such field")),
    *((NODES, node(node_id=bad), INVALID, ("node_id",)) for bad in (1, None, True, [], {}, "", LONG, "a b", "-a", "é")),
    *((NODES, node(address=bad), INVALID, ("address",)) for bad in (1, None, [], "", "é:1", "h\ud800:1", "a b:1")),
    *((NODES, node(address=bad), INVALID, ("address", "no port")) for bad in ("host", "::1")),
    *((NODES, node(address=bad), INVALID, ("address", "port", "65535"))
      for bad in ("h:", "h:0", "h:65536", "h:x", "h:-1")),
    *((NODES, node(address=bad), INVALID, ("address", "host")) for bad in (":1", "a..b:1", "[::::]:1", "9.9.9.999:1")),
    (NODES, node(address="h" * 254 + ":1"), INVALID, ("address", "253")),
    *((NODES, node(zone=bad), INVALID, ("zone",)) for bad in (7, [], "z\x00", "\ud800")),
    (NODES, node(zone=LONG), INVALID, ("zone", "128")),
    (NODES, b'{"node_id": "new", "address": "h:1", "\\ud800": 1}', INVALID, ()),
    *((STATUS, bad, INVALID, ("status",))
      for bad in (b"", b" ", b"alive", b"NOPE", b'"DEAD"', b"\xff", b"NODE_STATUS_UNSPECIFIED", b"4")),
    (STATUS, b"D" * 1025, INVALID, ("status", "1024")),
    ("/admin/nodes/node-9/status", b"DEAD", MISSING, ("node_id", "'node-9'")),
    *((f"/admin/nodes/{bad}/status", b"DEAD", INVALID, ("node_id",))
      for bad in ("a%20b", "%ff", "%ed%a0%80", "%00", LONG)),
]  # fmt: skip
BAD_SHARDS = [
    *((INIT, sizes(num_shards=bad), INVALID, ("num_shards", "1")) for bad in (0, -1, -(2**31))),
    *((INIT, sizes(replication_factor=bad), INVALID, ("replication_factor", "1")) for bad in (0, -1)),
    *((INIT, sizes(num_shards=bad), INVALID, ("num_shards", str(bad))) for bad in (4097, 2**31 - 1, 2**31, 10**30)),
    *((INIT, sizes(replication_factor=bad), INVALID, ("replication_factor", str(bad))) for bad in (17, 2**31, 2**64)),
    *((INIT, sizes(num_shards=bad), INVALID, ("num_shards",))
      for bad in ("2", 2.5, True, None, [], {}, float("nan"), float("inf"))),
    *((INIT, sizes(replication_factor=bad), INVALID, ("replication_factor",)) for bad in ("2", False, None, [2])),
    (INIT, b'{"num_shards": ' + b"9" * 5_000 + b"}", INVALID, ()),
    (INIT, sizes(rf=2), INVALID, ("rf", "no such field")),
    (INIT, sizes(num_shards=8), (409, "ALREADY_EXISTS"), ("num_shards", "2", "8")),
    (INIT, sizes(replication_factor=3), (409, "ALREADY_EXISTS"), ("replication_factor", "2", "3")),
    (INIT, b"{}", (409, "ALREADY_EXISTS"), ("num_shards", "8")),
    (REPLICAS, b"[]", INVALID, ("replicas", "at least 1")),
    (REPLICAS, b'["node-1", "node-1"]', INVALID, ("replicas", "once", "node-1")),
    *((REPLICAS, body, INVALID, ("replicas[1]",)) for body in (
        b'["node-1", 2]', b'["node-1", null]', b'["node-1", ""]', b'["node-1", "a b"]', b'["node-1", "\\ud800"]',
    )),
    (REPLICAS, json.dumps([f"n{i}" for i in range(17)]).encode(), INVALID, ("replicas", "16")),
    (REPLICAS, json.dumps([f"n{i}" for i in range(9_000)]).encode(), INVALID, ("replicas",)),
    (REPLICAS, b'["node-9"]', MISSING, ("replicas", "'node-9'")),
    (REPLICAS, b'["node-1", "node-2", "node-9"]', MISSING, ("replicas", "'node-9'")),
    ("/admin/shards/shard-2/replicas", b'["node-1"]', MISSING, ("shard_id", "'shard-2'")),
    *((f"/admin/shards/{bad}/replicas", b'["node-1"]', INVALID, ("shard_id",)) for bad in ("a%20b", "%ff", LONG)),
    *((LEADER, bad, INVALID, ("leader",)) for bad in (b"", b"\n", b"\xff", b"a b", LONG.encode(), b"n" * 1025)),
    (LEADER, b"node-9", MISSING, ("leader_node_id", "'node-9'")),
    ("/admin/shards/shard-2/leader", b"node-1", MISSING, ("Shard", "shard-2")),
]  # fmt: skip
BAD_READS = [
    *((path, None, MISSING, ("nothing at", path))
      for path in ("/nope", "/admin", "/admin/nodes/", "//admin/nodes", "/admin/ops/")),
    *((f"/admin/{kind}s/{bad}", None, MISSING, (kind.capitalize(), "not found"))
      for kind in ("node", "shard") for bad in ("nope", "%ff", "%2e%2e", "a%20b", LONG)),
    ("/admin/nodes/nope/health", None, MISSING, ("nope",)),
    *((f"/admin/decisions?limit={bad}", None, INVALID, ("limit",)) for bad in ("0", "1001", "-1", "x", "", "1.5")),
    *((f"/admin/decisions?after={bad}", None, INVALID, ("after",)) for bad in ("-1", "x", "9" * 20)),
    (f"/admin/decisions?subject={LONG}", None, INVALID, ("subject", "128")),
    ("/admin/actuator/metrics/nope", None, MISSING, ("nope",)),
    *((f"/admin/shards/{bad}/explain", None, MISSING, ("Shard", "not found")) for bad in ("nope", "%ff", LONG)),
    *((f"/admin/ops/{bad}", None, INVALID, ("number",)) for bad in ("0", "-1", "x", "1.5", "9" * 20)),
    ("/admin/ops/99", None, MISSING, ("99",)),
]  # fmt: skip
FACTOR, MOVE = "/admin/cluster/replication-factor", "/admin/shards/shard-0/move"
BAD_ORDERS = [
    *((f"/admin/nodes/node-9/{order}", None, MISSING, ("node_id", "'node-9'")) for order in ("drain", "decommission")),
    *((f"/admin/nodes/{bad}/drain", None, INVALID, ("node_id",)) for bad in ("a%20b", "%ff", LONG)),
    *((FACTOR, json.dumps({"replication_factor": bad}).encode(), INVALID, ("replication_factor",))
      for bad in (0, -1, 17, 2**31, 2**64, "2", None, True, 1.5, [])),
    (FACTOR, b"{}", INVALID, ("replication_factor", "missing")),
    (FACTOR, b'{"replication_factor": 2, "rf": 2}', INVALID, ("rf", "no such field")),
    (MOVE, b"{}", INVALID, ("missing",)),
    (MOVE, b'{"from_node_id": "node-1", "to_node_id": "node-9"}', MISSING, ("to_node_id", "'node-9'")),
    (MOVE, b'{"from_node_id": "node-9", "to_node_id": "node-1"}', MISSING, ("from_node_id", "'node-9'")),
    (MOVE, b'{"from_node_id": "", "to_node_id": "node-1"}', INVALID, ("from_node_id",)),
    *(("/admin/ops/trigger", json.dumps({"operation": bad}).encode(), INVALID, ("operation",))
      for bad in ("", "NOPE", None, 1)),
    *((path, b'{"target_shards": ["shard-0"]}', INVALID, ("target_shards", "whole cluster"))
      for path in ("/admin/ops/rebalance", "/admin/shards/rebalance")),
    ("/admin/ops/rebalance", b'{"target_nodes": "node-1"}', INVALID, ("target_nodes",)),
    ("/admin/ops/rebalance", b'{"targets": []}', INVALID, ("targets", "no such field")),
    *((f"/admin/shards/shard-9/{order}", body, MISSING, ("shard_id", "'shard-9'"))
      for order, body in (("move", b'{"from_node_id": "node-1", "to_node_id": "node-2"}'), ("cancel", None))),
    ("/admin/shards/shard-0/cancel", None, UNMET, ("shard_id", "nothing to cancel")),
    ("/admin/ops/99/cancel", None, MISSING, ("number", "99")),
    *((f"/admin/ops/{bad}/cancel", None, INVALID, ("number",)) for bad in ("0", "-1", "x", "9" * 20)),
]  # fmt: skip
BAD_ENDS = [
    ("/admin/nodes/node-9", None, MISSING, ("node_id", "'node-9'")),
    ("/admin/nodes/node-9/drain", None, MISSING, ("node_id", "'node-9'")),
    ("/admin/nodes/node-1", None, UNMET, ("node_id", "node-1", "drain it first")),
    ("/admin/nodes/node-1/drain", None, UNMET, ("node_id", "node-1", "not being drained")),
]


@pytest.mark.parametrize(
    ("method", "cases"),
    [
        ("POST", NOT_JSON),
        ("POST", BAD_NODES),
        ("POST", BAD_SHARDS),
        ("GET", BAD_READS),
        ("POST", BAD_ORDERS),
        ("DELETE", BAD_ENDS),
    ],
    ids=["no JSON", "nodes", "shards", "reads", "orders", "ends"],
)
def test_bad_input_is_refused_and_changes_nothing(doors: Doors, method: str, cases: list[Any]) -> None:
    def all_of_them() -> None:
        for path, body, (status, error), words in cases:
            got, told, headers = doors.admin.call(method, path, body)
            assert (got, told["error"], told["code"]) == (status, error, str(status)), (path, str(body)[:80], told)
            names(told["message"], *words)
            assert headers["x-correlation-id"] and told["timestamp_ms"] > 0

    changes_nothing(doors, all_of_them)


def test_a_leader_that_is_no_replica_is_refused(doors: Doors) -> None:
    def refuse() -> None:
        replicas = doors.state().shards["shard-0"].replicas
        outsider = next(f"node-{n}" for n in (1, 2, 3) if f"node-{n}" not in replicas)
        status, told, _ = doors.admin.call("POST", LEADER, outsider.encode())
        assert (status, told["error"]) == UNMET, told
        names(told["message"], "leader_node_id", outsider, "not a replica", *replicas)

    changes_nothing(doors, refuse)


def test_repeats_succeed_and_change_nothing(doors: Doors) -> None:
    def repeat() -> None:
        assert doors.admin.call("POST", INIT, sizes())[:2] == (
            200,
            {"success": True, "num_shards": 2, "replication_factor": 2},
        )
        _, nodes, _ = doors.admin.call("GET", NODES)
        for known in nodes:  # what was read can be sent back
            status, told = doors.admin.json("POST", NODES, known)
            assert (status, told["node_id"]) == (200, known["node_id"])

    changes_nothing(doors, repeat)


def test_wrong_methods_name_the_right_ones(doors: Doors) -> None:
    def all_of_them() -> None:
        for method, path, allowed in (
            ("DELETE", NODES, "GET, POST"),
            ("PUT", NODES + "/node-1", "DELETE, GET"),
            ("GET", NODES + "/node-1/drain", "DELETE, POST"),
            ("POST", "/admin/ops/1", "GET"),
            ("GET", INIT, "POST"),
            ("PATCH", STATUS, "POST"),
            ("GET", LEADER, "POST"),
            ("DELETE", REPLICAS, "POST"),
            ("POST", "/admin/cluster/shard-map", "GET"),
            ("POST", "/livez", "GET"),
        ):
            status, told, headers = doors.admin.call(method, path)
            assert (status, told["error"]) == (405, "METHOD_NOT_ALLOWED"), (method, path, told)
            names(told["message"], method, path)
            assert headers["allow"] == allowed, (method, path)

    changes_nothing(doors, all_of_them)


def test_without_the_key_nothing_but_probes_answers(doors: Doors) -> None:
    posts = [(NODES, node()), (INIT, sizes()), (STATUS, b"DEAD"), (REPLICAS, b'["node-1"]'), (LEADER, b"node-1")]
    reads = ["summary", "shard-map", "shard-map/version"]

    def all_of_them() -> None:
        calls = [("POST", path, body) for path, body in posts]
        calls += [("GET", f"/admin/cluster/{path}", None) for path in reads]
        calls += [
            ("GET", path, None) for path in ("/admin/config", NODES, "/admin/shards", "/admin/decisions", "/nope")
        ]
        calls += [("GET", path, None) for path in ("/admin/actuator/metrics", "/admin/actuator/healthy")]
        for key in ("", "wrong", doors.api_key + "x", doors.api_key[:-1], doors.api_key.upper() + "é"):
            for method, path, body in calls:
                status, told, headers = doors.admin.call(method, path, body, {"X-Admin-Api-Key": key})
                assert (status, told) == (401, {"error": "invalid_api_key", "path": path}), (method, path)
                assert headers["x-correlation-id"]
        for path in ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/admin/actuator/health"):
            assert doors.admin.call("GET", path, None, {"X-Admin-Api-Key": ""})[0] == 200, path

    changes_nothing(doors, all_of_them)


def test_other_content_types_are_named(doors: Doors) -> None:
    def all_of_them() -> None:
        for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"):
            status, told, _ = doors.admin.call("POST", NODES, node(), {"Content-Type": kind})
            assert (status, told["error"]) == (415, "UNSUPPORTED_MEDIA_TYPE"), told
            names(told["message"], "Content-Type", "application/json")
        status, told, _ = doors.admin.call("POST", NODES, node(address="h"), {"Content-Type": ""})
        assert (status, told["error"]) == INVALID, told

    changes_nothing(doors, all_of_them)


@pytest.mark.parametrize(
    "text",
    [
        b"FOO /admin/nodes HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00\xff\x00\xff\r\n\r\n",
        b"GET /admin/nodes HTTP/9.9\r\n\r\n",
        b"POST /admin/nodes HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /admin/nodes HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=["method", "binary", "version", "negative length", "absurd length", "HTTP/2"],
)
def test_what_is_no_http_is_a_bad_request(doors: Doors, text: bytes) -> None:
    """On the admin's port and on the small HTTP port of each service."""
    cluster = doors.cluster
    ports = [
        cluster.admin_port,
        *(base + 10_000 for base in (cluster.gateway_port, cluster.node_port, cluster.coordinator_port)),
    ]

    def all_of_them() -> None:
        for port in ports:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(text)
                connection.shutdown(socket.SHUT_WR)
                answer = http.client.HTTPResponse(connection)
                answer.begin()
                assert 400 <= answer.status < 500 or answer.status == 505, (port, answer.status, answer.read())
                answer.close()

    changes_nothing(doors, all_of_them)


def test_a_body_that_is_streamed_without_end_is_cut_off(doors: Doors) -> None:
    def send() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", doors.cluster.admin_port, timeout=20)
        headers = {"X-Admin-Api-Key": doors.api_key, "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
        pieces = (b'{"x": "' + b"y" * 65_536 for _ in range(40))
        try:
            connection.request("POST", NODES, body=pieces, headers=headers, encode_chunked=True)
            answer = connection.getresponse()
            assert answer.status == 413, answer.read()
            names(json.loads(answer.read())["message"], "body", str(MIB))
        finally:
            connection.close()

    changes_nothing(doors, send)


def test_the_description_describes_every_field(doors: Doors) -> None:
    _, described, _ = doors.admin.call("GET", "/openapi.json")
    silent = []
    for name, schema in described["components"]["schemas"].items():
        if not schema.get("description"):
            silent.append(name)
        silent += [
            f"{name}.{field}" for field, how in schema.get("properties", {}).items() if not how.get("description")
        ]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            silent += [where] if not operation.get("description") else []
            silent += [
                f"{where}?{one['name']}" for one in operation.get("parameters", []) if not one.get("description")
            ]
            if "requestBody" in operation:
                body = operation["requestBody"]
                schema = next(iter(body["content"].values()))["schema"]
                if not body.get("description") and not schema.get("description") and "$ref" not in schema:
                    silent.append(f"{where} body")
            silent += [
                f"{where} {code}" for code, told in operation["responses"].items() if not told.get("description")
            ]
            assert "422" not in operation["responses"], where
    assert not silent, silent
    assert described["components"]["securitySchemes"]
    assert len(described["paths"]) >= 15


def test_kvdb_orders_for_a_rebalance_begin_one(doors: Doors) -> None:
    body = b'{"operation": "rebalance", "parameters": {"a": "b"}, "target_shards": [], "target_nodes": null}'
    for path in ("/admin/ops/trigger", "/admin/ops/rebalance", "/admin/shards/rebalance"):
        status, told, headers = doors.admin.call("POST", path, body)
        assert (status, told) == (200, json.loads(body)), told
        status, operation, _ = doors.admin.call("GET", f"/admin/ops/{headers['x-operation-id']}")
        assert (status, operation["operation"], operation["subject"]) == (200, "rebalance", "default"), operation
    number = operation["id"]
    doors.admin.call("POST", f"/admin/ops/{number}/cancel")
    status, operation, _ = doors.admin.call("GET", f"/admin/ops/{number}")
    assert operation["status"] in ("DONE", "CANCELLED") and operation["ended_ms"] >= operation["begun_ms"], operation
    status, listed, _ = doors.admin.call("GET", "/admin/ops")
    assert operation in listed["operations"]


def test_kvdb_orders_to_compact_reach_every_replica(doors: Doors) -> None:
    replicas = sum(len(shard.replicas) for shard in doors.state().shards.values())
    for path, body in (("compact", b"{}"), ("trigger", b'{"operation": "COMPACT"}')):
        status, told, headers = doors.admin.call("POST", f"/admin/ops/{path}", body)
        assert (status, headers.get("x-replicas")) == (200, str(replicas)), told
    status, told, headers = doors.admin.call("POST", "/admin/ops/compact", b'{"target_shards": ["shard-0"]}')
    assert headers["x-replicas"] == str(len(doors.state().shards["shard-0"].replicas)), told


def test_the_configuration_that_was_read_can_be_sent_back(doors: Doors) -> None:
    """And a number of shards that only more shards than there may be would lead to is refused."""

    def send() -> None:
        _, config, _ = doors.admin.call("GET", "/admin/config")
        assert doors.admin.json("POST", "/admin/config", config) == (200, config)
        status, told = doors.admin.json("POST", "/admin/config", {"num_shards": 4095})
        assert (status, told["error"]) == (412, "PRECONDITION_FAILED")
        names(told["message"], "num_shards", str(config["num_shards"]))

    changes_nothing(doors, send)
