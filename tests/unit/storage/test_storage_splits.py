"""A shard divides: what the entry decides, which rows go where, and what remains until they have been pruned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flotta_consensus.api import Members, replica_id
from flotta_embedded.dedup import EXPIRY, EXPIRY_END, ROWS, row_key
from flotta_runtime.hashing import key_hash
from flotta_storage.core import divisions, keys
from flotta_storage.core.dedup import WINDOW_MS
from flotta_storage.core.divisions import Child, Division, decode_division, first_rows, inherited
from flotta_storage.core.reads import Miss, next_expiry_ms, read_many, shard_state
from flotta_storage.core.rows import header_of, value_of
from flotta_storage.core.splits import Split, SplitKind
from flotta_storage.core.writes import Write, WriteKind, fingerprint
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_support import ShardModel

T0 = 1_700_000_000_000
VOTERS = (replica_id(1, 11), replica_id(2, 12), replica_id(3, 13))


def once(key: bytes, value: bytes, request_id: bytes, **fields: Any) -> Write:
    write = Write(key, value, request_id=request_id)._replace(**fields)
    return write._replace(fingerprint=fingerprint(write))


def split_of(index: int, count: int, factor: int, **fields: Any) -> Split:
    children = tuple(
        Child(f"shard-{one}", 100 + one, one, 50 + one) for one in range(index + count, count * factor, count)
    )
    return replace(Split(count * factor, 1, VOTERS, children), **fields)


def owned_keys(index: int, count: int, number: int) -> list[bytes]:
    found = (b"key-%d" % one for one in range(100_000))
    return [key for key in found if key_hash(key) % count == index][:number]


def division_of(shard: ShardModel) -> Division | None:
    raw = shard.rows.get(keys.DIVISION_KEY)
    return None if raw is None else decode_division(raw)


def child_model(shard: ShardModel, index: int) -> ShardModel:
    """The child as a node makes it of the parent's rows, as they are now."""
    division, state = division_of(shard), shard_state(shard.view)
    assert division is not None and state is not None
    child = next(one for one in division.children if one.shard_index == index)
    made = ShardModel(revision_base=division.revision)
    made.rows = dict(row for found in inherited(shard.view, division) for row in found.get(index, ()))
    made.rows.update(first_rows(state, division, child))
    made.group_time_ms = division.group_time_ms
    return made


def data_of(shard: ShardModel) -> dict[bytes, bytes]:
    return {key[1:]: row for key, row in shard.view.scan(keys.DATA_PREFIX, keys.DATA_END)}


def test_the_entry_changes_who_owns_what_and_nothing_else() -> None:
    shard = ShardModel(1, 2)
    keys_there = owned_keys(1, 2, 40)
    shard.write(*(Write(key, b"v-" + key, epoch=1) for key in keys_there), at_ms=T0)
    before = data_of(shard)
    assert shard.split(split_of(1, 2, 3), at_ms=T0 + 5) is SplitKind.DIVIDED
    assert data_of(shard) == before
    state, division = shard_state(shard.view), division_of(shard)
    assert state is not None and (state.epoch, state.shard_index, state.shard_count) == (2, 1, 6)
    assert division == Division(6, shard.index, T0 + 5, VOTERS, split_of(1, 2, 3).children)
    assert [child.shard_index for child in division.children] == [3, 5]
    assert division.children[0].voters(VOTERS) == (replica_id(1, 53), replica_id(2, 53), replica_id(3, 53))
    for key in keys_there:
        mine = key_hash(key) % 6 == 1
        (_, (old,)), (_, (now,)) = (read_many(shard.view, [(key, epoch)], T0) for epoch in (1, 0))
        assert old is Miss.MOVED, "whoever still routes by the old epoch"
        assert (now is Miss.MOVED) is not mine
        (late, bare) = shard.write(Write(key, b"x", epoch=1), Write(key, b"v-" + key), at_ms=T0)
        assert late.kind is WriteKind.SHARD_MOVED
        assert bare.kind is (WriteKind.OK if mine else WriteKind.SHARD_MOVED)


