"""Many operations in one request at a gateway: results in place, bad input that changes nothing, order within a key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import flotta
import pytest
from conformance_support import GARBAGE, MIB, Answer, Doors, Http, changes_nothing, names, refused
from flotta import AsyncClient, Delete, Get, Put
from flotta_proto.flotta.kv_pb2 import BatchItem, BatchRequest, BatchResponse
from flotta_proto.kvdb import gateway_pb2 as pb

BATCH = "/flotta.kv.v1.Kv/Batch"
ITEMS_MAX = 1_000
BYTES_MAX = 33 * MIB // 2


def put(key: bytes, value: bytes = b"v", **fields: Any) -> BatchItem:
    return BatchItem(put=pb.PutRequest(key=key, value=value, **fields))


def get(key: bytes) -> BatchItem:
    return BatchItem(get=pb.GetRequest(key=key))


def delete(key: bytes) -> BatchItem:
    return BatchItem(delete=pb.DeleteRequest(key=key))


def send(doors: Doors, items: Sequence[BatchItem]) -> Answer:
    return doors.gateway.raw(BATCH, BatchRequest(items=items).SerializeToString())


def ask(doors: Doors, *items: BatchItem) -> list[Any]:
    """Each item's response, in place."""
    answer = send(doors, items)
    assert answer.code.name == "OK", answer
    results = BatchResponse.FromString(answer.body).results
    assert [one.WhichOneof("response") for one in results] == [one.WhichOneof("operation") for one in items]
    return [getattr(one, one.WhichOneof("response") or "") for one in results]


def codes(responses: Sequence[Any]) -> list[str]:
    return [pb.Status.Code.Name(one.status.code) for one in responses]


def test_as_many_as_there_may_be_over_all_shards(doors: Doors) -> None:
    keys = [b"many-%d" % number for number in range(ITEMS_MAX)]
    puts = ask(doors, *(put(key, b"value of " + key) for key in keys))
    assert set(codes(puts)) == {"OK"}
    assert {one.status.shard_id for one in puts} == {"shard-0", "shard-1"}
    gets = ask(doors, *map(get, keys))
    assert [(one.kv.key, one.kv.value) for one in gets] == [(key, b"value of " + key) for key in keys]
    assert [one.kv.version for one in gets] == [one.version for one in puts]
    assert set(codes(ask(doors, *map(delete, keys)))) == {"OK"}
    assert set(codes(ask(doors, *map(get, keys)))) == {"NOT_FOUND"}


