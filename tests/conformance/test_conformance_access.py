"""Who may call what: the internal token on every protected method, open methods without it, the probes of all ports.

The list of open methods is KvDB's and the bulk API, written out here once more so that the product's own cannot drift.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from conformance_support import GARBAGE, KV, TOKEN_HEADER, Door, Doors, Http, changes_nothing, refused
from flotta_proto.flotta import cluster_pb2, kv_pb2, operator_pb2, raft_pb2, roster_pb2, storage_pb2
from flotta_proto.kvdb import coordinator_pb2, gateway_pb2, kvstore_pb2, replication_pb2
from flotta_proto.kvdb import raft_pb2 as kvdb_raft_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

OPEN = {
    "kvdb.coordinator.Coordinator": {
        *("GetShardMap", "WatchShardMap", "ResolveShard", "GetNode", "ListNodes", "GetCoordinatorLeader", "Heartbeat"),
    },
    "kvdb.kvstore.KVService": {"Get", "Ping"},
    "kvdb.gateway.KvGateway": {"Get", "Put", "Delete"},
    "kvdb.raft.RaftService": set(),
    "kvdb.replication.ReplicationService": set(),
    "flotta.kv.v1.Kv": {"Batch", "Scan"},
}
FILES = (
    *(cluster_pb2, kv_pb2, operator_pb2, raft_pb2, roster_pb2, storage_pb2),
    *(coordinator_pb2, gateway_pb2, kvstore_pb2, replication_pb2, kvdb_raft_pb2),
)
SERVICES = {service.full_name: service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()}
COMMON = {"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
SERVED = {
    "gateway": {"kvdb.gateway.KvGateway", "flotta.kv.v1.Kv"},
    "node": {
        *("kvdb.kvstore.KVService", "kvdb.replication.ReplicationService"),
        *("flotta.storage.v1.Shards", "flotta.storage.v1.Backups", "flotta.raft.v1.RaftTransport"),
    },
    "coordinator": {
        *("kvdb.coordinator.Coordinator", "kvdb.raft.RaftService"),
        *("flotta.cluster.v1.Cluster", "flotta.cluster.v1.Operator", "flotta.cluster.v1.Roster"),
        "flotta.raft.v1.RaftTransport",
    },
}


def ports(doors: Doors) -> Iterator[tuple[str, Door]]:
    yield "gateway", doors.gateway
    for door in doors.nodes:
        yield "node", door
    for door in doors.coordinators:
        yield "coordinator", door


def methods(kind: str, *, protected: bool) -> Iterator[tuple[str, Any]]:
    """(full method, its descriptor) of what a kind of process serves."""
    for service in sorted(SERVED[kind]):
        for method in SERVICES[service].methods:
            if protected == (method.name not in OPEN.get(service, ())):
                yield f"/{service}/{method.name}", method


def ask(door: Door, name: str, method: Any, body: bytes, token: str | None) -> Any:
    if method.client_streaming or method.server_streaming:
        return door.stream(name, [body], token=token, timeout=5)[0]
    return door.raw(name, body, token=token)


def test_protected_methods_need_the_token(doors: Doors) -> None:
    """Without it nothing is told, not even that the bytes are no message; Shutdown would end the process."""
    wrong = [None, "wrong", doors.token[:-1], doors.token + "x", doors.token.upper() + "X", " "]

    def all_of_them() -> None:
        for kind, door in ports(doors):
            for name, method in methods(kind, protected=True):
                for token in wrong:
                    for body in (b"", GARBAGE) if token is None else (b"",):
                        answer = ask(door, name, method, body, token)
                        refused(answer, "UNAUTHENTICATED", "Missing or invalid internal gRPC token")

    changes_nothing(doors, all_of_them)


def test_a_token_hidden_behind_a_wrong_one_does_not_count(doors: Doors) -> None:
    second = ((TOKEN_HEADER, doors.token),)
    answer = doors.nodes[0].raw(KV + "Set", b"", token="wrong", metadata=second)
    refused(answer, "UNAUTHENTICATED")


def test_open_methods_need_no_token(doors: Doors) -> None:
    def all_of_them() -> None:
        for kind, door in ports(doors):
            seen = 0
            for name, method in methods(kind, protected=False):
                for token in (None, "wrong"):
                    answer = ask(door, name, method, b"", token)
                    assert answer.code is not grpc.StatusCode.UNAUTHENTICATED, name
                    assert answer.code.name in ("OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION"), (name, answer)
                    seen += 1
            assert seen >= 4, kind

    changes_nothing(doors, all_of_them)


def test_reflection_shows_exactly_what_is_served(doors: Doors) -> None:
    for kind, door in ports(doors):
        database = ProtoReflectionDescriptorDatabase(door.channel)
        assert set(database.get_services()) == SERVED[kind] | COMMON, door.address
        for service in SERVED[kind]:
            shown = database.FindFileContainingSymbol(service)
            found = next(one for one in shown.service if f"{shown.package}.{one.name}" == service)
            assert [one.name for one in found.method] == [one.name for one in SERVICES[service].methods]


def test_reflection_knows_methods_by_their_full_name(doors: Doors) -> None:
    asked = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    for kind, door in ports(doors):
        for service in SERVED[kind]:
            for method in SERVICES[service].methods:
                request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=method.full_name)
                _, found = door.stream(asked, [request.SerializeToString()])
                files = reflection_pb2.ServerReflectionResponse.FromString(found[0]).file_descriptor_response
                names = {FileDescriptorProto.FromString(one).name for one in files.file_descriptor_proto}
                assert SERVICES[service].file.name in names, method.full_name


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_answers_nonsense(doors: Doors, version: str) -> None:
    method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    request = reflection_pb2.ServerReflectionRequest
    for _, door in ports(doors):
        for asked in (
            request(file_containing_symbol="no.such.Thing"),
            request(file_containing_symbol="kvdb.gateway.KvGateway.NoSuchMethod"),
            request(file_by_filename="no.proto"),
        ):
            answer, found = door.stream(method, [asked.SerializeToString()])
            assert answer.code.name == "OK", answer
            assert reflection_pb2.ServerReflectionResponse.FromString(found[0]).error_response.error_code == 5
        refused(door.stream(method, [GARBAGE])[0], "INVALID_ARGUMENT", "ServerReflectionRequest")


def checked(door: Door, body: bytes) -> int:
    answer = door.raw("/grpc.health.v1.Health/Check", body)
    assert answer.code.name == "OK", answer
    return int(health_pb2.HealthCheckResponse.FromString(answer.body).status)


def test_the_health_service_knows_every_service(doors: Doors) -> None:
    for kind, door in ports(doors):
        for service in ("", *SERVED[kind]):
            body = health_pb2.HealthCheckRequest(service=service).SerializeToString()
            # A cluster that has only just begun may say "not yet" for a moment.
            deadline = time.monotonic() + 20
            while (status := checked(door, body)) != health_pb2.HealthCheckResponse.SERVING:
                assert time.monotonic() < deadline, (door.address, service, status)
                time.sleep(0.05)
            watched, _ = door.stream("/grpc.health.v1.Health/Watch", [body])
            assert (
                health_pb2.HealthCheckResponse.FromString(watched.body).status == health_pb2.HealthCheckResponse.SERVING
            )
        unknown = health_pb2.HealthCheckRequest(service="no.such.Service").SerializeToString()
        assert door.raw("/grpc.health.v1.Health/Check", unknown).code.name == "NOT_FOUND"
        refused(door.raw("/grpc.health.v1.Health/Check", GARBAGE), "INVALID_ARGUMENT", "HealthCheckRequest")


def test_every_process_answers_probes_and_metrics(doors: Doors) -> None:
    http = [Http(int(door.address.rpartition(":")[2]) + 10_000) for _, door in ports(doors)]
    for port in [*http, Http(doors.cluster.admin_port)]:
        for path in ("/livez", "/readyz"):
            status, told, headers = port.call("GET", path)
            assert (status, told["status"]) == (200, "ok"), (port, told)
            assert told["reason"]
            assert headers["content-type"].startswith("application/json")
        status, text, headers = port.call("GET", "/metrics")
        assert status == 200 and headers["content-type"].startswith("text/plain")
        samples = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert any(line.startswith("process_cpu_seconds_total") for line in samples), port
        assert all(float(line.rpartition(" ")[2]) == float(line.rpartition(" ")[2]) for line in samples), "NaN"
        helped = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP") and len(line.split()) > 3}
        typed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
        assert typed <= helped, f"no description: {typed - helped}"


def test_the_small_http_port_refuses_the_rest(doors: Doors) -> None:
    for _, door in ports(doors):
        port = Http(int(door.address.rpartition(":")[2]) + 10_000)
        for path in ("/", "/nope", "/livez/", "/metrics/x", "/%ff"):
            assert port.call("GET", path)[0] == 404, path
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            status, told, headers = port.call(method, "/livez", b"x" * 100)
            assert (status, headers["allow"]) == (405, "GET, HEAD"), told


@pytest.mark.parametrize(
    "text",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(4_096),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9) + b"\x7f\xff\xff\x01\x05\x00\x00\x00\x01",
        b"",
    ],
    ids=["HTTP/1", "random", "frames", "lengths", "nothing"],
)
def test_what_is_no_grpc_is_cut_off(doors: Doors, text: bytes) -> None:
    """Other protocols on a gRPC port end their own connection, and nobody else's."""

    def all_of_them() -> None:
        for _, door in ports(doors):
            host, _, port = door.address.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                # It may be cut off before it has ended itself.
                with contextlib.suppress(OSError):
                    connection.sendall(text)
                    connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    while connection.recv(65_536):
                        pass

    changes_nothing(doors, all_of_them)


def test_metadata_without_end_is_refused(doors: Doors) -> None:
    def all_of_them() -> None:
        for kind, door in ports(doors):
            name = next(name for name, _ in methods(kind, protected=False) if not name.endswith("WatchShardMap"))
            answer = door.raw(name, b"", metadata=(("x-large", "y" * 200_000),))
            refused(answer, "RESOURCE_EXHAUSTED", "metadata")

    changes_nothing(doors, all_of_them)
