"""The faults that only the simulated engine can have."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import flotta_embedded
import pytest
from embedded_harness import rows_of
from flotta_embedded.failpoints import FAILPOINTS
from flotta_embedded.simulated import SimEngine


class Died(Exception):
    pass


class DieAt:
    def __init__(self, name: str) -> None:
        self.name = name

    def reach(self, name: str) -> None:
        if name == self.name:
            raise Died(name)


def test_a_flush_cut_short_by_death_may_or_may_not_count() -> None:
    survived = set()
    for seed in range(20):
        engine = SimEngine(seed, failpoints=DieAt("engine.in_flush"))
        engine.create("s")
        engine.write("s", [(b"k", b"v")], ())
        with pytest.raises(Died):
            engine.flush("s")
        engine.crash()
        survived.add(engine.view("s").get(b"k"))
    assert survived == {None, b"v"}


def test_a_failed_flush_is_an_os_error_and_may_or_may_not_count() -> None:
    survived = set()
    for seed in range(20):
        engine = SimEngine(seed)
        engine.create("s")
        engine.fail_flush_after(1)
        engine.write("s", [(b"k", b"1")], ())
        engine.flush("s")
        engine.write("s", [(b"k", b"2")], ())
        with pytest.raises(OSError) as caught:
            engine.flush("s")
        assert caught.value.errno == errno.EIO
        assert engine.bytes_unflushed("s") > 0
        engine.reset_faults()
        engine.crash()
        survived.add(engine.view("s").get(b"k"))
    assert survived == {b"1", b"2"}


def test_a_full_disk_refuses_the_write_and_changes_nothing() -> None:
    engine = SimEngine()
    engine.create("s")
    engine.write("s", [(b"k", b"1")], ())
    engine.fill_up_after(10)
    with pytest.raises(OSError) as caught:
        engine.write("s", [(b"k", b"2" * 20)], ())
    assert caught.value.errno == errno.ENOSPC
    assert rows_of(engine.view("s")) == [(b"k", b"1")]
    with pytest.raises(OSError):
        engine.flush("s")
    with pytest.raises(OSError):
        engine.create("t")
    engine.reset_faults()
    engine.flush("s")
    engine.crash()
    assert rows_of(engine.view("s")) == [(b"k", b"1")]


def test_background_flushes_make_later_states_survive_and_replay_from_the_seed() -> None:
    def run(seed: int) -> list[bytes | None]:
        engine = SimEngine(seed, background_flush_one_in=3)
        engine.create("s")
        found = []
        for number in range(20):
            engine.write("s", [(b"k", b"%d" % number)], ())
            if number % 5 == 4:
                engine.crash()
                found.append(engine.view("s").get(b"k"))
        return found

    assert run(7) == run(7)
    assert any(value is not None for value in run(7))
    assert len({tuple(run(seed)) for seed in range(10)}) > 1


def test_a_crash_reports_what_it_took() -> None:
    engine = SimEngine()
    engine.create("a")
    engine.create("b")
    engine.write("a", [(b"k", b"123")], ())
    assert engine.crash() == {"spaces": 1, "bytes": 4}
    assert engine.crash() == {"spaces": 0, "bytes": 0}


def test_every_failpoint_of_the_package_is_declared() -> None:
    sources = Path(flotta_embedded.__file__).parent.glob("*.py")
    reached = {name for source in sources for name in re.findall(r'reach\("([a-z_.]+)"\)', source.read_text())}
    assert reached == set(FAILPOINTS)
    assert len(FAILPOINTS) == len(set(FAILPOINTS))
