"""What a smart client does with each outcome, and how operations are put together into frames."""

from __future__ import annotations

import pytest
from flotta.outgoing import FRAME_BYTES_MAX, UNSENT_BYTES_MAX, Outgoing
from flotta.routing import Item, Lost, NotSent, Step, item_of, settle
from flotta.shard_map import Route
from flotta_proto.flotta.storage_pb2 import LINEARIZABLE, PUT, Operation, Reply
from flotta_proto.kvdb import gateway_pb2 as pb
from flotta_proto.kvdb.gateway_pb2 import Status

ROUTE = Route("shard-1", 4, "a:1", ("a:1", "b:2", "c:3"))


def read() -> Item:
    return item_of(pb.GetRequest(key=b"k"))


def write(*, safe: bool) -> Item:
    options = pb.WriteOptions(require_idempotency=safe)
    return item_of(pb.PutRequest(key=b"k", value=b"v", ctx=pb.RequestContext(request_id="id"), options=options))


def told(code: int, **more: str | int) -> Reply:
    return Reply(code=code, message="why", **more)  # type: ignore[arg-type]


def answered(item: Item) -> int:
    assert item.response is not None
    return item.response.status.code


def test_what_was_not_sent_is_tried_with_every_replica_before_a_pause() -> None:
    item = write(safe=False)
    steps = [(settle(item, address, NotSent("refused"), ROUTE), item.hint) for address in ("a:1", "b:2", "c:3")]
    assert steps == [(Step.AT_ONCE, "b:2"), (Step.AT_ONCE, "c:3"), (Step.LATER, "")]
    assert not item.tried
    item.out_of_time()
    assert answered(item) == Status.UNAVAILABLE


@pytest.mark.parametrize("outcome", [Lost("the stream broke"), told(Status.TIMEOUT)])
def test_a_lost_operation_is_sent_again_only_when_that_is_safe(outcome: Lost | Reply) -> None:
    assert settle(read(), "a:1", outcome, ROUTE) is Step.LATER
    assert settle(write(safe=True), "a:1", outcome, ROUTE) is Step.LATER
    unsafe = write(safe=False)
    assert settle(unsafe, "a:1", outcome, ROUTE) is Step.ANSWER
    assert answered(unsafe) == Status.TIMEOUT


@pytest.mark.parametrize("code", [Status.UNAVAILABLE, Status.NOT_LEADER, Status.SHARD_MOVED, Status.RATE_LIMITED])
def test_doubt_about_a_write_stays(code: int) -> None:
    item = write(safe=True)
    settle(item, "a:1", Lost("the stream broke"), ROUTE)
    if settle(item, "a:1", told(code), ROUTE) is Step.LATER:
        item.out_of_time()
    assert answered(item) == Status.TIMEOUT
    known = write(safe=True)
    settle(known, "a:1", Lost("the stream broke"), ROUTE)
    settle(known, "a:1", told(Status.VERSION_MISMATCH), ROUTE)
    assert answered(known) == Status.VERSION_MISMATCH
    reading = read()
    settle(reading, "a:1", Lost("the stream broke"), ROUTE)
    reading.last = Status(code=code)
    reading.out_of_time()
    assert answered(reading) == code


def test_hints_are_followed_once() -> None:
    item = read()
    assert settle(item, "a:1", told(Status.NOT_LEADER, leader_hint="b:2"), ROUTE) is Step.AT_ONCE
    assert item.addressed(ROUTE, 0.0) == "b:2"
    assert settle(item, "b:2", told(Status.NOT_LEADER, leader_hint="a:1"), ROUTE) is Step.LATER
    moved = write(safe=False)
    assert settle(moved, "a:1", told(Status.SHARD_MOVED, new_node_hint="d:4"), ROUTE) is Step.LATER
    assert moved.addressed(ROUTE, 0.0) == "d:4"


def test_a_refused_read_looks_elsewhere_and_a_refused_write_waits() -> None:
    item = read()
    assert settle(item, "a:1", told(Status.UNAVAILABLE), ROUTE) is Step.AT_ONCE
    assert item.hint == "b:2"
    assert settle(write(safe=True), "a:1", told(Status.UNAVAILABLE), ROUTE) is Step.LATER


def test_weak_reads_avoid_who_failed_them() -> None:
    weak = item_of(pb.GetRequest(key=b"k", options=pb.ReadOptions(consistency=pb.EVENTUAL)))
    assert {weak.addressed(ROUTE, choice) for choice in (0.0, 0.5, 0.99)} == {"a:1", "b:2", "c:3"}
    weak.tried |= {"a:1", "c:3"}
    assert {weak.addressed(ROUTE, choice) for choice in (0.0, 0.5, 0.99)} == {"b:2"}
    nobody = Route("shard-1", 4, "", ())
    assert weak.addressed(nobody, 0.5) == read().addressed(nobody, 0.5) == ""


def test_an_answer_carries_everything_the_node_said() -> None:
    item = read()
    reply = Reply(
        code=Status.OK, shard_id="shard-1", value=b"v", version=7, create_time_ms=1, revision=9, guarantee=LINEARIZABLE
    )
    assert settle(item, "a:1", reply, ROUTE) is Step.ANSWER
    assert item.response == pb.GetResponse(
        status=Status(code=Status.OK, shard_id="shard-1"),
        kv=pb.KeyValue(key=b"k", value=b"v", version=7, create_time_ms=1),
        revision=9,
        guarantee=pb.LINEARIZABLE,
    )
    put = write(safe=True)
    settle(put, "a:1", Reply(code=Status.OK, version=7, revision=7), ROUTE)
    assert isinstance(put.response, pb.PutResponse)
    assert (put.response.version, put.response.revision) == (7, 7)


def test_small_operations_share_a_frame_and_large_ones_go_alone() -> None:
    outgoing = Outgoing()
    assert outgoing.take() is None
    small = [Operation(kind=PUT, call=number, value=b"x" * 1_000) for number in range(3)]
    large = Operation(kind=PUT, call=9, value=b"x" * (2 * FRAME_BYTES_MAX))
    assert outgoing.add(small) and outgoing.add([large]) and outgoing.add(small)
    frames = []
    while (frame := outgoing.take()) is not None:
        frames.append([operation.call for operation in frame.operations])
    assert frames == [[0, 1, 2], [9], [0, 1, 2]]


def test_only_so_much_waits_and_there_is_room_again_afterwards() -> None:
    outgoing = Outgoing()
    half = Operation(kind=PUT, value=b"x" * (UNSENT_BYTES_MAX // 2 + 1))
    assert outgoing.add([half])
    assert not outgoing.add([half])
    assert outgoing.take() is not None
    assert outgoing.add([half])


def test_an_attempt_without_time_says_nothing_new() -> None:
    item = read()
    assert settle(item, "a:1", NotSent("UNAUTHENTICATED: no"), ROUTE) is not Step.ANSWER
    settle(item, "b:2", NotSent("no greeting within 0.0 s", out_of_time=True), ROUTE)
    assert item.last.message == "a:1: UNAUTHENTICATED: no"
    fresh = read()
    settle(fresh, "b:2", NotSent("no greeting within 0.1 s", out_of_time=True), ROUTE)
    assert fresh.last.message == "b:2: no greeting within 0.1 s"
