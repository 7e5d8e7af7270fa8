"""Exactly-once rows: what a retry is told, and when a row goes."""

from __future__ import annotations

import pytest
from embedded_harness import WINDOW_MS, make_registry, put
from flotta_consensus.api import Entry, Members
from flotta_embedded.dedup import (
    CONFLICT,
    EXPIRY,
    FRESH,
    KEY_BYTES_MAX,
    ROWS,
    DedupRun,
    Duplicate,
    expiry_key,
    fingerprint,
    row_key,
    row_of_expiry_key,
    split_row_key,
    sweep,
)
from flotta_embedded.machine import Machine
from flotta_embedded.overlay import Layer
from flotta_embedded.simulated import SimEngine
from hypothesis import given
from hypothesis import strategies as st

MARK = fingerprint(b"payload")


def layer() -> Layer:
    engine = SimEngine()
    engine.create("s")
    return Layer(engine.view("s"))


def test_a_retry_gets_the_first_outcome_until_the_window_ends() -> None:
    overlay = layer()
    row = row_key(b"t", b"k", b"id")
    run = DedupRun(overlay, 100, last_ms=1000)
    assert run.lookup(row, MARK, 1000) is FRESH
    run.record(row, MARK, b"outcome", 1000)
    for now_ms in (1000, 1099):
        run = DedupRun(overlay, 100, last_ms=now_ms)
        assert run.lookup(row, MARK, now_ms) == Duplicate(b"outcome", 1000)
        assert run.lookup(row, fingerprint(b"other"), now_ms) is CONFLICT
    run = DedupRun(overlay, 100, last_ms=1100)
    assert run.lookup(row, MARK, 1100) is FRESH
    assert run.lookup(row, fingerprint(b"other"), 1100) is FRESH


def test_ids_are_per_table_and_key() -> None:
    overlay = layer()
    run = DedupRun(overlay, 100, last_ms=1, commands=4)
    rows = [
        row_key(*parts)
        for parts in ((b"t", b"k", b"id"), (b"u", b"k", b"id"), (b"t", b"l", b"id"), (b"t", b"", b"kid"))
    ]
    assert len(set(rows)) == 4
    for at, row in enumerate(rows):
        assert run.lookup(row, MARK, 1) is FRESH
        run.record(row, MARK, b"%d" % at, 1)
    assert [run.lookup(row, MARK, 1) for row in rows] == [Duplicate(b"%d" % at, 1) for at in range(4)]


@given(
    table=st.binary(max_size=255),
    key=st.binary(max_size=300),
    request_id=st.binary(min_size=1, max_size=256),
    at_ms=st.integers(0, (1 << 64) - 1),
)
def test_keys_can_be_taken_apart_again(table: bytes, key: bytes, request_id: bytes, at_ms: int) -> None:
    row = row_key(table, key, request_id)
    assert split_row_key(row) == (table, key, request_id)
    assert row_of_expiry_key(expiry_key(at_ms, row)) == row


def test_limits_are_named() -> None:
    with pytest.raises(ValueError, match="request id of 0 bytes"):
        row_key(b"t", b"k", b"")
    with pytest.raises(ValueError, match="request id of 257 bytes"):
        row_key(b"t", b"k", b"x" * 257)
    with pytest.raises(ValueError, match="over 255 or 65535"):
        row_key(b"t", b"k" * (KEY_BYTES_MAX + 1), b"id")
    with pytest.raises(ValueError, match="fingerprint of 1 bytes"):
        DedupRun(layer(), 100, last_ms=0).record(row_key(b"t", b"k", b"i"), b"x", b"", 0)
    with pytest.raises(ValueError, match="window_ms 0"):
        DedupRun(layer(), 0, last_ms=0)


