"""One replica's state machine: order, group time, members, durability and life cycle, on both engines."""

from __future__ import annotations

import pytest
from embedded_harness import KEPT, Crashable, command, conf, empty, make_registry, put, rows_of
from flotta_consensus.api import Entry, EntryKind, Members
from flotta_embedded.errors import InvariantError
from flotta_embedded.generations import machines, sweep_all
from flotta_embedded.machine import Machine
from flotta_embedded.registry import TIME_COMMAND, Registry, raise_revisions

MEMBERS = Members((1, 2, 3))


def create(crashable: Crashable, registry: Registry, name: str = "m", group_time_ms: int = 0) -> Machine:
    return Machine.create(crashable.engine, name, registry, members=MEMBERS, group_time_ms=group_time_ms)


def test_a_birth_replica_is_durable_at_index_one(crashable: Crashable, registry: Registry) -> None:
    rows = [(b"d%d" % number, b"v" * 1000) for number in range(3000)]
    Machine.create(crashable.engine, "m", registry, members=MEMBERS, revision_base=500, rows=rows, group_time_ms=9)
    machine = Machine.open(crashable.crash(), "m", registry)
    assert (machine.applied_index(), machine.durable_index(), machine.applied_term()) == (1, 1, 1)
    assert (machine.members(), machine.group_time_ms(), machine.revision_base) == (MEMBERS, 9, 500)
    assert machine.revision(7) == 507
    assert list(machine.view().scan(b"d", b"e")) == sorted(rows)


def test_durable_follows_flushes_not_applies(crashable: Crashable, registry: Registry) -> None:
    machine = create(crashable, registry)
    machine.apply_many([put(2, b"a", b"1"), put(3, b"b", b"1")])
    assert (machine.applied_index(), machine.durable_index()) == (3, 1)
    flush = machine.flush()
    machine.apply_many([put(4, b"a", b"2")])
    assert machine.durable_index() == 1
    assert flush() == 3
    assert (machine.applied_index(), machine.durable_index()) == (4, 3)
    machine.apply_many([put(5, b"a", b"3")])
    reopened = Machine.open(crashable.crash(), "m", registry)
    assert reopened.applied_index() == reopened.durable_index() == 4  # the flush began after entry 4 was written
    assert reopened.view().get(b"da") == (4).to_bytes(8, "big") + b"2"


def test_an_older_flush_that_ends_later_takes_nothing_back(crashable: Crashable, registry: Registry) -> None:
    machine = create(crashable, registry)
    older = machine.flush()
    machine.apply_many([put(2, b"a", b"1")])
    machine.flush()()
    assert older() == 1
    assert machine.durable_index() == 2


def test_opening_flushes_what_an_earlier_owner_left_in_memory(crashable: Crashable, registry: Registry) -> None:
    create(crashable, registry).apply_many([put(2, b"a", b"1")])
    machine = Machine.open(crashable.engine, "m", registry)
    assert machine.durable_index() == machine.applied_index() == 2
    assert Machine.open(crashable.crash(), "m", registry).applied_index() == 2


def test_entries_apply_once_and_in_order(crashable: Crashable, registry: Registry) -> None:
    for entries in ([put(1, b"a", b"again")], [put(3, b"a", b"gap")], [put(2, b"a", b"ok"), put(2, b"a", b"twice")]):
        machine = create(crashable, registry)
        before = rows_of(machine.view())
        with pytest.raises(InvariantError, match="is next"):
            machine.apply_many(entries)
        assert rows_of(machine.view()) == before
        machine.destroy()


def test_group_time_never_goes_back(crashable: Crashable, registry: Registry) -> None:
    machine = create(crashable, registry, group_time_ms=10)
    stamps = [5, 20, 15, 0, 21]
    results = machine.apply_many(
        [command(2 + at, TIME_COMMAND, b"", stamp_ms=stamp_ms) for at, stamp_ms in enumerate(stamps)]
    )
    assert results == [10, 20, 20, 20, 21]
    machine.flush()()
    machine = Machine.open(crashable.crash(), "m", registry)
    assert machine.group_time_ms() == 21
    assert machine.apply_many([command(7, TIME_COMMAND, b"", stamp_ms=1)]) == [21]


