"""Rows on their way into shards: each to the one that owns it, in batches that are bounded, none lost."""

from __future__ import annotations

from flotta_admin.copying.restore import BATCH_BYTES, BATCH_ROWS, HELD_BYTES_MAX, Batches
from flotta_runtime.hashing import shard_index
from flotta_runtime.saved_rows import SavedRow, read_rows
from hypothesis import given
from hypothesis import strategies as st


def row(number: int, size: int) -> SavedRow:
    return SavedRow(b"key-%d" % number, b"x" * size, number + 1, 1, 1, 0)


@given(st.lists(st.integers(0, 40_000), max_size=200), st.integers(1, 9), st.integers(1, 50))
def test_every_row_goes_to_its_shard_once_in_bounded_batches(sizes: list[int], shards: int, at_once: int) -> None:
    rows = [row(number, size) for number, size in enumerate(sizes)]
    batches = Batches(shards)
    sent: list[tuple[int, bytes]] = []
    for start in range(0, len(rows), at_once):
        sent += batches.add(rows[start : start + at_once])
    sent += batches.rest()
    assert batches.rest() == []
    found = []
    for index, encoded in sent:
        some = read_rows(encoded)
        assert some
        assert len(some) <= BATCH_ROWS
        assert len(encoded) <= BATCH_BYTES
        assert {shard_index(one.key, shards) for one in some} == {index}
        found += some
    assert sorted(found) == sorted(rows)


def test_one_row_above_the_size_of_a_batch_goes_alone() -> None:
    batches = Batches(1)
    sent = batches.add([row(1, 10), row(2, BATCH_BYTES + 1), row(3, 10)]) + batches.rest()
    assert [len(read_rows(encoded)) for _, encoded in sent] == [1, 1, 1]


def test_many_shards_hold_no_more_than_is_allowed_together() -> None:
    batches, held = Batches(4096), 0
    for number in range(3_000):
        made = row(number, 40_000)
        held += made.size
        for _, encoded in batches.add([made]):
            held -= len(encoded)
        assert held <= HELD_BYTES_MAX
