"""What every engine promises (`flotta_embedded.api.Engine`), asked of both."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from embedded_harness import Crashable, rows_of

AWKWARD_KEYS = [b"", b"\x00", b"\x00\x00", b"a", b"a\x00", b"a\n", b"b c", b"\xfe\xff", b"\xff", b"\xff\xff"]


def test_awkward_keys_and_values_survive_a_crash(crashable: Crashable) -> None:
    rows = [(key, value) for key, value in zip(AWKWARD_KEYS, [b"", b"\x00", b"\n", b"\xff"] * 3, strict=False)]
    crashable.engine.create("s")
    crashable.engine.write("s", rows, ())
    crashable.engine.flush("s")
    view = crashable.crash().view("s")
    assert rows_of(view) == rows
    assert view.multi_get([*AWKWARD_KEYS, b"missing"]) == [value for _, value in rows] + [None]
    assert view.get(b"") == b""


def test_a_crash_takes_each_space_to_its_own_last_flush(crashable: Crashable) -> None:
    engine = crashable.engine
    for space in ("a", "b", "never-flushed"):
        engine.create(space)
        engine.write(space, [(b"k", b"1"), (b"gone", b"1")], ())
    engine.flush("a")
    engine.write("a", [(b"k", b"2")], [b"gone"])
    engine.write("b", [(b"k", b"2")], [b"gone"])
    engine.flush("b")
    engine.write("b", [(b"k", b"3")], ())
    engine = crashable.crash()
    assert engine.spaces() == ["a", "b", "never-flushed"]
    assert rows_of(engine.view("a")) == [(b"gone", b"1"), (b"k", b"1")]
    assert rows_of(engine.view("b")) == [(b"k", b"2")]
    assert rows_of(engine.view("never-flushed")) == []
    engine.write("a", [(b"k", b"again")], ())
    engine.flush("a")
    assert crashable.crash().view("a").get(b"k") == b"again"


def test_create_and_drop_are_durable_at_return(crashable: Crashable) -> None:
    engine = crashable.engine
    engine.create("kept")
    engine.create("dropped")
    engine.drop("dropped")
    engine = crashable.crash()
    assert engine.spaces() == ["kept"]
    engine.create("dropped")
    assert rows_of(engine.view("dropped")) == []


def test_a_dropped_and_recreated_space_is_empty(crashable: Crashable) -> None:
    engine = crashable.engine
    engine.create("s")
    engine.write("s", [(b"k", b"old")], ())
    engine.flush("s")
    engine.drop("s")
    engine.create("s")
    assert rows_of(engine.view("s")) == []
    assert rows_of(crashable.crash().view("s")) == []


def test_scans_are_half_open_ordered_and_limited(crashable: Crashable) -> None:
    engine = crashable.engine
    engine.create("s")
    engine.write("s", [(key, b"v") for key in reversed(AWKWARD_KEYS)], ())
    view = engine.view("s")

    def found(low: bytes, high: bytes | None, **options: Any) -> list[bytes]:
        return [key for key, _ in view.scan(low, high, **options)]

    bounds = [*AWKWARD_KEYS, b"a\x01", b"zz"]
    for low in bounds:
        for high in [*bounds, None]:
            expected = [key for key in AWKWARD_KEYS if key >= low and (high is None or key < high)]
            assert found(low, high) == expected
            assert found(low, high, reverse=True) == expected[::-1]
            for limit in (0, 1, 3):
                assert found(low, high, limit=limit) == expected[:limit]
                assert found(low, high, reverse=True, limit=limit) == expected[::-1][:limit]


def test_a_scan_shows_the_state_of_its_beginning(crashable: Crashable) -> None:
    engine = crashable.engine
    engine.create("s")
    engine.write("s", [(b"a", b"1"), (b"b", b"1"), (b"c", b"1")], ())
    scan = engine.view("s").scan(b"", None)
    assert next(scan) == (b"a", b"1")
    engine.write("s", [(b"b", b"2"), (b"bb", b"2")], [b"c"])
    assert list(scan) == [(b"b", b"1"), (b"c", b"1")]


def test_frozen_views_outlive_writes_flushes_and_drops(crashable: Crashable) -> None:
    engine = crashable.engine
    engine.create("s")
    engine.write("s", [(b"a", b"1"), (b"b", b"1")], ())
    frozen = engine.freeze("s")
    engine.write("s", [(b"a", b"2"), (b"c", b"2")], [b"b"])
    engine.flush("s")
    later = engine.freeze("s")
    engine.drop("s")
    assert rows_of(frozen) == [(b"a", b"1"), (b"b", b"1")]
    assert frozen.get(b"c") is None
    assert frozen.multi_get([b"b", b"x", b"a"]) == [b"1", None, b"1"]
    assert [key for key, _ in frozen.scan(b"", None, reverse=True)] == [b"b", b"a"]
    assert rows_of(later) == [(b"a", b"2"), (b"c", b"2")]
    frozen.close()
    later.close()
    with pytest.raises(ValueError, match="closed"):
        frozen.get(b"a")


def test_views_are_live(crashable: Crashable) -> None:
    engine = crashable.engine
    engine.create("s")
    view = engine.view("s")
    engine.write("s", [(b"a", b"1")], ())
    assert view.get(b"a") == b"1"
    engine.write("s", (), [b"a", b"never-there"])
    assert view.get(b"a") is None
    assert view.multi_get([]) == []


def test_unflushed_bytes_grow_with_writes_and_end_with_a_flush(crashable: Crashable) -> None:
    engine = crashable.engine
    engine.create("s")
    assert engine.bytes_unflushed("s") == 0
    engine.write("s", [(b"k", b"v" * 1000)], ())
    once = engine.bytes_unflushed("s")
    engine.write("s", [(b"k", b"v" * 1000)], ())
    assert once >= 1000
    assert engine.bytes_unflushed("s") >= 2 * once
    engine.flush("s")
    assert engine.bytes_unflushed("s") == 0
    engine.flush("s")


def test_misuse_is_named(crashable: Crashable) -> None:
    engine = crashable.engine
    engine.create("s")
    with pytest.raises(ValueError, match="'s' exists"):
        engine.create("s")
    for call in (
        lambda: engine.drop("x"),
        lambda: engine.view("x"),
        lambda: engine.freeze("x"),
        lambda: engine.write("x", [(b"k", b"v")], ()),
        lambda: engine.flush("x"),
        lambda: engine.bytes_unflushed("x"),
        lambda: engine.compact("x"),
    ):
        with pytest.raises(KeyError, match="x"):
            call()
    for puts, deletes in (([("k", b"v")], []), ([(b"k", "v")], []), ([], ["k"]), ([(b"k", None)], [])):
        bad: Any = puts
        with pytest.raises(TypeError, match="bytes"):
            engine.write("s", [(b"good", b"v"), *bad], deletes)  # type: ignore[arg-type]
    assert rows_of(engine.view("s")) == []


def test_a_closed_engine_refuses(crashable: Crashable) -> None:
    engine = crashable.engine
    engine.create("s")
    engine.close()
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        engine.compact("s")
    for call in (engine.spaces, lambda: engine.create("t"), lambda: engine.view("s"), lambda: engine.flush("s")):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_a_flush_may_run_in_another_thread_beside_writes(crashable: Crashable) -> None:
    engine = crashable.engine
    engine.create("s")
    engine.create("other")
    failures: list[BaseException] = []
    stop = threading.Event()

    def flush() -> None:
        try:
            while not stop.is_set():
                engine.flush("other")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=flush)
    thread.start()
    for number in range(200):
        engine.write("other", [(b"%d" % number, b"v")], ())
        engine.write("s", [(b"%d" % number, b"v")], ())
    stop.set()
    thread.join()
    assert not failures
    engine.flush("other")
    assert len(rows_of(crashable.crash().view("other"))) == 200


def test_a_compaction_changes_no_row(crashable: Crashable) -> None:
    engine = crashable.engine
    engine.create("s")
    for turn in range(3):
        engine.write("s", [(b"%d" % number, b"%d" % turn) for number in range(50)], [b"gone"])
        engine.flush("s")
    engine.write("s", [], [b"%d" % number for number in range(25)])
    before = rows_of(engine.view("s"))
    engine.compact("s")
    assert rows_of(engine.view("s")) == before
    assert rows_of(crashable.crash().view("s")) == before
