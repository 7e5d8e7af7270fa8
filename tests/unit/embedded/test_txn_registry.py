"""What ordinary commands may do, and what happens to those that do something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from embedded_harness import command, rows_of
from flotta_consensus.api import Entry, EntryKind, Members
from flotta_embedded.api import Command, Overlay
from flotta_embedded.codec import encode_value
from flotta_embedded.errors import CommandError, InvariantError, Rejection, UnknownCommandError
from flotta_embedded.keys import prefix_end, table_prefix
from flotta_embedded.machine import Machine
from flotta_embedded.registry import TIME_COMMAND, Registry
from flotta_embedded.simulated import SimEngine
from flotta_embedded.txn import Txn
from hypothesis import given
from hypothesis import strategies as st


def machine_of(registry: Registry) -> Machine:
    return Machine.create(SimEngine(), "m", registry, members=Members((1,)), revision_base=1000)


def call(machine: Machine, registry: Registry, name: str, *args: Any, stamp_ms: int = 7) -> Any:
    payload = registry.call(name, *args, stamp_ms=stamp_ms)
    return machine.apply_many([Entry(machine.applied_index() + 1, 1, EntryKind.NORMAL, payload)])[0]


def test_a_transaction_reads_its_writes_and_knows_its_entry() -> None:
    registry = Registry()

    @registry.command("run")
    def run(txn: Txn) -> dict[str, Any]:
        txn.put(b"a", b"1")
        txn.put(b"b", b"2")
        txn.table("t").put(b"a", b"table")
        assert txn.delete(b"a") is True
        assert txn.delete(b"a") is False
        return {
            "get": txn.get(b"a"),
            "many": txn.multi_get([b"b", b"a"]),
            "scan": [list(row) for row in txn.scan()],
            "table": txn.table("t").get(b"a"),
            "facts": (txn.index, txn.revision, txn.now_ms),
        }

    machine = machine_of(registry)
    assert call(machine, registry, "run", stamp_ms=55) == {
        "get": None,
        "many": [b"2", None],
        "scan": [[b"b", b"2"]],
        "table": b"table",
        "facts": [2, 1002, 55],
    }


def test_a_command_error_rolls_back_that_command_alone() -> None:
    registry = Registry()

    @registry.command("put")
    def put(txn: Txn, key: bytes, fail: bool) -> str:
        txn.put(key, b"v")
        if fail:
            raise CommandError("NO", f"not {key!r}", (1, 2))
        return "yes"

    machine = machine_of(registry)
    entries = [
        command(2 + at, "put", encode_value([key, fail]))
        for at, (key, fail) in enumerate([(b"a", False), (b"b", True), (b"c", False)])
    ]
    assert machine.apply_many(entries) == ["yes", Rejection("NO", "not b'b'", [1, 2]), "yes"]
    assert [key for key, _ in machine.view().scan(b"d", b"e")] == [b"da", b"dc"]


def test_bad_arguments_are_a_rejection_on_every_replica_and_an_error_before_the_log() -> None:
    registry = Registry()

    @registry.command("two")
    def two(txn: Txn, first: int, second: int = 2) -> int:
        return first + second

    machine = machine_of(registry)
    assert call(machine, registry, "two", 1) == 3
    with pytest.raises(ValueError, match="takes 1 to 2 arguments, not 3"):
        registry.call("two", 1, 2, 3, stamp_ms=0)
    with pytest.raises(TypeError):
        registry.call("two", 1.5, stamp_ms=0)
    with pytest.raises(KeyError):
        registry.call("three", stamp_ms=0)
    bad = [encode_value([]), encode_value([1, 2, 3]), encode_value({}), b"", b"\xff", encode_value([1]) + b"x"]
    results = machine.apply_many([command(3 + at, "two", args) for at, args in enumerate(bad)])
    assert [result.code for result in results] == ["INVALID_ARGUMENT"] * len(bad)
    assert machine.applied_index() == 2 + len(bad)


def test_any_other_exception_leaves_the_state_and_kills_the_machine() -> None:
    registry = Registry()

    @registry.command("put")
    def put(txn: Txn, key: bytes) -> None:
        txn.put(key, b"v")
        if key == b"bad":
            raise ZeroDivisionError("a bug")

    machine = machine_of(registry)
    before = rows_of(machine.view())
    entries = [command(2, "put", encode_value([b"good"])), command(3, "put", encode_value([b"bad"]))]
    with pytest.raises(ZeroDivisionError):
        machine.apply_many(entries)
    assert rows_of(machine.view()) == before
    assert machine.applied_index() == 1
    with pytest.raises(InvariantError, match="ZeroDivisionError"):
        machine.apply_many(entries[:1])


def test_a_result_without_an_encoding_is_a_broken_command() -> None:
    registry = Registry()

    @registry.command("bad")
    def bad(txn: Txn) -> float:
        return 1.5

    machine = machine_of(registry)
    with pytest.raises(InvariantError, match="bad@1 gave back what cannot be encoded"):
        call(machine, registry, "bad")


def test_a_transaction_is_dead_once_its_command_returned() -> None:
    registry = Registry()
    kept: list[Any] = []

    @registry.command("leak")
    def leak(txn: Txn) -> None:
        kept.extend((txn, txn.table("t")))

    machine = machine_of(registry)
    call(machine, registry, "leak")
    uses: list[Callable[[], object]] = [
        lambda: kept[0].get(b"k"),
        lambda: kept[1].put(b"k", b"v"),
        lambda: kept[0].table("x"),
    ]
    for use in uses:
        with pytest.raises(InvariantError, match="after its command returned"):
            use()


def test_an_unknown_command_stops_the_machine_before_it() -> None:
    registry = Registry()
    machine = machine_of(registry)
    with pytest.raises(UnknownCommandError, match=r"entry 3 calls later@2"):
        machine.apply_many([command(2, TIME_COMMAND, b"", stamp_ms=5), Entry(3, 1, EntryKind.NORMAL, _later(registry))])
    assert (machine.applied_index(), machine.group_time_ms()) == (1, 0)


def _later(registry: Registry) -> bytes:
    newer = Registry()

    @newer.command("later", version=2)
    def later(txn: Txn) -> None:
        return None

    return newer.call("later", version=2, stamp_ms=9)


def test_versions_live_side_by_side_and_names_are_unique() -> None:
    registry = Registry()

    @registry.command("c")
    def first(txn: Txn) -> int:
        return 1

    @registry.command("c", version=2)
    def second(txn: Txn) -> int:
        return 2

    with pytest.raises(ValueError, match="c@2 is registered twice"):
        registry.vector("c", version=2)(lambda overlay, commands: [])
    assert registry.names() == ["c@1", "c@2", "flotta.revisions@1", "flotta.time@1"]
    machine = machine_of(registry)
    payloads = [registry.call("c", version=version, stamp_ms=0) for version in (2, 1, 2)]
    entries = [Entry(2 + at, 1, EntryKind.NORMAL, payload) for at, payload in enumerate(payloads)]
    assert machine.apply_many(entries) == [2, 1, 2]


def test_handlers_with_bad_shapes_are_refused_at_registration() -> None:
    registry = Registry()

    def no_txn() -> None: ...

    def keyword(txn: Txn, *, key: bytes) -> None: ...

    for handler in (no_txn, keyword):
        with pytest.raises(TypeError, match="command x@1"):
            registry.command("x")(handler)


def test_a_vector_handler_must_answer_each_command() -> None:
    registry = Registry()

    @registry.vector("short")
    def short(overlay: Overlay, commands: Any) -> list[Any]:
        return []

    machine = machine_of(registry)
    with pytest.raises(InvariantError, match="0 results for 1 commands"):
        machine.apply_many([command(2, "short", b"")])


def test_a_command_cannot_write_the_machines_rows() -> None:
    registry = Registry()

    @registry.vector("evil")
    def evil(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
        overlay.put(b"ma", b"x")
        return [None] * len(commands)

    machine = machine_of(registry)
    with pytest.raises(InvariantError, match="machine's own rows"):
        machine.apply_many([command(2, "evil", b"")])


@given(
    before=st.dictionaries(st.binary(max_size=2), st.binary(max_size=1), max_size=8),
    writes=st.lists(st.tuples(st.binary(max_size=2), st.none() | st.binary(max_size=1)), max_size=8),
    low=st.binary(max_size=2),
    high=st.none() | st.binary(max_size=2),
    prefix=st.binary(max_size=2),
    reverse=st.booleans(),
    limit=st.none() | st.integers(0, 4),
)
def test_scans_merge_the_writes_of_batch_and_transaction(
    before: dict[bytes, bytes],
    writes: list[tuple[bytes, bytes | None]],
    low: bytes,
    high: bytes | None,
    prefix: bytes,
    reverse: bool,
    limit: int | None,
) -> None:
    registry = Registry()
    seen: list[Any] = []

    def write(txn: Txn, changes: list[tuple[bytes, bytes | None]]) -> None:
        for key, value in changes:
            if value is None:
                txn.delete(key)
            else:
                txn.put(key, value)

    @registry.command("first")
    def first(txn: Txn) -> None:
        write(txn, writes[::2])

    @registry.command("second")
    def second(txn: Txn) -> None:
        write(txn, writes[1::2])
        seen.extend(txn.scan(low, high, prefix=prefix, reverse=reverse, limit=limit))

    rows = [(b"d" + key, value) for key, value in before.items()]
    machine = Machine.create(SimEngine(), "m", registry, members=Members((1,)), rows=rows)
    payloads = [registry.call(name, stamp_ms=0) for name in ("first", "second")]
    machine.apply_many([Entry(2 + at, 1, EntryKind.NORMAL, payload) for at, payload in enumerate(payloads)])
    model = dict(before)
    for key, value in [*writes[::2], *writes[1::2]]:
        if value is None:
            model.pop(key, None)
        else:
            model[key] = value
    expected = sorted(
        row for row in model.items() if row[0] >= low and row[0].startswith(prefix) and (high is None or row[0] < high)
    )
    assert seen == (expected[::-1] if reverse else expected)[:limit]
    assert [(key[1:], value) for key, value in machine.view().scan(b"d", b"e")] == sorted(model.items())


def test_table_prefixes_do_not_overlap() -> None:
    names = ["a", "ab", "b", "é", "x" * 255]
    prefixes = [table_prefix(name) for name in names]
    assert not [(a, b) for a in prefixes for b in prefixes if a is not b and b.startswith(a)]
    for name in ("", "x" * 256):
        with pytest.raises(ValueError, match="table name"):
            table_prefix(name)
    assert [prefix_end(prefix) for prefix in (b"", b"a", b"a\xff", b"\xff\xff")] == [None, b"b", b"b", None]
