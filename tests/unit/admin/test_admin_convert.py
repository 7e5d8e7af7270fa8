"""Messages of the coordinator as the admin API's JSON."""

from __future__ import annotations

import pytest
from flotta_admin.core import convert, models
from flotta_proto.kvdb import coordinator_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError


def test_absent_strings_are_empty_and_unspecified_enums_have_their_names() -> None:
    assert convert.node(pb.NodeRecord()).model_dump() == {
        "node_id": "",
        "address": "",
        "zone": "",
        "rack": "",
        "status": "NODE_STATUS_UNSPECIFIED",
        "last_heartbeat_ms": 0,
        "capacity_hints": {},
    }
    assert convert.shard(pb.ShardRecord()).model_dump() == {
        "shard_id": "",
        "epoch": 0,
        "replicas": [],
        "leader": "",
        "config_state": "CONFIG_STATE_UNSPECIFIED",
        "key_range": None,
    }


def test_what_a_newer_coordinator_says_does_not_break_an_older_admin() -> None:
    record = pb.NodeRecord()
    record.MergeFromString(b"\x28\x63")  # field 5 (status), value 99
    assert convert.node(record).status == "NODE_STATUS_UNSPECIFIED"


def test_key_ranges_are_base64_and_big_numbers_stay_whole() -> None:
    found = convert.shard(
        pb.ShardRecord(
            epoch=2**64 - 1,
            config_state=pb.MOVING,
            key_range=pb.KeyRange(start_key=b"\0\0\0\0", end_key=b"\x7f\xff\xff\xff"),
        )
    )
    assert found.epoch == 2**64 - 1
    assert found.config_state == "MOVING"
    assert found.key_range == models.KeyRange(start_key="AAAAAA==", end_key="f////w==")


@given(st.permutations([f"shard-{i}" for i in range(25)]))
def test_shards_come_in_the_order_of_their_index(ids: list[str]) -> None:
    state = pb.ClusterState(shards={shard_id: pb.ShardRecord(shard_id=shard_id) for shard_id in ids})
    assert [shard.shard_id for shard in convert.shards(state)] == [f"shard-{i}" for i in range(25)]


@given(st.lists(st.text(max_size=6), unique=True))
def test_any_ids_have_one_order(ids: list[str]) -> None:
    assert len({convert.natural_key(text) for text in ids}) == len(ids) == len(sorted(ids, key=convert.natural_key))


def test_summary_counts_and_strings() -> None:
    state = pb.ClusterState(
        map_version=9,
        nodes={
            "a": pb.NodeRecord(node_id="a", status=pb.ALIVE),
            "b": pb.NodeRecord(node_id="b", status=pb.SUSPECT),
            "c": pb.NodeRecord(node_id="c", status=pb.DEAD),
        },
        shards={
            "shard-0": pb.ShardRecord(shard_id="shard-0", config_state=pb.STABLE),
            "shard-1": pb.ShardRecord(shard_id="shard-1", config_state=pb.MOVING),
        },
        partitioning=pb.PartitioningConfig(num_shards=2, replication_factor=3),
    )
    summary = convert.summary(state).model_dump()
    assert summary["partitioning_config"] == {"num_shards": "2", "replication_factor": "3"}
    assert [summary[f"{name}_nodes"] for name in ("total", "alive", "suspect", "dead")] == [3, 1, 1, 1]
    assert [summary[f"{name}_shards"] for name in ("total", "stable", "moving")] == [2, 1, 1]


@pytest.mark.parametrize("word", ["alive", "", "NODE_STATUS_UNSPECIFIED", "1", "ALIVE "])
def test_only_the_three_words_are_a_status(word: str) -> None:
    assert convert.node_status(word) is None


def test_requests_refuse_unknown_fields_and_ignore_what_callers_cannot_set() -> None:
    known = {"rack": "r", "status": "DEAD", "last_heartbeat_ms": 5, "capacity_hints": {"disk": "1"}}
    models.RegisterNodeRequest.model_validate({"node_id": "n", "address": "h:1", **known})
    with pytest.raises(ValidationError, match="extra_forbidden"):
        models.RegisterNodeRequest.model_validate({"node_id": "n", "address": "h:1", "port": 1})