def test_items_succeed_and_fail_alone(doors: Doors) -> None:
    first = pb.WriteOptions(if_not_exists=True)
    assert codes(ask(doors, put(b"there"), delete(b"not there"))) == ["OK", "NOT_FOUND"]
    responses = ask(
        doors,
        put(b"there", b"again", options=first),
        put(b"new", b"n", options=first),
        put(b"there", b"x", options=pb.WriteOptions(if_version_equals=1)),
        put(b""),
        put(b"k" * 1_025),
        get(b"not there"),
        get(b"there"),
        put(b"idless", options=pb.WriteOptions(require_idempotency=True)),
    )
    assert codes(responses) == [
        *("ALREADY_EXISTS", "OK", "VERSION_MISMATCH", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        *("NOT_FOUND", "OK", "INVALID_ARGUMENT"),
    ]
    assert responses[6].kv.value == b"v"
    names(responses[3].status.message, "Key cannot be empty")
    names(responses[4].status.message, "key", "1025", "1024")
    names(responses[7].status.message, "ctx.request_id")


def test_items_of_one_key_are_done_in_their_order(doors: Doors) -> None:
    items = [put(b"ordered", b"%d" % number) for number in range(20)]
    mixed = [item for number, write in enumerate(items) for item in (write, get(b"ordered"), put(b"o-%d" % number))]
    responses = ask(doors, *mixed, delete(b"ordered"), get(b"ordered"))
    assert codes(responses) == ["OK"] * 61 + ["NOT_FOUND"]
    seen = [one.kv.value for one in responses if isinstance(one, pb.GetResponse) and one.kv.value]
    assert seen == [b"%d" % number for number in range(20)]
    versions = [one.version for one in responses[:60:3]]
    assert versions == sorted(set(versions))


def test_request_ids_make_items_repeatable(doors: Doors) -> None:
    once = pb.WriteOptions(require_idempotency=True)
    items = [put(b"once-%d" % n, ctx=pb.RequestContext(request_id=f"batch-{n}"), options=once) for n in range(10)]
    first = [one.version for one in ask(doors, *items)]
    again = ask(doors, *items)
    assert ([one.version for one in again], set(codes(again))) == (first, {"OK"})


def test_what_is_wrong_as_a_whole_changes_nothing(doors: Doors) -> None:
    def all_of_them() -> None:
        many = [put(b"too-many-%d" % number) for number in range(ITEMS_MAX + 1)]
        refused(send(doors, many), "INVALID_ARGUMENT", "items", str(ITEMS_MAX + 1), str(ITEMS_MAX))
        refused(send(doors, [put(b"a"), BatchItem()]), "INVALID_ARGUMENT", "items[1]", "get, put or delete")
        large = send(doors, [put(b"large-%d" % number, bytes(BYTES_MAX // 3 + 50_000)) for number in range(3)])
        refused(large, "INVALID_ARGUMENT", "items", str(BYTES_MAX))
        assert large.trailers["x-flotta-error"] == "PAYLOAD_TOO_LARGE"
        huge = send(doors, [put(b"large-%d" % number, bytes(6 * MIB)) for number in range(3)])
        refused(huge, "RESOURCE_EXHAUSTED", "larger than", str(17 * MIB))
        refused(doors.gateway.raw(BATCH, GARBAGE), "INVALID_ARGUMENT", "flotta.kv.v1.BatchRequest")
        assert ask(doors) == []

    changes_nothing(doors, all_of_them)


def test_bad_items_alone_change_nothing(doors: Doors) -> None:
    def all_of_them() -> None:
        bad = ask(doors, put(b""), put(b"k" * 2_000), delete(b""), put(b"k", options=pb.WriteOptions(ttl_ms=1 << 43)))
        assert set(codes(bad)) == {"INVALID_ARGUMENT"}

    changes_nothing(doors, all_of_them)


def test_the_largest_value_fits_and_too_many_of_them_are_refused_one_by_one(doors: Doors) -> None:
    value = bytes(16 * MIB)
    assert codes(ask(doors, put(b"largest", value))) == ["OK"]
    assert codes(ask(doors, put(b"small", b"s"))) == ["OK"]
    responses = ask(doors, get(b"largest"), get(b"small"), get(b"largest"))
    assert sorted(codes(responses)) == ["OK", "OK", "PAYLOAD_TOO_LARGE"]
    assert responses[1].kv.value == b"s"
    assert codes(ask(doors, delete(b"largest"), delete(b"small"))) == ["OK", "OK"]


def test_items_and_requests_are_counted(doors: Doors) -> None:
    port = Http(int(doors.gateway.address.rpartition(":")[2]) + 10_000)

    def counts() -> tuple[float, float]:
        lines = port.call("GET", "/metrics")[1].splitlines()
        operations = [
            line for line in lines if line.startswith('flotta_gateway_requests_total{code="OK",operation="PUT"')
        ]
        handled = [line for line in lines if "grpc_server_handled_total" in line and 'grpc_method="Batch"' in line]
        good = [line for line in handled if 'grpc_code="OK"' in line]
        return tuple(sum(float(line.rpartition(" ")[2]) for line in found) for found in (operations, good))  # type: ignore[return-value]

    ask(doors, put(b"counted"))
    before = counts()
    ask(doors, *(put(b"counted-%d" % number) for number in range(30)))
    after = counts()
    assert (after[0] - before[0], after[1] - before[1]) == (30, 1)


def test_the_client_library_is_understood(doors: Doors) -> None:
    async def all_of_it() -> None:
        async with AsyncClient(doors.gateway.address, timeout_ms=20_000) as client:
            found = await client.batch([Put("sdk", "1"), Get("sdk"), Put("sdk", "2", if_absent=True), Delete("sdk")])
            assert isinstance(found[0], int) and isinstance(found[3], int) and found[0] < found[3]
            assert isinstance(found[1], flotta.Entry) and found[1].value == b"1"
            assert isinstance(found[2], flotta.AlreadyExistsError)
            with pytest.raises(flotta.InvalidArgumentError, match="the limit is 1000"):
                await client.batch([Get("k")] * (ITEMS_MAX + 1))
            for value in (bytes(BYTES_MAX // 3 + 50_000), bytes(6 * MIB)):
                with pytest.raises(flotta.PayloadTooLargeError):
                    await client.batch([Put(f"k{n}", value) for n in range(3)])

    asyncio.run(all_of_it())
