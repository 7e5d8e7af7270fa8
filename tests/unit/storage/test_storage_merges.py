"""Shards that grow together, by their commands alone: whatever order pages, writes and sweeps come in, the one that
takes over ends with what the others had."""

from __future__ import annotations

from typing import Any

import pytest
from flotta_embedded.registry import raise_revisions
from flotta_runtime.hashing import shard_index
from flotta_runtime.saved_rows import SavedRow
from flotta_storage.core import divisions, follows, keys
from flotta_storage.core.absorptions import (
    Absorption,
    MergeKind,
    Source,
    absorb_payload,
    copy_payload,
    let_go_payload,
    merge_payload,
)
from flotta_storage.core.dedup import WINDOW_MS
from flotta_storage.core.follows import Followed, Phase, follow_payload, page_of, seal_payload, unfollow_payload
from flotta_storage.core.loads import LoadKind
from flotta_storage.core.reads import Miss
from flotta_storage.core.rows import header_of, value_of
from flotta_storage.core.shard_state import Stage, birth_state, decode_state, encode_state
from flotta_storage.core.splits import Split, SplitKind
from flotta_storage.core.writes import Write, WriteKind, fingerprint
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_support import DictView, ShardModel

ORDER = 7
KEYS = [b"k%d" % number for number in range(8)]


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follows, "SLICE_ROWS", 2)


def write_of(key: bytes, value: bytes = b"v", request: str = "", **fields: Any) -> Write:
    made = Write(key, value, request_id=request.encode(), **fields)
    return made._replace(fingerprint=fingerprint(made)) if request else made


class Kin:
    """Shards (0, n) to (n - 1, n); the first is to take all others over."""

    def __init__(self, count: int = 3) -> None:
        self.shards = [ShardModel(index, count, revision_base=1000 * index) for index in range(count)]
        self.taker, self.others = self.shards[0], self.shards[1:]
        self.asked = Absorption(
            ORDER, 1, tuple(Source(f"shard-{index}", 100 + index, index) for index in range(1, count))
        )

    def home(self, key: bytes) -> ShardModel:
        return self.shards[shard_index(key, len(self.shards))]

    def begin(self) -> None:
        for shard in self.others:
            assert shard.do(follow_payload(0)) is True
        assert self.taker.do(absorb_payload(0, self.asked)) is True

    def source(self, number: int) -> Source:
        absorption = self.taker.absorption()
        assert absorption is not None
        return absorption.sources[number]

    def page(self, number: int, view: DictView | None = None) -> Followed | None:
        source = self.source(number)
        view = self.others[number].frozen() if view is None else view
        return page_of(view, source.phase, source.cursor, source.token)

    def pull(self, number: int) -> bool:
        """Whether there was anything new."""
        source, page = self.source(number), self.page(number)
        assert page is not None
        if not page.rows and (page.phase, page.cursor) == (source.phase, source.cursor):
            return False
        assert self.taker.do(copy_payload(0, ORDER, source, page)) is True
        return True

    def finish(self) -> MergeKind:
        for number, shard in enumerate(self.others):
            assert shard.do(seal_payload(0)) is True
            while self.pull(number):
                pass
        absorption = self.taker.absorption()
        assert absorption is not None and absorption.whole
        gap = absorption.revision - self.taker.revision()
        if gap > 0:
            assert self.taker.do(merge_payload(0, ORDER)) is MergeKind.TOO_LOW
            self.taker.do(raise_revisions(gap))
        result: MergeKind = self.taker.do(merge_payload(0, ORDER))
        return result

    def check(self) -> None:
        """The taker has each living row, and each request id, of all of them, and its index rows are right."""
        now_ms, rows = self.taker.group_time_ms, self.taker.rows
        for shard in self.shards:
            assert shard.group_time_ms <= now_ms and shard.revision() <= self.taker.revision()
        living: dict[bytes, bytes] = {}
        known: dict[bytes, bytes] = {}
        for shard in self.shards:
            for key, row in shard.rows.items():
                if shard is not self.taker or shard_index(_user_key(key), len(self.shards)) == 0:
                    if key.startswith(keys.DATA_PREFIX) and not header_of(row).expired(now_ms):
                        living[key] = row
                    if key.startswith(divisions.DEDUP_ROWS) and not _out_of_window(row, now_ms):
                        known[key] = row
        assert {k: v for k, v in rows.items() if k[:1] == b"d" and not header_of(v).expired(now_ms)} == living
        dedup = {k: v for k, v in rows.items() if k.startswith(divisions.DEDUP_ROWS)}
        assert {k: v for k, v in dedup.items() if not _out_of_window(v, now_ms)} == known
        expiring = {
            keys.expiry_key(header_of(v).expire_ms, k[1:])
            for k, v in rows.items()
            if k[:1] == b"d" and header_of(v).expire_ms
        }
        assert {k for k in rows if k.startswith(keys.EXPIRY_PREFIX)} == expiring
        indexed = {k for k in rows if k.startswith(b"q") and not k.startswith(divisions.DEDUP_ROWS)}
        assert indexed == {divisions.DEDUP.beside(k, v) for k, v in dedup.items()}