def test_a_split_takes_effect_once_and_only_as_it_was_meant() -> None:
    shard = ShardModel(0, 2)
    good = split_of(0, 2, 2)
    for misfit in (
        replace(good, shard_count=3),
        replace(good, children=()),
        replace(good, children=good.children * 2),
        replace(good, children=(replace(good.children[0], shard_index=3),)),
        replace(good, voters=()),
    ):
        before = dict(shard.rows)
        assert shard.split(misfit) is SplitKind.MISFIT
        assert shard.rows == before
    assert shard.split(replace(good, conf_index=7)) is SplitKind.NOT_NOW, "the voters are others by now"
    shard.members(Members(VOTERS), Members(VOTERS, learners=(replica_id(4, 9),)))
    assert shard.split(good) is SplitKind.NOT_NOW
    assert shard.split(replace(good, conf_index=shard.index - 1)) is SplitKind.DIVIDED
    rows = dict(shard.rows)
    assert shard.split(good) is SplitKind.ALREADY
    assert shard.split(split_of(0, 4, 2)) is SplitKind.NOT_NOW, "the first division is not done with"
    assert shard.rows == rows
    while not shard.prune(1).done:
        pass
    assert division_of(shard) is None
    assert shard.split(replace(split_of(0, 4, 2), conf_index=shard_state(shard.view).conf_index)) is SplitKind.DIVIDED  # type: ignore[union-attr]


def test_an_empty_replica_refuses() -> None:
    shard = ShardModel()
    shard.rows.clear()
    assert shard.split(split_of(0, 1, 2)) is SplitKind.NOT_NOW
    assert shard.prune() == (0, True)


KEYS = owned_keys(0, 2, 24)
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(KEYS),
        st.sampled_from([b"", b"r1", b"r2"]),
        st.sampled_from([0, 50, 700]),
        st.booleans(),
        st.integers(0, 60),
    ),
    max_size=60,
)


def run(shard: ShardModel, operations: list[Any], at_ms: int) -> int:
    for key, request_id, ttl_ms, delete, later_ms in operations:
        at_ms += later_ms
        ttl_ms = 0 if delete else ttl_ms
        write = Write(key, b"" if delete else b"v%d" % at_ms, delete=delete, ttl_ms=ttl_ms)
        if request_id:
            write = write._replace(request_id=request_id)
            write = write._replace(fingerprint=fingerprint(write))
        shard.write(write, at_ms=at_ms)
    return at_ms


def index_rows(shard: ShardModel) -> tuple[set[bytes], set[bytes]]:
    """Index rows as they are, and as the rows that they stand beside want them."""
    there = {key for low, high in ((keys.EXPIRY_PREFIX, keys.EXPIRY_END), (EXPIRY, EXPIRY_END)) for key in
             (row[0] for row in shard.view.scan(low, high))}  # fmt: skip
    wanted = set()
    for kind in (divisions.DATA, divisions.DEDUP):
        for row_key_, row in shard.view.scan(kind.low, kind.high):
            beside = kind.beside(row_key_, row)
            if beside is not None:
                wanted.add(beside)
    return there, wanted


@settings(max_examples=150, deadline=None)
@given(OPERATIONS, OPERATIONS, st.integers(2, 5), st.integers(1, 30))
def test_every_row_goes_to_exactly_one_shard_with_its_index_row(
    before: list[Any], after: list[Any], factor: int, rows_max: int
) -> None:
    shard = ShardModel(0, 2)
    at_ms = run(shard, before, T0)
    whole = dict(shard.rows)
    assert shard.split(split_of(0, 2, factor), at_ms=at_ms) is SplitKind.DIVIDED
    division = division_of(shard)
    assert division is not None
    early = {child.shard_index: child_model(shard, child.shard_index) for child in division.children}
    # The parent serves on, and another node makes its children later: they are the same.
    run(shard, after, at_ms)
    late = {child.shard_index: child_model(shard, child.shard_index) for child in division.children}
    assert {index: model.rows for index, model in early.items()} == {index: one.rows for index, one in late.items()}
    while not shard.prune(rows_max).done:
        pass
    parts = [shard, *early.values()]
    states = [shard_state(part.view) for part in parts]
    for part, state in zip(parts, states, strict=True):
        assert state is not None and state.shard_count == 2 * factor
        there, wanted = index_rows(part)
        assert there == wanted
        for kind in (divisions.DATA, divisions.DEDUP):
            for row, _ in part.view.scan(kind.low, kind.high):
                assert state.owns(kind.key_of(row))
    for kind in (divisions.DATA, divisions.DEDUP):
        inherited_rows = {row for part in early.values() for row in part.view.scan(kind.low, kind.high)}
        theirs = {(row, value) for row, value in whole.items() if kind.low <= row < kind.high}
        parent = states[0]
        assert parent is not None
        assert inherited_rows == {one for one in theirs if not parent.owns(kind.key_of(one[0]))}


