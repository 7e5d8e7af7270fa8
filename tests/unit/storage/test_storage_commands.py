from __future__ import annotations

from flotta_consensus.api import Members
from flotta_storage.core import keys
from flotta_storage.core.reads import Miss, next_expiry_ms, read_many, shard_state
from flotta_storage.core.rows import header_of, value_of
from flotta_storage.core.writes import Write, WriteKind, WriteResult
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_support import DictView, ShardModel


def value(shard: ShardModel, key: bytes) -> bytes | Miss:
    row = shard.read(key)
    return row if isinstance(row, Miss) else value_of(row)


def test_versions_are_revisions_and_times_are_group_time() -> None:
    shard = ShardModel(revision_base=1000)
    first, second = shard.write(Write(b"k", b"1"), Write(b"k", b"2"), at_ms=50)
    assert (first, second) == (WriteResult(WriteKind.OK, 1002, 1002), WriteResult(WriteKind.OK, 1003, 1003))
    shard.write(Write(b"k", b"3"), at_ms=40)  # a clock that went back stamps nothing earlier
    row = shard.read(b"k")
    assert isinstance(row, bytes)
    assert header_of(row) == (1004, 50, 50, 0)
    assert value_of(row) == b"3"


def test_delete_of_an_absent_key_is_not_found_and_changes_nothing() -> None:
    shard = ShardModel()
    before = dict(shard.rows)
    assert shard.write(Write(b"k", delete=True))[0].kind is WriteKind.NOT_FOUND
    assert shard.rows == before
    assert [r.kind for r in shard.write(Write(b"k", b"v"), Write(b"k", delete=True), Write(b"k", delete=True))] == [
        WriteKind.OK,
        WriteKind.OK,
        WriteKind.NOT_FOUND,
    ]
    assert shard.rows == before


def test_conditions_see_the_writes_before_them_in_the_same_run() -> None:
    shard = ShardModel()
    results = shard.write(
        Write(b"k", b"a", if_not_exists=True),
        Write(b"k", b"b", if_not_exists=True),
        Write(b"k", b"c", if_version_equals=2),
        Write(b"k", b"d", if_version_equals=2),
        Write(b"x", b"e", if_version_equals=2),
        Write(b"k", delete=True, if_version_equals=2),
        Write(b"k", delete=True, if_version_equals=4),
    )
    assert [(r.kind, r.version) for r in results] == [
        (WriteKind.OK, 2),
        (WriteKind.ALREADY_EXISTS, 2),
        (WriteKind.OK, 4),
        (WriteKind.VERSION_MISMATCH, 4),
        (WriteKind.VERSION_MISMATCH, 0),
        (WriteKind.VERSION_MISMATCH, 4),
        (WriteKind.OK, 8),
    ]
    assert value(shard, b"k") is Miss.ABSENT


def test_strange_bytes_are_kept() -> None:
    shard = ShardModel()
    strange = [b"\x00", b"\xff", b"\xfe", b"a b", b"a\nb", b"\x00\x00", b"d", b"t" * 20, b"\xff" * 1024]
    shard.write(*(Write(key, key[::-1]) for key in strange))
    shard.write(Write(b"empty", b""))
    assert [value(shard, key) for key in strange] == [key[::-1] for key in strange]
    assert value(shard, b"empty") == b""


def test_expired_is_absent_before_it_is_swept() -> None:
    shard = ShardModel()
    shard.write(Write(b"k", b"v", ttl_ms=100), at_ms=1000)
    assert next_expiry_ms(shard.view) == 1100
    shard.expire(1099, rows_max=0)
    assert value(shard, b"k") == b"v"
    shard.expire(1100, rows_max=0)
    assert value(shard, b"k") is Miss.ABSENT
    assert keys.data_key(b"k") in shard.rows
    assert shard.write(Write(b"k", delete=True))[0].kind is WriteKind.NOT_FOUND
    assert shard.write(Write(b"k", b"w", if_version_equals=2))[0].kind is WriteKind.VERSION_MISMATCH
    assert shard.write(Write(b"k", b"w", if_not_exists=True))[0].kind is WriteKind.OK
    row = shard.read(b"k")
    assert isinstance(row, bytes)
    assert header_of(row).create_ms == 1100
    assert next_expiry_ms(shard.view) is None


def test_an_overwrite_drops_the_old_expiry() -> None:
    shard = ShardModel()
    shard.write(Write(b"k", b"v", ttl_ms=100), at_ms=1000)
    shard.write(Write(b"k", b"w"), at_ms=1050)
    assert shard.expire(5000) == (0, False, 5000)
    assert value(shard, b"k") == b"w"


def test_sweeping_is_bounded_and_says_whether_more_is_due() -> None:
    shard = ShardModel()
    shard.write(*(Write(b"%d" % i, b"v", ttl_ms=10 + i) for i in range(10)), at_ms=0)
    assert shard.expire(15, rows_max=4) == (4, True, 15)
    assert shard.expire(15, rows_max=4) == (2, False, 15)
    assert shard.expire(10**6, rows_max=4) == (4, True, 10**6)  # as many as it may: there could be more
    assert shard.expire(10**6, rows_max=4) == (0, False, 10**6)
    assert set(shard.rows) == {keys.SHARD_KEY}


def test_a_reader_that_knows_the_time_is_told_of_overdue_rows() -> None:
    shard = ShardModel()
    shard.write(Write(b"k", b"v", ttl_ms=100), at_ms=1000)
    assert isinstance(shard.read(b"k", wall_ms=1099), bytes)
    assert shard.read(b"k", wall_ms=1100) is Miss.OVERDUE
    shard.expire(1100, rows_max=0)
    assert shard.read(b"k", wall_ms=0) is Miss.ABSENT