def _user_key(key: bytes) -> bytes:
    if key.startswith(keys.DATA_PREFIX):
        return divisions.DATA.key_of(key)
    return divisions.DEDUP.key_of(key) if key.startswith(divisions.DEDUP_ROWS) else b""


def _out_of_window(row: bytes, now_ms: int) -> bool:
    return int.from_bytes(row[:8], "big") + WINDOW_MS <= now_ms


def test_a_record_of_each_stage_is_read_as_it_was_written() -> None:
    born = birth_state("shard-1", "default", 1, 3)
    assert encode_state(born)[0] == 1, "as builds before stages wrote it"
    for stage in Stage:
        state = decode_state(encode_state(born))
        staged = type(state)(state.shard_id, state.table, 4, 1, 3, 9, stage)
        assert decode_state(encode_state(staged)) == staged
    sealed = type(born)("shard-1", "default", 2, 1, 3, 1, Stage.SEALED)
    key = next(key for key in KEYS if shard_index(key, 3) == 1)
    assert born.owns(key) and born.admits(1, key) and born.admits(0, key)
    assert not sealed.owns(key) and not sealed.admits(2, key) and not sealed.admits(0, key)
    assert sealed.own([key, key]) == [False, False]


def test_versions_go_on_above_all_that_any_of_them_gave_and_repeats_are_known() -> None:
    kin = Kin()
    writes = {key: write_of(key, request=f"id-{key!r}") for key in KEYS}
    first = {key: kin.home(key).write(write, at_ms=50)[0] for key, write in writes.items()}
    kin.begin()
    (refused,) = kin.others[0].write(write_of(KEYS[0], epoch=9), at_ms=60)
    assert refused.kind is WriteKind.SHARD_MOVED
    assert kin.finish() is MergeKind.MERGED
    kin.check()
    state = kin.taker.state()
    assert (state.shard_index, state.shard_count, state.epoch, state.stage) == (0, 1, 2, Stage.SERVES)
    for key, write in writes.items():
        (again,) = kin.taker.write(write, at_ms=70)
        assert (again.kind, again.duplicate, again.version) == (WriteKind.OK, True, first[key].version)
        row = kin.taker.read(key)
        assert isinstance(row, bytes) and value_of(row) == b"v" and header_of(row).version == first[key].version
        (fresh,) = kin.taker.write(write_of(key, if_version_equals=first[key].version), at_ms=70)
        assert fresh.kind is WriteKind.OK and fresh.version > first[key].version


def test_a_sealed_shard_does_nothing_more_whatever_was_on_its_way() -> None:
    kin = Kin()
    kin.begin()
    key = next(key for key in KEYS if kin.home(key) is kin.others[0])
    kin.others[0].write(write_of(key, b"before"))
    assert kin.others[0].do(seal_payload(0)) is True
    for epoch in (0, 1, 2):
        (late,) = kin.others[0].write(write_of(key, b"late", epoch=epoch))
        assert late.kind is WriteKind.SHARD_MOVED
        assert kin.others[0].read(key, epoch) is Miss.MOVED
    for payload in (unfollow_payload(0), follow_payload(0), seal_payload(0)):
        kin.others[0].do(payload)
        assert kin.others[0].state().sealed
    assert kin.finish() is MergeKind.MERGED
    row = kin.taker.read(key)
    assert isinstance(row, bytes) and value_of(row) == b"before"


def test_what_comes_last_is_followed_to_the_end_rejections_of_request_ids_included() -> None:
    kin = Kin()
    kin.begin()
    other = kin.others[0]
    ours = [key for key in (b"x%d" % number for number in range(100)) if kin.home(key) is other][:7]
    while kin.pull(0):
        pass
    for key in ours:
        other.write(write_of(key), at_ms=30)
    again = write_of(ours[0], request="rejected", if_not_exists=True)
    assert other.write(again, at_ms=31)[0].kind is WriteKind.ALREADY_EXISTS
    assert other.do(seal_payload(0)) is True
    assert kin.pull(0) and not kin.source(0).whole, "there are more notes than fit a page"
    assert kin.finish() is MergeKind.MERGED
    kin.check()
    kin.taker.write(write_of(ours[0], delete=True))
    (known,) = kin.taker.write(again, at_ms=32)
    assert (known.kind, known.duplicate) == (WriteKind.ALREADY_EXISTS, True)


