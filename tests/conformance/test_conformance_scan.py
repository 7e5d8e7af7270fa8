"""Scans at a gateway: pages in order over all shards, what has expired, bad input that changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from conformance_support import GARBAGE, MIB, Doors, changes_nothing, names, refused, trace
from flotta_proto.flotta.kv_pb2 import BatchItem, BatchRequest, BatchResponse, ScanRequest, ScanResponse
from flotta_proto.kvdb import gateway_pb2 as pb

BATCH = "/flotta.kv.v1.Kv/Batch"
SCAN = "/flotta.kv.v1.Kv/Scan"
PREFIX = b"scan:"
ROWS = {b"scan:%04d" % number: b"value %d" % number for number in range(700)}


def batch(doors: Doors, items: list[BatchItem]) -> None:
    answer = doors.gateway.ask(BATCH, BatchRequest(items=items), BatchResponse)
    for result in answer.results:
        response = getattr(result, result.WhichOneof("response"))
        assert response.status.code in (pb.Status.OK, pb.Status.NOT_FOUND), response.status


def put(key: bytes, value: bytes, **options: Any) -> BatchItem:
    return BatchItem(put=pb.PutRequest(key=key, value=value, options=pb.WriteOptions(**options)))


@pytest.fixture(scope="module")
def rows(doors: Doors) -> Iterator[Doors]:
    batch(doors, [put(key, value) for key, value in ROWS.items()])
    yield doors
    batch(doors, [BatchItem(delete=pb.DeleteRequest(key=key)) for key in ROWS])


def page(doors: Doors, **fields: Any) -> ScanResponse:
    answer: ScanResponse = doors.gateway.ask(SCAN, ScanRequest(**fields), ScanResponse)
    return answer


def pages(doors: Doors, **fields: Any) -> list[ScanResponse]:
    found: list[ScanResponse] = []
    token = b""
    while not found or token:
        found.append(page(doors, page_token=token, **fields))
        assert found[-1].status.code == pb.Status.OK, found[-1].status
        token = found[-1].next_page_token
    return found


def shown(found: list[ScanResponse]) -> list[tuple[bytes, bytes]]:
    return [(entry.key, entry.value) for one in found for entry in one.entries]


def test_all_rows_of_all_shards_in_order(rows: Doors) -> None:
    found = pages(rows, prefix=PREFIX, limit=100)
    assert shown(found) == sorted(ROWS.items())
    assert 7 <= len(found) <= 30
    assert {shard.shard_id for one in found for shard in one.shards} == {"shard-0", "shard-1"}
    assert {shard.guarantee for one in found for shard in one.shards} == {pb.LINEARIZABLE}
    assert all(shard.revision for one in found for shard in one.shards)
    first = found[0].entries[0]
    assert first.version and first.create_time_ms == first.update_time_ms > 0
    assert shown(pages(rows, prefix=PREFIX, reverse=True)) == sorted(ROWS.items(), reverse=True)
    names_only = pages(rows, prefix=PREFIX, keys_only=True)
    assert shown(names_only) == [(key, b"") for key in sorted(ROWS)]
    counted = pages(rows, prefix=PREFIX, count_only=True)
    assert (sum(one.count for one in counted), shown(counted)) == (len(ROWS), [])
    part = pages(rows, start=b"scan:0100", end=b"scan:0200", limit=30, options=pb.ReadOptions(consistency=pb.EVENTUAL))
    assert shown(part) == sorted(ROWS.items())[100:200]
    assert {shard.guarantee for one in part for shard in one.shards} == {pb.ANY}


def test_what_was_acknowledged_is_seen_and_what_was_deleted_is_not(doors: Doors) -> None:
    for number in range(5):
        key = b"fresh:%d" % number
        batch(doors, [put(key, b"v")])
        assert [name for name, _ in shown(pages(doors, prefix=b"fresh:"))] == [key]
        batch(doors, [BatchItem(delete=pb.DeleteRequest(key=key))])
        assert shown(pages(doors, prefix=b"fresh:")) == []


def keys_of_shards(doors: Doors) -> int:
    return sum({shard_id: keys for (shard_id, _), (_, keys, _) in trace(doors).replicas.items()}.values())


def test_what_has_expired_is_not_shown(doors: Doors) -> None:
    keys_before = keys_of_shards(doors)
    batch(doors, [put(b"brief:%d" % number, b"v", ttl_ms=1) for number in range(20)])
    batch(doors, [put(b"brief:long", b"v", ttl_ms=600_000)])
    time.sleep(0.05)
    found = pages(doors, prefix=b"brief:")
    assert [entry.key for one in found for entry in one.entries] == [b"brief:long"]
    assert found[0].entries[0].expire_time_ms > 0
    assert sum(one.count for one in pages(doors, prefix=b"brief:", count_only=True)) == 1
    # Sweeping is written to the shards' logs: not while another test watches these.
    deadline = time.monotonic() + 60
    while keys_of_shards(doors) > keys_before + 1:
        assert time.monotonic() < deadline, "what has expired was never swept"
        time.sleep(0.1)


def test_large_rows_come_within_bounds(doors: Doors) -> None:
    large = {b"large:%d" % number: bytes(300_000) for number in range(6)} | {b"large:9": bytes(16 * MIB)}
    for key, value in large.items():
        batch(doors, [put(key, value)])
    found = pages(doors, prefix=b"large:", limit_bytes=MIB)
    assert shown(found) == sorted(large.items())
    assert all(one.ByteSize() < MIB + 10_000 for one in found if b"large:9" not in [row.key for row in one.entries])
    batch(doors, [BatchItem(delete=pb.DeleteRequest(key=key)) for key in large])


def test_bad_input_is_named_and_changes_nothing(rows: Doors) -> None:
    token = page(rows, prefix=PREFIX, limit=10).next_page_token

    def all_of_them() -> None:
        for fields, words in (
            ({"start": b"b", "end": b"a"}, ("start", "end")),
            ({"limit": 10_001}, ("limit", "10001", "10000")),
            ({"limit": 0xFFFFFFFF}, ("limit", "4294967295")),
            ({"limit_bytes": 1 << 31}, ("limit_bytes", "2147483648", str(4 * MIB))),
            ({"prefix": b"k" * 1_025}, ("prefix", "1025", "1024")),
            ({"prefix": PREFIX, "page_token": token[:-1]}, ("page_token", "damaged")),
            ({"prefix": b"other", "page_token": token}, ("page_token", "another scan")),
            ({"keys_only": True, "count_only": True}, ("count_only",)),
            ({"options": pb.ReadOptions(consistency=77)}, ("options.consistency", "77")),  # type: ignore[arg-type]
            ({"options": pb.ReadOptions(read_mode=77)}, ("options.read_mode", "77")),  # type: ignore[arg-type]
            ({"options": pb.ReadOptions(session_revision=7)}, ("options.session_revision",)),
        ):
            answer = page(rows, **fields)  # type: ignore[arg-type]
            assert (answer.status.code, len(answer.entries)) == (pb.Status.INVALID_ARGUMENT, 0), fields
            names(answer.status.message, *words)
        refused(rows.gateway.raw(SCAN, GARBAGE), "INVALID_ARGUMENT", "flotta.kv.v1.ScanRequest")

    changes_nothing(rows, all_of_them)
