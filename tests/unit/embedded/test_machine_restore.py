"""Snapshots: exact, checked, and switched to at once or not at all, whatever dies when."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest
from embedded_harness import KEPT, Crashable, command, conf, make_registry, put, rows_of
from flotta_consensus.api import Members
from flotta_embedded.codec import encode_value
from flotta_embedded.errors import InvariantError
from flotta_embedded.machine import Machine
from flotta_embedded.registry import Registry
from flotta_embedded.simulated import SimEngine
from flotta_embedded.snapshot import SnapshotParser

MEMBERS = Members((1, 2, 3), (4,))


def filled(count: int = 50) -> Machine:
    machine = Machine.create(SimEngine(), "source", make_registry(), members=MEMBERS, revision_base=100)
    machine.apply_many(
        [put(2 + at, b"%d" % (at % 20), b"v" * at, stamp_ms=at, request_id=b"r%d" % at) for at in range(count)]
    )
    return machine


def stream(machine: Machine, chunk_bytes: int = 1 << 20) -> bytes:
    source = machine.snapshot()
    chunks = list(source.chunks(chunk_bytes))
    source.close()
    assert all(len(chunk) == chunk_bytes for chunk in chunks[:-1])
    assert 0 < len(chunks[-1]) <= chunk_bytes
    return b"".join(chunks)


def install(machine: Machine, content: bytes, source: Machine) -> None:
    sink = machine.restore()
    for at in range(0, len(content), 333):
        sink.write(content[at : at + 333])
    sink.commit(source.applied_index(), source.applied_term(), source.members())


def test_rows_kept_in_memory_are_those_of_the_state(crashable: Crashable, registry: Registry) -> None:
    def check(machine: Machine) -> list[bytes | None]:
        found = [machine.view().get(key) for key in KEPT]
        assert [machine.kept_row(key) for key in KEPT] == found
        return found

    machine = Machine.create_empty(crashable.engine, "m", registry)
    assert check(machine) == [None, None]
    source = filled()
    install(machine, stream(source), source)
    (restored, _) = check(machine)
    assert restored is not None
    machine.apply_many([put(52, b"0", b"a"), put(53, b"1", b"b"), conf(54, 1, 2), put(55, b"0", b"c")])
    (written, epoch) = check(machine)
    assert written not in (None, restored)
    assert epoch is not None
    machine.apply_many([command(56, "wipe", encode_value([b"0", 9]))])
    assert check(machine)[0] is None
    machine.flush()()
    assert check(Machine.open(crashable.crash(), "m", registry)) == [None, epoch]
    with pytest.raises(KeyError):
        machine.kept_row(b"d1")


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1000, 1 << 20])
def test_a_restored_replica_is_the_source(crashable: Crashable, registry: Registry, chunk_bytes: int) -> None:
    source = filled()
    machine = Machine.create_empty(crashable.engine, "m", registry)
    content = stream(source, chunk_bytes)
    assert content == stream(source)
    install(machine, content, source)
    assert rows_of(machine.view()) == rows_of(source.view())
    assert machine.durable_index() == machine.applied_index() == 51
    machine = Machine.open(crashable.crash(), "m", registry)
    assert rows_of(machine.view()) == rows_of(source.view())
    assert (machine.members(), machine.group_time_ms(), machine.revision_base) == (MEMBERS, 49, 100)
    entry = put(52, b"0", b"next", stamp_ms=60)
    assert machine.apply_many([entry]) == source.apply_many([entry]) == [(152, 142)]
    assert stream(machine) == stream(source)


def test_a_snapshot_is_of_exactly_its_index_whatever_is_written_meanwhile(
    crashable: Crashable, registry: Registry
) -> None:
    machine = Machine.create(crashable.engine, "m", registry, members=MEMBERS)
    machine.apply_many([put(2 + at, b"%04d" % at, b"v") for at in range(2000)])
    expected = rows_of(machine.view())
    source = machine.snapshot()
    parser = SnapshotParser()
    rows = []
    index = machine.applied_index()
    for at, chunk in enumerate(source.chunks(1000)):
        rows += parser.feed(chunk)
        machine.apply_many(
            [
                put(index + 1 + at, b"%04d" % (at * 37 % 3000), b"later"),
            ]
        )
        if at % 5 == 0:
            machine.flush()()
    source.close()
    assert parser.finished
    assert source.index == index
    assert parser.header is not None
    assert parser.header.index == index
    assert rows == [row for row in expected if not row[0].startswith(b"m")]


def test_readers_of_the_old_state_are_left_alone(crashable: Crashable, registry: Registry) -> None:
    machine = Machine.create(crashable.engine, "m", registry, members=MEMBERS)
    machine.apply_many([put(2, b"old", b"v")])
    before = rows_of(machine.view())
    frozen = machine.freeze()
    scan = machine.view().scan(b"", None)
    first = next(scan)
    late_flush = machine.flush()
    install(machine, stream(filled()), filled())
    assert rows_of(frozen) == before
    assert [first, *scan] == before
    assert late_flush() == 2
    assert machine.durable_index() == 51
    frozen.close()
    assert machine.view().get(b"dold") is None


def damage_cut(content: bytes) -> bytes:
    return content[:-1]


def damage_early(content: bytes) -> bytes:
    return content[:10]


def damage_nothing_there(content: bytes) -> bytes:
    return b""


def damage_tail(content: bytes) -> bytes:
    return content + b"x"


def damage_magic(content: bytes) -> bytes:
    return b"X" + content[1:]


def damage_version(content: bytes) -> bytes:
    return content[:9] + b"\x09" + content[10:]


def damage_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes((content[middle] ^ 1,)) + content[middle + 1 :]


def damage_count(content: bytes) -> bytes:
    body = content[:-16]
    return body + b"\xff\xff\xff\xff" + (1).to_bytes(8, "big") + zlib.crc32(body).to_bytes(4, "big")


def _with_rows(content: bytes, *rows: tuple[bytes, bytes]) -> bytes:
    body = content[: 14 + int.from_bytes(content[10:14], "big")]
    for key, value in rows:
        body += len(key).to_bytes(4, "big") + len(value).to_bytes(4, "big") + key + value
    return body + b"\xff\xff\xff\xff" + len(rows).to_bytes(8, "big") + zlib.crc32(body).to_bytes(4, "big")


def damage_order(content: bytes) -> bytes:
    return _with_rows(content, (b"db", b"1"), (b"da", b"1"))


def damage_meta(content: bytes) -> bytes:
    return _with_rows(content, (b"ma", b"1"))


def damage_length(content: bytes) -> bytes:
    at = 14 + int.from_bytes(content[10:14], "big")
    return content[:at] + b"\xf0" + content[at + 1 :]


DAMAGES: list[tuple[Callable[[bytes], bytes], str]] = [
    (damage_cut, "ends early"),
    (damage_early, "ends early"),
    (damage_nothing_there, "ends early"),
    (damage_tail, "1 bytes after the end"),
    (damage_magic, "not a snapshot"),
    (damage_version, "format 9 is unknown"),
    (damage_byte, "snapshot"),
    (damage_count, "says it has 1 rows"),
    (damage_order, "ascending order"),
    (damage_meta, "own prefix"),
    (damage_length, "over the limit"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_a_damaged_stream_changes_nothing(
    crashable: Crashable, registry: Registry, damage: Callable[[bytes], bytes], reason: str
) -> None:
    source = filled()
    machine = Machine.create(crashable.engine, "m", registry, members=MEMBERS)
    before = rows_of(machine.view())
    with pytest.raises(ValueError, match=reason):
        install(machine, damage(stream(source)), source)
    assert rows_of(machine.view()) == before
    assert crashable.engine.spaces() == ["m@1"]
    install(machine, stream(source), source)
    assert rows_of(machine.view()) == rows_of(source.view())


def test_a_snapshot_of_other_facts_than_the_log_says_is_refused(crashable: Crashable, registry: Registry) -> None:
    source = filled()
    machine = Machine.create_empty(crashable.engine, "m", registry)
    for index, term, members in (
        (50, 1, MEMBERS),
        (51, 2, MEMBERS),
        (51, 1, Members((1, 2, 3))),
    ):
        sink = machine.restore()
        sink.write(stream(source))
        with pytest.raises(ValueError, match="snapshot"):
            sink.commit(index, term, members)
    sink = machine.restore()
    sink.write(stream(source))
    sink.commit(51, 1, Members((3, 2, 1), (4,)))
    assert machine.applied_index() == 51


def test_a_restore_never_goes_back(crashable: Crashable, registry: Registry) -> None:
    source = filled()
    machine = Machine.create(crashable.engine, "m", registry, members=MEMBERS)
    machine.apply_many([put(2 + at, b"a", b"b") for at in range(60)])
    before = rows_of(machine.view())
    with pytest.raises(InvariantError, match="restored to 51"):
        install(machine, stream(source), source)
    machine.flush()()
    assert rows_of(Machine.open(crashable.crash(), "m", registry).view()) == before
    assert crashable.engine.spaces() == ["m@1"]


def test_an_aborted_or_forgotten_sink_leaves_nothing(crashable: Crashable, registry: Registry) -> None:
    machine = Machine.create(crashable.engine, "m", registry, members=MEMBERS)
    first = machine.restore()
    first.write(stream(filled())[:500])
    second = machine.restore()
    assert crashable.engine.spaces() == ["m@1", "m@2"]
    with pytest.raises(InvariantError, match="after its end"):
        first.write(b"x")
    second.abort()
    second.abort()
    assert crashable.engine.spaces() == ["m@1"]


class Died(Exception):
    pass


class DieAt:
    """Dies at the nth pass of any point."""

    def __init__(self, passes: int) -> None:
        self.passes = passes
        self.reached = ""

    def reach(self, name: str) -> None:
        self.passes -= 1
        self.reached = name
        if self.passes == 0:
            raise Died(name)


def test_death_at_any_step_of_a_restore_leaves_the_old_state_or_the_new(
    crashable: Crashable, registry: Registry
) -> None:
    source = filled(3000)
    content = stream(source)
    after = rows_of(source.view())
    seen: dict[str, str] = {}
    for passes in range(1, 100):
        for leftover in crashable.engine.spaces():
            crashable.engine.drop(leftover)
        failpoints = DieAt(0)
        machine = Machine.create(crashable.engine, "m", registry, members=MEMBERS, failpoints=failpoints)
        machine.apply_many([put(2, b"old", b"v")])
        machine.flush()()
        before = rows_of(machine.view())
        failpoints.passes = passes
        try:
            install(machine, content, source)
        except Died as died:
            where = str(died)
        else:
            break
        engine = crashable.crash()
        machine = Machine.open(engine, "m", registry)
        rows = rows_of(machine.view())
        assert rows in (before, after)
        seen[where] = "old" if rows == before else "new"
        assert len(engine.spaces()) == 1, "the left-over was swept"
        install(machine, content, source)
        assert rows_of(machine.view()) == after
    assert seen == {
        "machine.restore_created": "old",
        "machine.restore_written": "old",
        "machine.restore_before_flush": "old",
        "machine.restore_flushed": "new",
        "machine.restore_dropped": "new",
    }


def test_a_destroy_that_died_between_two_drops_never_brings_the_older_state_back(registry: Registry) -> None:
    source = filled()
    failpoints = DieAt(0)
    engine = SimEngine(failpoints=failpoints)
    machine = Machine.create(engine, "m", registry, members=MEMBERS)
    older = rows_of(machine.view())
    install(machine, stream(source), source)
    engine.create("m@1")  # as if the restore had died before it dropped the old state
    engine.write("m@1", older, ())
    engine.flush("m@1")
    failpoints.passes = 2  # before and after the first drop
    with pytest.raises(Died, match="after_drop"):
        machine.destroy()
    engine.crash()
    reopened = Machine.open(engine, "m", registry)
    assert rows_of(reopened.view()) == rows_of(source.view())
    reopened.destroy()
    assert engine.spaces() == []