def test_what_is_copied_is_not_seen_before_its_time_and_goes_when_it_is_let_go() -> None:
    kin = Kin()
    for key in KEYS:
        kin.home(key).write(write_of(key, request="once", ttl_ms=1000), at_ms=10)
    own = dict(kin.taker.rows)
    kin.begin()
    for number in (0, 1):
        while kin.pull(number):
            pass
    key = next(key for key in KEYS if kin.home(key) is not kin.taker)
    assert keys.data_key(key) in kin.taker.rows
    assert kin.taker.read(key) is Miss.MOVED
    assert kin.taker.write(write_of(key))[0].kind is WriteKind.SHARD_MOVED
    assert kin.taker.do(merge_payload(0, ORDER)) is MergeKind.NOT_WHOLE, "nothing is sealed"
    assert kin.taker.do(let_go_payload(0, ORDER + 1)) is False
    assert kin.taker.do(let_go_payload(0, ORDER)) is True
    assert kin.taker.do(absorb_payload(0, kin.asked)) is False, "not before that is gone"
    for _ in range(100):
        if kin.taker.prune(rows_max=3).done:
            break
    assert kin.taker.rows == own
    assert kin.taker.do(absorb_payload(0, kin.asked)) is True


def test_only_what_fits_is_absorbed_and_nothing_else_is_done_meanwhile() -> None:
    kin = Kin()
    short = Absorption(ORDER, 1, kin.asked.sources[:1])
    for wrong in (short, Absorption(ORDER, 0, ()), Absorption(ORDER, 2, kin.asked.sources), Absorption(ORDER, 3, ())):
        assert kin.taker.do(absorb_payload(0, wrong)) is False
    kin.begin()
    assert kin.taker.do(absorb_payload(0, kin.asked)) is True, "asked again it is so already"
    assert kin.taker.do(absorb_payload(0, Absorption(8, 1, kin.asked.sources))) is False
    assert kin.taker.do(follow_payload(0)) is False
    children = tuple(divisions.Child(f"shard-{index}", 50, index, 5) for index in (3,))
    for shard, index in ((kin.taker, 0), (kin.others[0], 1)):
        child = tuple(divisions.Child(f"shard-{index + 3}", 50, index + 3, 5) for _ in children)
        assert shard.split(Split(6, 1, (1,), child)) is SplitKind.NOT_NOW
    row = SavedRow(KEYS[0], b"v", 1, 1, 1, 0)
    assert kin.home(KEYS[0]).load(row).kind is LoadKind.MOVED


def test_notes_that_began_anew_are_another_run() -> None:
    kin = Kin()
    kin.begin()
    for key in KEYS:
        kin.home(key).write(write_of(key))
    assert kin.pull(0)
    token = kin.source(0).token
    other = kin.others[0]
    assert other.do(follow_payload(0)) is True and kin.page(0) is not None
    while not other.do(unfollow_payload(0)):
        assert other.state().stage is Stage.SERVES and page_of(other.frozen(), Phase.ROWS, b"") is None
    assert not any(key.startswith(keys.TOUCHED_PREFIX) for key in other.rows)
    assert other.do(follow_payload(0)) is True
    page = kin.page(0)
    assert page is not None and page.token != token and not page.rows
    assert kin.taker.do(copy_payload(0, ORDER, kin.source(0), page)) is False


WHAT = ("put", "put", "delete", "once", "once", "expire", "pull", "tail", "ask", "land", "freeze", "old")
STEPS = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 7), st.integers(0, 3)), max_size=120)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(0, 30))
def test_in_whatever_order_pages_come_nothing_is_lost_and_nothing_comes_back(steps: Any, begin_at: int) -> None:
    kin = Kin()
    clock = 10
    asked: list[tuple[int, Source, Followed]] = []
    frozen: list[tuple[int, DictView]] = []
    steps = [*steps[:begin_at], ("begin", 0, 0), *steps[begin_at:]]
    begun = False
    for what, number, extra in steps:
        clock += 7
        key, which = KEYS[number], number % 2
        shard = kin.home(key)
        at_ms = clock + 40 * kin.shards.index(shard)  # their clocks differ
        if what == "put":
            shard.write(write_of(key, b"%d" % clock, ttl_ms=extra * 30), at_ms=at_ms)
        elif what == "delete":
            shard.write(write_of(key, delete=True), at_ms=at_ms)
        elif what == "once":
            shard.write(write_of(key, b"once", f"r{extra}", if_not_exists=extra == 1), at_ms=at_ms)
        elif what == "expire":
            kin.shards[number % 3].expire(clock + 40 * (number % 3))
        elif what == "begin":
            kin.begin()
            begun = True
        elif begun and what == "pull":
            kin.pull(which)
        elif begun and what == "tail":
            while kin.pull(which):
                pass
        elif begun and what == "ask":
            page = kin.page(which)
            assert page is not None
            asked.append((which, kin.source(which), page))
        elif begun and what == "land" and asked:
            _, source, page = asked[number % len(asked)]
            kin.taker.do(copy_payload(0, ORDER, source, page))  # late, or twice
        elif begun and what == "freeze":
            frozen.append((which, kin.others[which].frozen()))
        elif begun and what == "old" and frozen:
            which, view = frozen[number % len(frozen)]  # a replica that lags
            source, old = kin.source(which), kin.page(which, view)
            assert old is not None
            kin.taker.do(copy_payload(0, ORDER, source, old))
    assert kin.finish() is MergeKind.MERGED
    kin.check()
