"""Apply is a function of the log: not of its batches, its engine, its crashes or its process's hash seed."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from embedded_harness import Crashable, command, conf, empty, make_registry, put, rows_of
from flotta_consensus.api import Entry, Members
from flotta_embedded.codec import encode_value
from flotta_embedded.machine import Machine
from flotta_embedded.simulated import SimEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MEMBERS = Members((1, 2, 3))
KEYS = st.sampled_from([b"", b"\x00", b"a", b"ab", b"b"])


@st.composite
def logs(draw: st.DrawFn, size_max: int = 25) -> list[Entry]:
    entries: list[Entry] = []
    term = 1
    for index in range(2, 2 + draw(st.integers(0, size_max))):
        stamp_ms = draw(st.integers(0, 300))
        match draw(st.sampled_from(["put", "put", "put", "dedup", "add", "wipe", "conf", "empty"])):
            case "put":
                entries.append(put(index, draw(KEYS), draw(st.binary(max_size=3)), stamp_ms=stamp_ms))
            case "dedup":
                request_id = draw(st.sampled_from([b"r1", b"r2", b"r3"]))
                value = draw(st.sampled_from([b"", b"1"]))
                entries.append(put(index, draw(KEYS), value, stamp_ms=stamp_ms, request_id=request_id))
            case "add":
                args = [draw(KEYS), draw(st.integers(-3, 12))]
                entries.append(command(index, "add", encode_value(args), stamp_ms=stamp_ms))
            case "wipe":
                args = [draw(st.sampled_from([b"", b"a"])), draw(st.integers(0, 3))]
                entries.append(command(index, "wipe", encode_value(args), stamp_ms=stamp_ms))
            case "conf":
                entries.append(conf(index, *draw(st.sets(st.integers(1, 4), min_size=1)), term=term))
            case "empty":
                term += 1
                entries.append(empty(index, term))
    return entries


def expected_of(entries: list[Entry]) -> tuple[list[Any], list[tuple[bytes, bytes]]]:
    """One entry at a time on the simulated engine: what every other way must equal."""
    machine = Machine.create(SimEngine(), "m", make_registry(), members=MEMBERS, revision_base=7)
    results = [result for entry in entries for result in machine.apply_many([entry])]
    return results, rows_of(machine.view())


def check_any_batches_and_crashes(kind: str, entries: list[Entry], data: st.DataObject) -> None:
    results, rows = expected_of(entries)
    with tempfile.TemporaryDirectory(prefix="flotta-machine-") as directory:
        crashable = Crashable(kind, Path(directory))
        registry = make_registry()
        machine = Machine.create(crashable.engine, "m", registry, members=MEMBERS, revision_base=7)
        try:
            while machine.applied_index() < 1 + len(entries):
                at = machine.applied_index() - 1
                cut = data.draw(st.integers(1, len(entries) - at))
                assert machine.apply_many(entries[at : at + cut]) == results[at : at + cut]
                action = data.draw(st.sampled_from(["go on", "flush", "crash", "reopen"]))
                durable = machine.durable_index()
                if action == "flush":
                    durable = machine.flush()()
                elif action == "crash":
                    machine = Machine.open(crashable.crash(), "m", registry)
                    assert machine.applied_index() >= durable
                elif action == "reopen":
                    machine = Machine.open(crashable.engine, "m", registry)
                    durable = machine.applied_index()
                assert machine.durable_index() == durable
            assert rows_of(machine.view()) == rows
        finally:
            crashable.close()


@settings(deadline=None)
@given(logs(), st.data())
def test_batches_and_crashes_do_not_show_simulated(entries: list[Entry], data: st.DataObject) -> None:
    check_any_batches_and_crashes("sim", entries, data)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(logs(), st.data())
def test_batches_and_crashes_do_not_show_rocksdb(entries: list[Entry], data: st.DataObject) -> None:
    check_any_batches_and_crashes("rocks", entries, data)


@settings(deadline=None)
@given(logs(), logs(size_max=10), st.integers(1, 100))
def test_a_snapshot_then_the_rest_of_the_log_equals_the_log(
    first: list[Entry], second: list[Entry], chunk_bytes: int
) -> None:
    rest = [Entry(entry.index + len(first), 50, entry.kind, entry.payload, entry.members) for entry in second]
    engine = SimEngine()
    registry = make_registry()
    source = Machine.create(engine, "source", registry, members=MEMBERS, revision_base=7)
    source.apply_many(first)
    frozen = source.snapshot()
    at_snapshot = rows_of(source.view())
    expected = source.apply_many(rest)
    target = Machine.create_empty(engine, "target", registry)
    sink = target.restore()
    for chunk in frozen.chunks(chunk_bytes):
        sink.write(chunk)
    header = frozen.header
    sink.commit(header.index, header.term, header.members)
    frozen.close()
    assert target.applied_index() == 1 + len(first)
    assert rows_of(target.view()) == at_snapshot
    assert target.apply_many(rest) == expected
    assert rows_of(target.view()) == rows_of(source.view())


def fixed_log(seed: int) -> list[Entry]:
    chosen = random.Random(seed)
    entries: list[Entry] = []
    for index in range(2, 400):
        key = chosen.choice([b"a", b"b", b"c", b"dd"])
        stamp_ms = chosen.randrange(2000)
        match chosen.randrange(5):
            case 0:
                entries.append(put(index, key, b"v", stamp_ms=stamp_ms, request_id=b"r%d" % chosen.randrange(30)))
            case 1:
                entries.append(command(index, "wipe", encode_value([key, 2]), stamp_ms=stamp_ms))
            case 2:
                entries.append(conf(index, *chosen.sample(range(1, 9), 3)))
            case 3:
                entries.append(command(index, "add", encode_value([key, chosen.randrange(9)]), stamp_ms=stamp_ms))
            case _:
                entries.append(put(index, key, b"w" * chosen.randrange(9), stamp_ms=stamp_ms))
    return entries


class Batches(SimEngine):
    """Remembers the exact batches, order included."""

    def __init__(self) -> None:
        super().__init__()
        self.digest = hashlib.sha256()

    def write(self, space: str, puts: Any, deletes: Any) -> None:
        self.digest.update(repr((space, list(puts), list(deletes))).encode())
        super().write(space, puts, deletes)


def digest_of_fixed_log() -> str:
    engine = Batches()
    machine = Machine.create(engine, "m", make_registry(), members=MEMBERS)
    entries = fixed_log(3)
    results = [machine.apply_many(entries[at : at + 17]) for at in range(0, len(entries), 17)]
    source = machine.snapshot()
    engine.digest.update(b"".join(source.chunks(100)))
    engine.digest.update(repr(results).encode())
    return engine.digest.hexdigest()


def test_batches_results_and_snapshots_do_not_depend_on_the_hash_seed() -> None:
    digests = set()
    for seed in ("0", "1", "4242"):
        found = subprocess.run(
            [sys.executable, "-c", "import test_machine_properties as t; print(t.digest_of_fixed_log())"],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        digests.add(found.stdout.strip())
    assert len(digests) == 1
    assert digests == {digest_of_fixed_log()}