def counts(machine: Machine) -> tuple[int, int]:
    view = machine.view()
    rows = {key for key, _ in view.scan(ROWS, EXPIRY)}
    index = {row_of_expiry_key(key) for key, _ in view.scan(EXPIRY, b"qy")}
    assert rows == index, "a row and its index row come and go together"
    return len(rows), len(index)


def test_each_record_removes_a_few_expired_rows() -> None:
    machine = Machine.create(SimEngine(), "m", make_registry(), members=Members((1,)))
    machine.apply_many([put(2 + at, b"k", b"v", stamp_ms=100, request_id=b"old%d" % at) for at in range(10)])
    assert counts(machine) == (10, 10)
    machine.apply_many([put(12, b"k", b"v", stamp_ms=100 + WINDOW_MS - 1, request_id=b"inside")])
    assert counts(machine) == (11, 11)
    for at in range(5):
        machine.apply_many([put(13 + at, b"k", b"v", stamp_ms=100 + WINDOW_MS, request_id=b"new%d" % at)])
        assert counts(machine) == (10 - at, 10 - at)
    machine.apply_many([put(18, b"k", b"v", stamp_ms=100 + WINDOW_MS, request_id=b"last")])
    assert counts(machine) == (7, 7)


def test_a_sweep_of_its_own_is_bounded() -> None:
    overlay = layer()
    for at in range(7):
        row = row_key(b"t", b"k", b"%d" % at)
        DedupRun(overlay, 100, last_ms=at).record(row, MARK, b"", at)
    assert sweep(overlay, 100, 99, 10) == 0
    assert sweep(overlay, 100, 103, 3) == 3
    assert sweep(overlay, 100, 103, 3) == 1
    assert len(list(overlay.scan(b"q", b"r"))) == 2 * 3


def test_a_row_recorded_again_in_the_batch_that_would_sweep_it_stays() -> None:
    machine = Machine.create(SimEngine(), "m", make_registry(), members=Members((1,)))
    ids = [b"1", b"2", b"3", b"4"]
    machine.apply_many([put(2 + at, b"k", b"v", stamp_ms=0, request_id=name) for at, name in enumerate(ids)])
    # The first of these sweeps 1 and 2 and replaces 4; the second sweeps 3, and must not take the new 4 for the old.
    again = [put(6, b"k", b"v", stamp_ms=WINDOW_MS, request_id=b"4"), put(7, b"k", b"v", request_id=b"5")]
    assert machine.apply_many(again) == [(6, 5), (7, 6)]
    assert counts(machine) == (2, 2)
    assert machine.apply_many([put(8, b"k", b"v", request_id=b"4")]) == [("duplicate", 6)]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 1, WINDOW_MS - 1, WINDOW_MS]),  # time that passes
        st.sampled_from([b"a", b"b"]),  # key
        st.sampled_from([b"1", b"2"]),  # value, hence fingerprint
        st.sampled_from([b"", b"w", b"x", b"y", b"z"]),  # request id
    ),
    max_size=40,
)


@given(OPERATIONS, st.data())
def test_what_is_swept_does_not_depend_on_the_batches(
    operations: list[tuple[int, bytes, bytes, bytes]], data: st.DataObject
) -> None:
    entries: list[Entry] = []
    now_ms = 0
    for at, (passed_ms, key, value, request_id) in enumerate(operations):
        now_ms += passed_ms
        entries.append(put(2 + at, key, value, stamp_ms=now_ms, request_id=request_id))
    engine = SimEngine()
    single = Machine.create(engine, "single", make_registry(), members=Members((1,)))
    batched = Machine.create(engine, "batched", make_registry(), members=Members((1,)))
    expected = [result for entry in entries for result in single.apply_many([entry])]
    results = []
    while entries:
        cut = data.draw(st.integers(1, len(entries)))
        results += batched.apply_many(entries[:cut])
        entries = entries[cut:]
    assert results == expected
    assert list(batched.view().scan(b"", None)) == list(single.view().scan(b"", None))
    assert counts(batched) == counts(single)
