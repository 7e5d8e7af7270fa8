"""Which methods need the internal token: KvDB's list, and everything of our own internal services."""

from __future__ import annotations

import pytest
from flotta_proto.flotta import cluster_pb2, kv_pb2, raft_pb2, storage_pb2
from flotta_proto.kvdb import coordinator_pb2, gateway_pb2, kvstore_pb2
from flotta_proto.kvdb import raft_pb2 as kvdb_raft_pb2
from flotta_runtime.auth import TokenCheck, is_protected

MODULES = (
    *(coordinator_pb2, kvstore_pb2, gateway_pb2, kvdb_raft_pb2),
    *(cluster_pb2, kv_pb2, raft_pb2, storage_pb2),
)
OPEN = {
    "/kvdb.coordinator.Coordinator/GetShardMap",
    "/kvdb.coordinator.Coordinator/WatchShardMap",
    "/kvdb.coordinator.Coordinator/ResolveShard",
    "/kvdb.coordinator.Coordinator/GetNode",
    "/kvdb.coordinator.Coordinator/ListNodes",
    "/kvdb.coordinator.Coordinator/GetCoordinatorLeader",
    "/kvdb.coordinator.Coordinator/Heartbeat",
    "/kvdb.kvstore.KVService/Get",
    "/kvdb.kvstore.KVService/Ping",
    "/kvdb.gateway.KvGateway/Get",
    "/kvdb.gateway.KvGateway/Put",
    "/kvdb.gateway.KvGateway/Delete",
    "/flotta.kv.v1.Kv/Batch",
    "/flotta.kv.v1.Kv/Scan",
}


def test_every_method_of_every_contract_is_either_on_the_open_list_or_protected() -> None:
    methods = {
        f"/{service.full_name}/{method.name}"
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert {method for method in methods if not is_protected(method)} == OPEN


@pytest.mark.parametrize("method", ["/grpc.health.v1.Health/Check", "/regatta.v1.KV/Range"])
def test_public_services_stay_open(method: str) -> None:
    assert not is_protected(method)


def test_tokens_compare_whole() -> None:
    check = TokenCheck("abc")
    assert check.matches("abc")
    assert check.matches(b"abc")
    for wrong in ("ab", "abcd", "", None, "äbc"):
        assert not check.matches(wrong)