def test_membership_changes_are_state(crashable: Crashable, registry: Registry) -> None:
    machine = create(crashable, registry)
    joint = Members((1, 2, 4), (5,), (1, 2, 3))
    results = machine.apply_many(
        [
            put(2, b"a", b"1"),
            Entry(3, 4, EntryKind.CONF, b"", joint),
            put(4, b"a", b"2"),
            empty(5, 6),
            Entry(6, 6, EntryKind.CONF, b"", Members((1, 2, 4), (5,))),
            Entry(7, 6, EntryKind.CONF, b"", Members((1, 2, 4))),
        ]
    )
    assert results == [(2, None), None, (4, 2), None, None, None]
    machine.flush()()
    machine = Machine.open(crashable.crash(), "m", registry)
    assert machine.members() == Members((1, 2, 4))
    assert (machine.applied_index(), machine.applied_term()) == (7, 6)
    assert machine.view().get(b"depoch") == (3).to_bytes(8, "big"), "the hook ran where the voters changed, once"


def test_a_membership_entry_needs_members(crashable: Crashable, registry: Registry) -> None:
    machine = create(crashable, registry)
    with pytest.raises(InvariantError, match="no members"):
        machine.apply_many([Entry(2, 1, EntryKind.CONF, b"")])


def test_bytes_that_are_no_command_stop_the_machine(crashable: Crashable, registry: Registry) -> None:
    for payload in (b"", b"\x00" * 20, b"\x02" + b"\x00" * 20):
        machine = create(crashable, registry)
        with pytest.raises(InvariantError, match="not a command"):
            machine.apply_many([Entry(2, 1, EntryKind.NORMAL, payload)])
        machine.destroy()


def test_an_empty_replica_waits_for_its_snapshot(crashable: Crashable, registry: Registry) -> None:
    Machine.create_empty(crashable.engine, "m", registry)
    machine = Machine.open(crashable.crash(), "m", registry)
    assert (machine.applied_index(), machine.members()) == (0, Members())
    with pytest.raises(InvariantError, match="no snapshot to give"):
        machine.snapshot()
    with pytest.raises(InvariantError, match="must come by snapshot"):
        machine.apply_many([put(1, b"a", b"1")])


def test_destroyed_means_gone(crashable: Crashable, registry: Registry) -> None:
    machine = create(crashable, registry)
    other = create(crashable, registry, "other")
    frozen = machine.freeze()
    flush = machine.flush()
    sink = machine.restore()
    machine.destroy()
    machine.destroy()
    sink.abort()
    assert flush() == 1, "a flush that a removal overtook is no error"
    assert len(rows_of(frozen)) == 2
    frozen.close()
    for use in (lambda: machine.apply_many([put(2, b"a", b"1")]), machine.restore):
        with pytest.raises(InvariantError, match="destroyed"):
            use()
    with pytest.raises(KeyError):
        Machine.open(crashable.engine, "m", registry)
    assert machines(crashable.crash()) == ["other"]
    assert other.name == "other"


def test_names_are_checked_and_taken_once(crashable: Crashable, registry: Registry) -> None:
    create(crashable, registry)
    with pytest.raises(ValueError, match="exists"):
        create(crashable, registry)
    for name in ("", "a@1"):
        with pytest.raises(ValueError, match="machine name"):
            create(crashable, registry, name)
    with pytest.raises(ValueError, match="machine's own prefix"):
        Machine.create(crashable.engine, "bad", registry, members=MEMBERS, rows=[(b"ma", b"x")])