def test_a_repeated_write_that_crosses_the_division_is_answered_and_not_executed() -> None:
    shard = ShardModel()
    mine, theirs = owned_keys(0, 2, 1)[0], owned_keys(1, 2, 1)[0]
    for key in (mine, theirs):
        shard.write(once(key, b"v", b"id"), Write(key, b"later"), at_ms=T0)
    assert shard.split(split_of(0, 1, 2), at_ms=T0) is SplitKind.DIVIDED
    child = child_model(shard, 1)
    while not shard.prune(1).done:
        pass
    for part, key in ((shard, mine), (child, theirs)):
        (again, conflict, fresh) = part.write(
            once(key, b"v", b"id"), once(key, b"w", b"id"), once(key, b"v", b"id2"), at_ms=T0 + 1
        )
        assert (again.kind, again.duplicate, again.revision) == (WriteKind.OK, True, again.version)
        assert conflict.kind is WriteKind.DEDUP_CONFLICT
        assert fresh.kind is WriteKind.OK and not fresh.duplicate
        assert fresh.version > again.version, "a version of a child is above all that it inherited"
    (moved,) = shard.write(once(theirs, b"v", b"id"), at_ms=T0)
    assert moved.kind is WriteKind.SHARD_MOVED
    assert shard.rows.get(row_key(b"default", theirs, b"id")) is None
    assert not [row for row in child.view.scan(ROWS, EXPIRY) if mine in row[0]]


def test_nothing_is_swept_before_the_rows_of_the_children_are_pruned() -> None:
    shard = ShardModel()
    mine, theirs = owned_keys(0, 2, 3), owned_keys(1, 2, 3)
    for key in (*mine, *theirs):
        shard.write(once(key, b"v", b"id-" + key, ttl_ms=10), at_ms=T0)
    assert shard.split(split_of(0, 1, 2), at_ms=T0) is SplitKind.DIVIDED
    before = {key: row for key, row in shard.rows.items() if key != keys.DIVISION_KEY}
    long_after = T0 + WINDOW_MS + 10
    swept = shard.expire(long_after)
    assert (swept.swept, swept.more, swept.now_ms) == (0, False, long_after), "time goes on"
    assert {key: row for key, row in shard.rows.items() if key != keys.DIVISION_KEY} == before
    assert shard.read(mine[0]) is Miss.ABSENT, "and what has expired is gone all the same"
    shard.write(once(mine[0], b"w", b"id-" + mine[0]), at_ms=long_after)
    child = child_model(shard, 1)
    assert next_expiry_ms(child.view) == T0 + 10
    assert child.expire(long_after).swept == 2 * len(theirs)
    while not shard.prune(2).done:
        pass
    assert shard.expire(long_after).swept == 2 * (len(mine) - 1)
    row = shard.read(mine[0])
    assert isinstance(row, bytes) and value_of(row) == b"w"


def test_pruning_is_bounded_and_begins_where_it_ended() -> None:
    shard = ShardModel()
    shard.write(*(Write(b"k%03d" % one, b"v") for one in range(50)), at_ms=T0)
    assert shard.split(split_of(0, 1, 5)) is SplitKind.DIVIDED
    steps = 0
    while True:
        before = len(data_of(shard))
        result = shard.prune(7)
        assert before - len(data_of(shard)) == result.rows <= 7
        steps += 1
        if result.done:
            break
        division = division_of(shard)
        assert division is not None and division.cursor, "from here on nobody may make a child of these rows"
    assert steps == 8
    assert {key_hash(key) % 5 for key in data_of(shard)} == {0}
    assert all(header_of(row).version for row in data_of(shard).values())


def rows_by_kind() -> Iterator[divisions.RowKind]:
    yield from divisions.inherited_kinds()


def test_the_kinds_of_rows_are_apart_and_in_order() -> None:
    data, dedup = rows_by_kind()
    assert data.low < data.high <= dedup.low < dedup.high


@pytest.mark.parametrize("rows_max", [0, 1025])
def test_a_prune_is_bounded(rows_max: int) -> None:
    from flotta_storage.core.splits import prune_payload

    with pytest.raises(ValueError, match="rows_max"):
        prune_payload(0, rows_max)