def test_epoch_and_ownership_are_checked_at_apply() -> None:
    shard = ShardModel(shard_index=1, shard_count=8)
    moved = WriteKind.SHARD_MOVED
    # `hello` belongs to shard-1 of 8, `a` to shard-0.
    results = shard.write(
        Write(b"hello", b"v"), Write(b"a", b"v"), Write(b"hello", b"v", epoch=1), Write(b"hello", b"v", epoch=2)
    )
    assert [r.kind for r in results] == [WriteKind.OK, moved, WriteKind.OK, moved]
    shard.members(Members((1, 2, 3)), Members((1, 2, 4), outgoing=(1, 2, 3)))
    assert shard.write(Write(b"hello", b"v", epoch=1))[0].kind is WriteKind.OK
    shard.members(Members((1, 2, 4), outgoing=(1, 2, 3)), Members((1, 2, 4)))
    assert shard.write(Write(b"hello", b"x", epoch=1))[0].kind is moved
    assert shard.write(Write(b"hello", b"y", epoch=2))[0].kind is WriteKind.OK
    assert shard.read(b"hello", epoch=1) is Miss.MOVED
    assert value(shard, b"hello") == b"y"


def test_the_epoch_moves_only_when_the_voter_set_does() -> None:
    shard = ShardModel()

    def epoch_after(before: Members, after: Members) -> int:
        shard.members(before, after)
        state = shard_state(shard.view)
        assert state is not None
        assert state.conf_index == shard.index
        return state.epoch

    assert epoch_after(Members((1, 2, 3)), Members((1, 2, 3), (4,))) == 1  # a learner
    assert epoch_after(Members((1, 2, 3), (4,)), Members((1, 2, 3, 4))) == 2  # a simple promotion
    assert epoch_after(Members((1, 2, 3, 4)), Members((2, 3, 4))) == 3
    assert epoch_after(Members((2, 3, 4)), Members((2, 3, 5), (), (2, 3, 4))) == 3  # enters a joint configuration
    assert epoch_after(Members((2, 3, 5), (), (2, 3, 4)), Members((2, 3, 5))) == 4  # leaves it
    assert epoch_after(Members((2, 3, 5)), Members((3, 2, 5))) == 4  # the same set in another order


def test_an_empty_replica_owns_nothing() -> None:
    assert read_many(DictView({}), [(b"k", 0), (b"l", 1)], 0) == (None, [Miss.MOVED, Miss.MOVED])
    assert shard_state(DictView({})) is None


KEYS = [b"a", b"b", b"\x00", b"c c"]
WRITES = st.builds(
    Write,
    key=st.sampled_from(KEYS),
    value=st.binary(max_size=3),
    delete=st.booleans(),
    epoch=st.sampled_from([0, 0, 1, 2]),
    ttl_ms=st.sampled_from([0, 0, 5, 20]),
    if_version_equals=st.sampled_from([0, 0, 0, 2, 3, 4]),
    if_not_exists=st.booleans(),
    request_id=st.just(b""),
    fingerprint=st.just(b""),
)
STEPS = st.lists(st.tuples(st.lists(WRITES, min_size=1, max_size=6), st.integers(0, 40), st.booleans()), max_size=12)


def expected(model: dict[bytes, tuple[bytes, int, int]], write: Write, now: int, revision: int) -> WriteKind:
    """The same rules over a plain dict of (value, version, expire_ms); rows that expired are gone at once."""
    for key in [key for key, (_, _, expire) in model.items() if 0 < expire <= now]:
        del model[key]
    if write.epoch not in (0, 1):
        return WriteKind.SHARD_MOVED
    row = model.get(write.key)
    if write.delete and row is None:
        return WriteKind.NOT_FOUND
    if write.if_not_exists and row is not None:
        return WriteKind.ALREADY_EXISTS
    if write.if_version_equals and (row is None or row[1] != write.if_version_equals):
        return WriteKind.VERSION_MISMATCH
    if write.delete:
        del model[write.key]
    else:
        model[write.key] = (write.value, revision, now + write.ttl_ms if write.ttl_ms else 0)
    return WriteKind.OK


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_commands_do_what_a_plain_dict_would(steps: list[tuple[list[Write], int, bool]]) -> None:
    """Also: the state does not depend on how the log was cut into runs, and index and rows always agree."""
    whole, single = ShardModel(), ShardModel()
    model: dict[bytes, tuple[bytes, int, int]] = {}
    clock = 0
    for writes, passed, sweep in steps:
        clock += passed
        results = whole.write(*writes, at_ms=clock)
        one_by_one = [single.write(write, at_ms=clock)[0] for write in writes]
        assert results == one_by_one
        for write, result in zip(writes, results, strict=True):
            assert result.kind is expected(model, write, clock, result.revision)
        if sweep:
            whole.expire(clock, 3)
            single.expire(clock, 3)
        assert whole.rows == single.rows
        for key in KEYS:
            row = whole.read(key)
            living = model.get(key)
            if living and 0 < living[2] <= clock:
                living = None
            assert (value_of(row) if isinstance(row, bytes) else None) == (living[0] if living else None)
        indexed = {keys.split_expiry_key(k) for k in whole.rows if k.startswith(keys.EXPIRY_PREFIX)}
        expiring = {
            (header_of(raw).expire_ms, k[1:])
            for k, raw in whole.rows.items()
            if k.startswith(keys.DATA_PREFIX) and header_of(raw).expire_ms
        }
        assert indexed == expiring
