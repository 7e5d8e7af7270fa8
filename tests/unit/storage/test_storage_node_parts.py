"""The small parts of a node: records, map model, reports, frames, demands, settings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from flotta_embedded.simulated import SimEngine
from flotta_proto.flotta import cluster_pb2
from flotta_proto.kvdb import coordinator_pb2
from flotta_runtime.server import Channel
from flotta_runtime.settings import SettingsError, load_settings
from flotta_storage.coordinator_link import CoordinatorLink
from flotta_storage.core.guarantees import STRONG, Demand, Guarantee, demand
from flotta_storage.core.replicas import LocalReplica, Origin
from flotta_storage.heartbeat import ReportBook
from flotta_storage.map_model import ForeignMapError, MapModel
from flotta_storage.records import NodeRecords, RecordsError
from flotta_storage.settings import StorageSettings

REPLICA = LocalReplica(100, 1 << 32 | 7, "shard-3", Origin.BIRTH, (1 << 32 | 7, 2 << 32 | 8), "default", 3, 8, 55)


def open_records(engine: SimEngine, *, formed: bool = False, **about: object) -> NodeRecords:
    values: dict[str, object] = {"node_id": "node-1", "node_num": 1, "cluster_id": "c", **about}
    return NodeRecords.open(engine, formed=formed, **values)  # type: ignore[arg-type]


def test_records_survive_a_power_cut_after_every_change() -> None:
    engine = SimEngine()
    records = open_records(engine)
    steps = [
        lambda: records.intend([REPLICA], 9),
        lambda: records.mark_made(100),
        lambda: records.remember_addresses({1: "a:1", 2: "b:2"}),
        lambda: records.bury(100, 12),
    ]
    for step in steps:
        step()
        expected, addresses = records.state, records.addresses()
        engine.crash()
        records = open_records(engine, formed=True)
        assert records.state == expected
        assert records.addresses() == addresses
    assert records.state.replicas == {}
    assert records.state.tombstones == {REPLICA.replica}
    assert records.state.acted_version == 12


def test_records_of_another_node_and_lost_records_are_refused() -> None:
    engine = SimEngine()
    open_records(engine)
    with pytest.raises(RecordsError, match="of node node-1 number 1 of cluster c, not of node node-1 number 2"):
        open_records(engine, node_num=2)
    with pytest.raises(RecordsError, match="its record of them is gone"):
        open_records(SimEngine(), formed=True)


def state(version: int, cluster_id: str = "c", **shards: str) -> coordinator_pb2.ClusterState:
    made = coordinator_pb2.ClusterState(map_version=version, cluster_id=cluster_id)
    for number, (name, leader) in enumerate(sorted(shards.items())):
        made.shards[name].CopyFrom(record(name, leader, number + 1))
    made.partitioning.num_shards = len(shards)
    return made


def record(name: str, leader: str, group: int) -> coordinator_pb2.ShardRecord:
    detail = coordinator_pb2.ShardDetail(group_id=group, shard_count=1, table="default")
    return coordinator_pb2.ShardRecord(shard_id=name, leader=leader, epoch=1, detail=detail)


def test_the_map_only_moves_forward_and_gaps_are_noticed() -> None:
    model = MapModel()
    assert model.take_delta(coordinator_pb2.ShardMapDelta(new_map_version=3, previous_map_version=2)) is None
    assert model.take_state(state(5, a="node-1", b="node-2")) is True
    before = model.view
    assert model.take_state(state(5)) is False
    assert model.take_delta(coordinator_pb2.ShardMapDelta(new_map_version=0)) is False, "a heartbeat"
    assert model.take_delta(coordinator_pb2.ShardMapDelta(new_map_version=8, previous_map_version=7)) is None
    ids_only = coordinator_pb2.ShardMapDelta(new_map_version=6, previous_map_version=5, changed_shards=["a"])
    assert model.take_delta(ids_only) is None
    delta = coordinator_pb2.ShardMapDelta(
        new_map_version=7, previous_map_version=4, shards=[record("a", "node-9", 1)], removed_shards=["b"]
    )
    assert model.take_delta(delta) is True, "it covers more than what is missing"
    assert (model.version, model.shard("b")) == (7, None)
    changed = model.shard("a")
    assert changed is not None and changed.leader == "node-9"
    assert {one.leader for one in before.shards.values()} == {"node-1", "node-2"}, "a view does not change"


def test_a_foreign_map_is_refused() -> None:
    model = MapModel("mine")
    with pytest.raises(ForeignMapError, match=r"belongs to cluster mine, but .* cluster other"):
        model.take_state(state(5, cluster_id="other"))
    assert model.version == 0


def test_reports_are_sent_when_they_changed_or_are_old() -> None:
    book = ReportBook(report_ms=5_000)
    report = cluster_pb2.ShardReport(group_id=1, term=2, applied_index=10)
    assert book.due([report], 0) == [report]
    assert book.due([report], 1) == [report], "not accepted yet"
    book.accepted([report], 1)
    further = cluster_pb2.ShardReport(group_id=1, term=2, applied_index=99)
    assert book.due([further], 100) == []
    assert book.due([further], 5_001) == [further]
    news = cluster_pb2.ShardReport(group_id=1, term=3, applied_index=99)
    assert book.due([news], 100) == [news]
    assert book.due([], 100) == []
    assert book.due([report], 101) == [report], "leadership came back: it is news again"


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ((0, 0, 0, 0), STRONG),
        ((1, 2, 500, 7), STRONG),
        ((0, 2, 0, 0), STRONG),
        ((2, 1, 0, 0), STRONG),
        ((0, 1, 0, 7), Demand(Guarantee.SESSION, 7)),
        ((2, 1, 300, 7), Demand(Guarantee.SESSION, 7, 300)),
        ((2, 0, 300, 0), Demand(Guarantee.BOUNDED, 0, 300)),
        ((2, 2, 0, 0), Demand(Guarantee.EVENTUAL)),
        ((2, 2, 0, 7), Demand(Guarantee.EVENTUAL)),
    ],
)
def test_a_read_gets_at_least_what_it_asks_for(asked: tuple[int, int, int, int], wanted: Demand) -> None:
    assert demand(*asked) == wanted


def settings(*flags: str) -> StorageSettings:
    return load_settings(StorageSettings, [*flags, "--internal-token", "t"], {})


def test_a_stub_is_made_once_for_each_coordinator() -> None:
    dialled: list[str] = []

    def dial(address: str) -> Channel:
        dialled.append(address)
        return cast("Channel", SimpleNamespace(grpc=address))

    link = CoordinatorLink(("a:1", "b:2"), dial)
    first = link.stub(list, "a:1")
    assert first == ["a", ":", "1"]
    assert link.stub(list, "a:1") is first
    assert link.stub(set, "a:1") == {"a", ":", "1"}
    assert link.stub(list, "b:2") == ["b", ":", "2"]
    assert dialled == ["a:1", "b:2"]


def test_settings() -> None:
    made = settings("--node-id", "node-2", "--listen", "0.0.0.0:8002", "--data-dir", "/tmp/x", "--zone", "z")
    assert made.advertised(8002) == "localhost:8002"
    assert made.data_dir == Path("/tmp/x")
    assert settings("--listen", "10.0.0.1:0").advertised(77) == "10.0.0.1:77"
    assert settings("--advertise", "node1:8001").advertised(77) == "node1:8001"
    with pytest.raises(SettingsError, match="coordinators"):
        settings("--coordinators", "localhost")
    with pytest.raises(SettingsError, match="value_bytes_max"):
        load_settings(StorageSettings, [], {"KVDB_INTERNAL_GRPC_TOKEN": "t", "FLOTTA_STORAGE_VALUE_BYTES_MAX": "0"})
