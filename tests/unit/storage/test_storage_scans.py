"""A shard's piece of a scan: the rows of a model, whatever the bounds, and in small steps beside other work."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
from flotta_proto.flotta import storage_pb2 as pb
from flotta_proto.kvdb.gateway_pb2 import EVENTUAL, READ_YOUR_WRITES, KeyValue, Status
from flotta_runtime.hashing import shard_index
from flotta_storage.core import scans
from flotta_storage.core.commands import birth_rows
from flotta_storage.core.rows import encode_row
from flotta_storage.core.scans import ROW_BYTES, STEP_ROWS, Cursor
from flotta_storage.core.shard_state import birth_state
from flotta_storage.scanning import RUNNING_MAX
from hypothesis import given
from hypothesis import strategies as st
from storage_support import DictView
from test_storage_handler import Setup, get, put

NOW_MS = 1_000
KEYS = st.binary(min_size=1, max_size=3)
BOUNDS = st.binary(max_size=3)


def view_of(rows: dict[bytes, tuple[bytes, int]], count: int = 1) -> DictView:
    """Keys with their values and expiries, in the store of shard 0 of `count`."""
    stored = dict(birth_rows("shard-0", "default", 0, count))
    stored |= {b"d" + key: encode_row(7, 1, 2, expire_ms, value) for key, (value, expire_ms) in rows.items()}
    return DictView(stored)


def piece(view: DictView, count: int = 1, stop_after: int = 0, **fields: Any) -> pb.ScanPart:
    """The whole piece, or what it is after so many steps."""
    state = birth_state("shard-0", "default", 0, count)
    cursor = Cursor(view, state, pb.ScanRange(**{"rows_max": 1 << 16, "bytes_max": 1 << 20, **fields}), NOW_MS)
    steps = 0
    while not cursor.ended:
        cursor.step()
        steps += 1
        if steps == stop_after:
            cursor.stop()
    return cursor.part


def everything(view: DictView, count: int, bounds: dict[str, bytes], reverse: bool, **fields: Any) -> list[bytes]:
    """The keys of all pieces, each beginning where the one before it says that the rest begins."""
    found: list[bytes] = []
    for _ in range(1_000):
        part = piece(view, count, **bounds, reverse=reverse, **fields)
        found += part.keys
        if not part.rest:
            return found
        bounds["end" if reverse else "start"] = part.rest
    raise AssertionError("it does not end")


@given(
    st.dictionaries(KEYS, st.tuples(st.binary(max_size=90), st.sampled_from([0, NOW_MS, NOW_MS + 1])), max_size=60),
    *(BOUNDS, BOUNDS, st.booleans(), st.integers(1, 3), st.integers(1, 5), st.sampled_from([0, 80, 200, 1 << 20])),
    st.sampled_from([1, 3, 128]),
)
def test_pieces_add_up_to_what_a_model_has(
    rows: dict[bytes, tuple[bytes, int]],
    start: bytes,
    end: bytes,
    reverse: bool,
    count: int,
    rows_max: int,
    bytes_max: int,
    step_rows: int,
) -> None:
    with patch.object(scans, "STEP_ROWS", step_rows):
        check_pieces(rows, start, end, reverse, count, rows_max, bytes_max)


def check_pieces(
    rows: dict[bytes, tuple[bytes, int]],
    start: bytes,
    end: bytes,
    reverse: bool,
    count: int,
    rows_max: int,
    bytes_max: int,
) -> None:
    view = view_of(rows, count)
    expected = sorted(
        (
            key
            for key, (_, expire_ms) in rows.items()
            if key >= start
            and (not end or key < end)
            and shard_index(key, count) == 0
            and (not expire_ms or expire_ms > NOW_MS)
        ),
        reverse=reverse,
    )
    bounds = {"start": start, "end": end}
    assert everything(view, count, dict(bounds), reverse, rows_max=rows_max, bytes_max=1 << 20) == expected
    if bytes_max != 80:  # a value may be too large for that, which whoever asks has to see
        bytes_max = bytes_max and 200
        assert everything(view, count, dict(bounds), reverse, rows_max=3, bytes_max=bytes_max) == expected
    assert everything(view, count, dict(bounds), reverse, rows_max=9, bytes_max=80, keys_only=True) == expected
    counted = piece(view, count, **bounds, reverse=reverse, count_only=True)
    assert (counted.count, list(counted.keys), counted.rest) == (len(expected), [], b"")


def test_a_row_is_shown_as_it_is_stored() -> None:
    part = piece(view_of({b"a": (b"value", 0), b"b": (b"", NOW_MS + 5)}))
    entries = [KeyValue.FromString(entry) for entry in part.entries]
    assert entries == [
        KeyValue(key=b"a", value=b"value", version=7, create_time_ms=1, update_time_ms=2),
        KeyValue(key=b"b", version=7, create_time_ms=1, update_time_ms=2, expire_time_ms=NOW_MS + 5),
    ]
    assert (part.count, part.shard_id, part.shard_index, part.shard_count) == (2, "shard-0", 0, 1)
    only = piece(view_of({b"a": (b"value", 0)}), keys_only=True)
    assert KeyValue.FromString(only.entries[0]).value == b""


def test_a_row_that_does_not_fit_is_named_and_comes_alone_when_asked_for() -> None:
    view = view_of({b"a": (b"small", 0), b"b": (b"x" * 5_000, 0), b"c": (b"y" * 5_000, 0)})
    part = piece(view, bytes_max=1_000)
    assert (list(part.keys), part.rest) == ([b"a"], b"b")
    part = piece(view, bytes_max=1_000, start=b"b")
    assert (list(part.keys), part.rest) == ([], b"b")
    part = piece(view, bytes_max=0, start=b"b")
    assert (list(part.keys), part.rest) == ([b"b"], b"c")
    exactly = len(b"a") + len(b"small") + ROW_BYTES
    assert list(piece(view, bytes_max=exactly).keys) == [b"a"]
    assert list(piece(view, bytes_max=exactly - 1).keys) == []


@pytest.mark.parametrize("reverse", [False, True])
def test_a_piece_that_is_stopped_says_where_the_rest_begins(reverse: bool) -> None:
    rows = {b"%04d" % number: (b"v", 0) for number in range(3 * STEP_ROWS)}
    part = piece(view_of(rows), stop_after=1, reverse=reverse)
    assert len(part.keys) == STEP_ROWS
    rest = piece(view_of(rows), reverse=reverse, **{"end" if reverse else "start": part.rest})
    assert [*part.keys, *rest.keys] == sorted(rows, reverse=reverse)


def test_rows_of_nothing_but_expired_keys_still_get_on() -> None:
    rows = {b"%04d" % number: (b"v", NOW_MS) for number in range(3 * STEP_ROWS)}
    part = piece(view_of(rows), stop_after=1, rows_max=1)
    assert (part.count, part.rest) == (0, b"0001\x00")


def test_large_rows_are_not_all_held_at_once() -> None:
    class Counting(DictView):
        looked = 0

        def scan(self, *bounds: Any, **how: Any) -> Any:
            for row in super().scan(*bounds, **how):
                self.looked += 1
                yield row

    view = Counting(view_of({b"%04d" % number: (b"v" * 100_000, 0) for number in range(50)}).rows)
    part = piece(view, bytes_max=250_000)
    assert (len(part.keys), view.looked) == (2, 3)


# Through the handler


def scan(**fields: Any) -> pb.Operation:
    reading = {name: fields.pop(name) for name in ("consistency", "read_mode", "session_revision") if name in fields}
    more = {name: fields.pop(name) for name in ("epoch", "deadline_ms", "shard_id") if name in fields}
    asked = pb.ScanRange(**{"rows_max": 100, "bytes_max": 1 << 16, **fields})
    return pb.Operation(kind=pb.SCAN, scan=asked, **reading, **more)


def ended(setup: Setup, *operations: pb.Operation) -> list[pb.Reply]:
    """Begin them all, and run the passes until each has its answer."""
    found: list[pb.Reply] = []
    for call, operation in enumerate(operations):
        operation.call = call
        operation.shard_id = operation.shard_id or "shard-0"
    setup.handler.handle(operations, found.extend)
    while setup.passes:
        setup.passes.pop(0)()
    return sorted(found, key=lambda reply: reply.call)


def keys_of(reply: pb.Reply) -> list[bytes]:
    assert reply.code == Status.OK, reply
    return list(pb.ScanPart.FromString(reply.value).keys)


def filled(rows: int = 3, **fields: Any) -> Setup:
    setup = Setup(operations_max=5_000, bytes_max=1 << 26)
    setup.run(*(put(b"%04d" % number, **fields) for number in range(rows)))
    return setup


def test_a_strong_scan_waits_for_a_barrier_and_says_what_it_saw() -> None:
    setup = filled()
    setup.groups.on_barrier = lambda: setup.run(put(b"late"))
    (reply,) = ended(setup, scan())
    assert keys_of(reply) == [b"0000", b"0001", b"0002", b"late"]
    part = pb.ScanPart.FromString(reply.value)
    assert (part.revision, part.guarantee) == (reply.revision, pb.LINEARIZABLE)
    assert reply.revision == setup.groups.machine.applied_index()
    assert (setup.budget.operations, setup.budget.bytes) == (0, 0)


def test_weak_scans_need_no_barrier() -> None:
    setup = filled()
    before = len(setup.groups.barriers)
    (reply,) = ended(setup, scan(consistency=EVENTUAL))
    assert (len(keys_of(reply)), reply.guarantee) == (3, pb.ANY)
    assert len(setup.groups.barriers) == before
    (reply,) = ended(setup, scan(read_mode=READ_YOUR_WRITES, session_revision=4, consistency=EVENTUAL))
    assert reply.guarantee == pb.SESSION
    (reply,) = ended(setup, scan(read_mode=READ_YOUR_WRITES, session_revision=400, consistency=EVENTUAL))
    assert reply.code == Status.PRECONDITION_FAILED


def test_a_scan_sees_one_state_however_slowly_it_is_made() -> None:
    setup = filled(3 * STEP_ROWS)
    found: list[pb.Reply] = []
    operation = scan(rows_max=1_000)
    operation.shard_id = "shard-0"
    setup.handler.handle([operation], found.extend)
    passes = 0
    while setup.passes:
        setup.passes.pop(0)()
        passes += 1
        setup.run(*(pb.Operation(kind=pb.DELETE, key=b"%04d" % number) for number in range(3 * STEP_ROWS)))
    assert passes > 3
    assert len(keys_of(found[0])) == 3 * STEP_ROWS


def test_one_step_a_pass_and_reads_between_them() -> None:
    setup = filled(4 * STEP_ROWS)
    found: list[pb.Reply] = []
    for call in range(RUNNING_MAX + 3):
        operation = scan(rows_max=1_000)
        operation.call, operation.shard_id = call, "shard-0"
        setup.handler.handle([operation], found.extend)
    while setup.passes:
        assert len(setup.passes) == 1, "a pass is one step of one scan"
        setup.passes.pop(0)()
        assert setup.run(get(b"0000"))[0].code == Status.OK
    assert [len(keys_of(reply)) for reply in found] == [4 * STEP_ROWS] * (RUNNING_MAX + 3)
    assert setup.scans.scans_open == 0


def test_half_of_the_time_is_for_the_way_back() -> None:
    setup = filled(4 * STEP_ROWS)
    found: list[pb.Reply] = []
    operation = scan(rows_max=1_000, deadline_ms=200)
    operation.shard_id = "shard-0"
    setup.handler.handle([operation], found.extend)
    while setup.passes:
        setup.clock.advance(60)
        setup.passes.pop(0)()
    part = pb.ScanPart.FromString(found[0].value)
    assert (len(part.keys), part.rest) == (2 * STEP_ROWS, b"%04d\x00" % (2 * STEP_ROWS - 1))


def test_what_the_clock_calls_expired_is_expired_first() -> None:
    setup = filled(2, ttl_ms=1_000)
    setup.run(put(b"lives"))
    assert len(keys_of(ended(setup, scan())[0])) == 3
    setup.clock.advance(2_000)
    before = len(setup.groups.proposals)
    (reply,) = ended(setup, scan())
    assert (keys_of(reply), reply.guarantee) == ([b"lives"], pb.LINEARIZABLE)
    assert len(setup.groups.proposals) == before + 1


def test_only_a_leader_can_expire() -> None:
    setup = filled(2, ttl_ms=1_000)
    setup.clock.advance(2_000)
    setup.groups.leads = False
    (reply,) = ended(setup, scan())
    assert reply.code == Status.NOT_LEADER
    assert len(keys_of(ended(setup, scan(consistency=EVENTUAL))[0])) == 2


def test_an_older_map_is_told_and_an_unknown_epoch_is_answered() -> None:
    setup = filled()
    stale, unknown, elsewhere = ended(setup, scan(epoch=9), scan(), scan(shard_id="shard-9"))
    assert (stale.code, elsewhere.code) == (Status.SHARD_MOVED, Status.SHARD_MOVED)
    assert elsewhere.new_node_hint == "host-2:1"
    assert len(keys_of(unknown)) == 3


def test_what_can_never_be_done_is_said() -> None:
    setup = filled()
    answers = ended(
        setup,
        *(scan(rows_max=0), scan(rows_max=1 << 17), scan(bytes_max=1 << 30), scan(start=b"k" * 1_026)),
        *(scan(end=b"k" * 1_026), scan(consistency=9), scan(start=b"z", end=b"a")),
    )
    assert [reply.code for reply in answers] == [Status.INVALID_ARGUMENT] * 6 + [Status.OK]
    words = ["scan.rows_max is 0", "131072", "1073741824", "1026 bytes", "scan.end", "consistency"]
    assert all(word in reply.message for word, reply in zip(words, answers, strict=False))
    assert keys_of(answers[6]) == []


def test_each_piece_has_room_before_it_begins() -> None:
    setup = Setup(operations_max=100, bytes_max=200_000)
    found: list[pb.Reply] = []
    for call in range(5):
        operation = scan(bytes_max=30_000)
        operation.call, operation.shard_id = call, "shard-0"
        setup.handler.handle([operation], found.extend)
    assert [reply.code for reply in found] == [Status.RATE_LIMITED] * 2, "scans have half of the room"
    assert setup.run(put())[0].code == Status.OK
    while setup.passes:
        setup.passes.pop(0)()
    assert sorted(reply.code for reply in found) == [Status.OK] * 3 + [Status.RATE_LIMITED] * 2
    assert (setup.budget.operations, setup.budget.bytes) == (0, 0)


def test_a_node_that_stops_answers_what_it_has_not_done() -> None:
    setup = filled(4 * STEP_ROWS)
    found: list[pb.Reply] = []
    operation = scan(rows_max=1_000)
    operation.shard_id = "shard-0"
    setup.handler.handle([operation], found.extend)
    setup.passes.pop(0)()
    setup.handler.detach()
    assert [reply.code for reply in found] == [Status.UNAVAILABLE]
    while setup.passes:
        setup.passes.pop(0)()
    assert (len(found), setup.budget.operations, setup.budget.bytes) == (1, 0, 0)