def test_a_birth_that_died_half_way_starts_anew(crashable: Crashable) -> None:
    class Died(Exception):
        pass

    class DieAt:
        def __init__(self, name: str) -> None:
            self.name = name

        def reach(self, name: str) -> None:
            if name == self.name:
                raise Died

    rows = [(b"dk", b"v")]
    for point, exists in (
        ("machine.create_created", False),
        ("machine.create_before_flush", False),
        ("machine.create_flushed", True),
    ):
        with pytest.raises(Died):
            Machine.create(crashable.engine, "m", make_registry(), members=MEMBERS, rows=rows, failpoints=DieAt(point))
        engine = crashable.crash()
        assert machines(engine) == (["m"] if exists else [])
    assert sweep_all(engine) == 0
    machine = Machine.open(engine, "m", make_registry())
    assert machine.view().get(b"dk") == b"v"
    assert engine.spaces() == ["m@3"]


def test_opening_reads_the_same_few_rows_however_big_the_machine_is(crashable: Crashable, registry: Registry) -> None:
    create(crashable, registry)
    engine = crashable.engine
    reads: list[bytes] = []

    class Counting:
        def __init__(self, name: str) -> None:
            self._view = engine.view(name)

        def get(self, key: bytes) -> bytes | None:
            reads.append(key)
            return self._view.get(key)

        def multi_get(self, keys: list[bytes]) -> list[bytes | None]:
            reads.extend(keys)
            return self._view.multi_get(keys)

    class CountingEngine:
        def __getattr__(self, name: str) -> object:
            return Counting if name == "view" else getattr(engine, name)

    Machine.open(CountingEngine(), "m", registry)  # type: ignore[arg-type]
    assert set(reads) == {b"ma", b"mm", *KEPT}


def test_conf_changes_before_and_after_in_one_batch_reach_the_hook_in_order(crashable: Crashable) -> None:
    registry = make_registry()
    seen: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
    registry.on_members(lambda overlay, index, before, after: seen.append((index, before.voters, after.voters)))
    create(crashable, registry).apply_many([conf(2, 1, 2), conf(3, 1)])
    assert seen == [(2, (1, 2, 3), (1, 2)), (3, (1, 2), (1,))]


def test_whoever_watches_the_kept_rows_hears_of_each_batch_and_restore_that_wrote_one(
    crashable: Crashable, registry: Registry
) -> None:
    machine = create(crashable, registry)
    heard: list[bytes | None] = []
    machine.watch_kept(lambda: heard.append(machine.kept_row(KEPT[0])))
    machine.apply_many([put(2, b"a", b"1")])
    assert heard == []
    machine.apply_many([put(3, KEPT[0][1:], b"2"), put(4, b"a", b"1")])
    assert heard == [machine.view().get(KEPT[0])] and heard[0] is not None
    source = machine.snapshot()
    other = Machine.create_empty(crashable.engine, "other", registry)
    other.watch_kept(lambda: heard.append(other.kept_row(KEPT[0])))
    sink = other.restore()
    for chunk in source.chunks(1 << 16):
        sink.write(chunk)
    sink.commit(4, machine.applied_term(), MEMBERS)
    source.close()
    assert heard == [heard[0], heard[0]]


@pytest.mark.parametrize("cut", range(1, 7))
def test_revisions_go_on_higher_after_they_were_raised_however_entries_are_cut(
    crashable: Crashable, registry: Registry, cut: int
) -> None:
    machine = create(crashable, registry)
    entries = [
        put(2, b"a", b"1"),
        Entry(3, 1, EntryKind.NORMAL, raise_revisions(1000)),
        Entry(4, 1, EntryKind.NORMAL, raise_revisions(50)),
        conf(5, 1, 2),
        put(6, b"b", b"1"),
        Entry(7, 1, EntryKind.NORMAL, raise_revisions(1)),
        put(8, b"c", b"1"),
    ]
    machine.apply_many(entries[:cut])
    machine.apply_many(entries[cut:])
    revisions = [int.from_bytes((machine.view().get(b"d" + key) or b"")[:8], "big") for key in (b"a", b"b", b"c")]
    assert revisions == [2, 1056, 1059]
    assert machine.revision(machine.applied_index()) == 1059
    machine.flush()()
    assert Machine.open(crashable.crash(), "m", registry).revision_base == 1051
