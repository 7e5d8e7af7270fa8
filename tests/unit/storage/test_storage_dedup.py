from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from flotta_storage.core import keys
from flotta_storage.core.dedup import SKEW_MS, WINDOW_MS, attempt_ms
from flotta_storage.core.reads import Miss, next_expiry_ms
from flotta_storage.core.rows import header_of, value_of
from flotta_storage.core.writes import Write, WriteKind, WriteResult, fingerprint
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_support import ShardModel

T0 = 1_700_000_000_000


def once(key: bytes, value: bytes, request_id: bytes, **fields: Any) -> Write:
    write = Write(key, value, request_id=request_id)._replace(**fields)
    return write._replace(fingerprint=fingerprint(write))


def test_a_repeated_request_is_answered_and_not_executed() -> None:
    shard = ShardModel()
    write = once(b"k", b"v", b"r1")
    first, second = shard.write(write, write, at_ms=T0)
    assert first == WriteResult(WriteKind.OK, 2, 2)
    assert second == WriteResult(WriteKind.OK, 2, 2, True)
    shard.write(Write(b"k", b"other"), at_ms=T0)
    assert shard.write(write._replace(epoch=1), at_ms=T0)[0] == second
    row = shard.read(b"k")
    assert isinstance(row, bytes)
    assert value_of(row) == b"other"


def test_rejections_are_outcomes_too() -> None:
    shard = ShardModel()
    delete = once(b"k", b"", b"r1", delete=True)
    assert shard.write(delete, at_ms=T0)[0].kind is WriteKind.NOT_FOUND
    shard.write(Write(b"k", b"v"), at_ms=T0)
    repeated = shard.write(delete, at_ms=T0)[0]
    assert (repeated.kind, repeated.duplicate) == (WriteKind.NOT_FOUND, True)
    create = once(b"k", b"w", b"r2", if_not_exists=True)
    refused = shard.write(create, at_ms=T0)[0]
    shard.write(Write(b"k", delete=True), at_ms=T0)
    assert shard.write(create, at_ms=T0)[0] == replace(refused, duplicate=True)
    assert refused.kind is WriteKind.ALREADY_EXISTS
    assert shard.read(b"k") is Miss.ABSENT


def test_a_repeated_delete_is_told_what_the_first_one_did() -> None:
    shard = ShardModel()
    shard.write(Write(b"k", b"v"), at_ms=T0)
    delete = once(b"k", b"", b"r1", delete=True)
    first = shard.write(delete, at_ms=T0)[0]
    assert first.kind is WriteKind.OK and first.version > 2, "the version of the delete itself"
    shard.write(Write(b"k", b"someone else's"), at_ms=T0)
    assert shard.write(delete, at_ms=T0)[0] == replace(first, duplicate=True)
    row = shard.read(b"k")
    assert isinstance(row, bytes) and value_of(row) == b"someone else's"


def test_another_payload_under_the_same_id_is_a_conflict_and_the_key_is_part_of_the_identity() -> None:
    shard = ShardModel()
    shard.write(once(b"k", b"v", b"r1"), at_ms=T0)
    assert shard.write(once(b"k", b"w", b"r1"), at_ms=T0)[0].kind is WriteKind.DEDUP_CONFLICT
    assert shard.write(once(b"l", b"w", b"r1"), at_ms=T0)[0].kind is WriteKind.OK
    row = shard.read(b"k")
    assert isinstance(row, bytes)
    assert value_of(row) == b"v"


def test_a_write_to_a_foreign_key_leaves_no_dedup_row() -> None:
    shard = ShardModel(shard_index=1, shard_count=8)
    before = dict(shard.rows)
    assert shard.write(once(b"a", b"v", b"r1"), at_ms=T0)[0].kind is WriteKind.SHARD_MOVED
    assert shard.rows == before


def test_the_window_is_group_time() -> None:
    shard = ShardModel()
    write = once(b"k", b"v", b"r1")
    shard.write(write, at_ms=T0)
    assert shard.write(write, at_ms=T0 + WINDOW_MS - 1)[0].duplicate
    again = shard.write(write, at_ms=T0 + WINDOW_MS)[0]
    assert (again.kind, again.duplicate) == (WriteKind.OK, False)


def test_ids_that_carry_their_time_are_refused_outside_the_window() -> None:
    shard = ShardModel()
    assert attempt_ms(b"flotta:123:x") == 123
    assert (
        attempt_ms(b"flotta::x") is attempt_ms(b"flotta:12") is attempt_ms(b"flotta:1a:x") is attempt_ms(b"x") is None
    )

    def kind(first_ms: int, now_ms: int) -> WriteKind:
        result = shard.write(once(b"k", b"v", b"flotta:%d:%d" % (first_ms, now_ms)), at_ms=now_ms)[0]
        assert isinstance(result.kind, WriteKind)
        return result.kind

    assert kind(T0 + SKEW_MS, T0) is WriteKind.OK
    assert kind(T0 + SKEW_MS + 1, T0) is WriteKind.DEDUP_UNTIMELY
    assert kind(T0 - WINDOW_MS + SKEW_MS + 1, T0) is WriteKind.OK
    assert kind(T0 - WINDOW_MS + SKEW_MS, T0) is WriteKind.DEDUP_UNTIMELY


@settings(max_examples=200, deadline=None)
@given(
    skew=st.integers(-2 * SKEW_MS, 2 * SKEW_MS),
    waits=st.lists(st.integers(0, WINDOW_MS), min_size=1, max_size=6),
)
def test_a_timed_id_never_runs_twice(skew: int, waits: list[int]) -> None:
    shard = ShardModel()
    write = once(b"k", b"v", b"flotta:%d:x" % (T0 + skew))
    now = T0
    executed = 0
    for wait in waits:
        now += wait
        result = shard.write(write, at_ms=now)[0]
        executed += result.kind is WriteKind.OK and not result.duplicate
    assert executed <= 1


@pytest.mark.parametrize("sweeps", ["expire", "records"])
def test_rows_out_of_the_window_are_removed(sweeps: str) -> None:
    shard = ShardModel()
    shard.write(*(once(b"k", b"v", b"r%d" % i) for i in range(5)), at_ms=T0)
    assert next_expiry_ms(shard.view) == T0 + WINDOW_MS
    later = T0 + WINDOW_MS
    if sweeps == "expire":
        assert shard.expire(later - 1, 10).swept == 0
        assert shard.expire(later, 3) == (3, True, later)
        assert shard.expire(later, 10) == (2, False, later)
    else:
        shard.write(*(once(b"k", b"v", b"s%d" % i) for i in range(3)), at_ms=later)
        shard.expire(later + WINDOW_MS, 10)
    assert [key for key in shard.rows if key.startswith(b"q")] == []
    row = shard.read(b"k")
    assert isinstance(row, bytes)
    assert header_of(row).version
    assert set(shard.rows) == {keys.SHARD_KEY, keys.data_key(b"k")}
