"""Rows of a backup come into a shard as they were, and never in the place of anything."""

from __future__ import annotations

from flotta_runtime.hashing import shard_index
from flotta_runtime.saved_rows import SavedRow
from flotta_storage.core.loads import LoadKind, LoadResult
from flotta_storage.core.reads import Miss, next_expiry_ms
from flotta_storage.core.rows import header_of, value_of
from flotta_storage.core.writes import Write, WriteKind
from storage_support import ShardModel

ROW = SavedRow(b"k", b"v", 70, 10, 20, 0)
EXPIRING = SavedRow(b"e", b"v", 80, 10, 20, 500)


def test_rows_keep_versions_times_and_expiry() -> None:
    shard = ShardModel(revision_base=100)
    assert shard.load(ROW, EXPIRING, at_ms=50) == LoadResult(LoadKind.LOADED, 2)
    row = shard.read(b"k")
    assert isinstance(row, bytes)
    assert (header_of(row), value_of(row)) == ((70, 10, 20, 0), b"v")
    assert next_expiry_ms(shard.view) == 500
    assert shard.read(b"e") is not Miss.ABSENT
    shard.expire(500)
    assert shard.read(b"e") is Miss.ABSENT
    assert not any(b"e" in key[1:] for key in shard.rows if key[:1] in (b"d", b"t"))


def test_versions_go_on_above_those_loaded_and_conditions_hold() -> None:
    shard = ShardModel(revision_base=100)
    shard.load(ROW)
    wrong, right = shard.write(Write(b"k", b"w", if_version_equals=69), Write(b"k", b"w", if_version_equals=70))
    assert (wrong.kind, right.kind) == (WriteKind.VERSION_MISMATCH, WriteKind.OK)
    assert right.version > 100


def test_a_batch_may_be_loaded_again() -> None:
    shard = ShardModel(revision_base=100)
    shard.load(ROW, EXPIRING)
    before = dict(shard.rows)
    assert shard.load(ROW, EXPIRING) == LoadResult(LoadKind.LOADED, 0)
    assert shard.rows == before


def test_a_row_in_the_way_is_a_conflict_and_nothing_is_loaded() -> None:
    shard = ShardModel(revision_base=100)
    shard.write(Write(b"k", b"mine"))
    before = dict(shard.rows)
    assert shard.load(EXPIRING, ROW) == LoadResult(LoadKind.CONFLICT, 0, b"k")
    assert shard.rows == before


def test_a_version_that_is_still_to_come_is_refused() -> None:
    shard = ShardModel(revision_base=10)
    before = dict(shard.rows)
    assert shard.load(SavedRow(b"k", b"v", 12, 1, 1, 0)) == LoadResult(LoadKind.TOO_NEW, 0, b"k")
    assert shard.rows == before


def test_a_key_of_another_shard_is_refused() -> None:
    index = shard_index(b"k", 4)
    right, wrong = ShardModel(index, 4, 100), ShardModel((index + 1) % 4, 4, 100)
    assert right.load(ROW).kind is LoadKind.LOADED
    assert wrong.load(ROW) == LoadResult(LoadKind.MOVED, 0, b"k")
