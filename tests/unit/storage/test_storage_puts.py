"""Runs of plain puts take a short cut through apply: it must come to what the commands' own handlers come to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from flotta_consensus.api import Entry, EntryKind, Members
from flotta_embedded.machine import Machine
from flotta_embedded.registry import Registry
from flotta_embedded.simulated import SimEngine
from flotta_native import PutRun
from flotta_storage.core import commands, keys
from flotta_storage.core.commands import EXPIRE, apply_expire, apply_members, apply_writes, expire_payload, new_registry
from flotta_storage.core.puts import PutResults, apply_plain_puts
from flotta_storage.core.rows import encode_row
from flotta_storage.core.shard_state import Stage, birth_state, encode_state
from flotta_storage.core.writes import WRITE, Write, WriteKind, WriteResult, encode_payload, encode_write, fingerprint
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_support import DictView

MEMBERS = Members((1, 2, 3))
KEYS = st.sampled_from([b"a", b"b", b"\x00", b"abc"])
STAMPS = st.integers(0, 300)
PLAIN = {"epoch": 1}
OTHERS: list[dict[str, Any]] = [
    {"epoch": 0},
    {"epoch": 2},
    {"epoch": 1, "ttl_ms": 20},
    {"epoch": 1, "delete": True},
    {"epoch": 1, "if_not_exists": True},
    {"epoch": 1, "if_version_equals": 4},
    {"epoch": 1, "request_id": b"once"},
]


def slow_registry() -> Registry:
    """The commands without the short cut."""
    registry = Registry()
    registry.vector(WRITE)(apply_writes)
    registry.vector(EXPIRE)(apply_expire)
    registry.on_members(apply_members)
    for row_key in (keys.SHARD_KEY, keys.DIVISION_KEY, keys.FOLLOWED_KEY, keys.ABSORPTION_KEY):
        registry.keep_row(row_key)
    return registry


def payload_of(write: Write, stamp_ms: int) -> bytes:
    if write.request_id:
        write = write._replace(fingerprint=fingerprint(write))
    return encode_payload(stamp_ms, encode_write(write))


def machine_of(registry: Registry) -> Machine:
    rows = commands.birth_rows("shard-0", "default", 0, 1)
    return Machine.create(SimEngine(), "m", registry, members=MEMBERS, revision_base=7, rows=rows)


def contents(machine: Machine) -> tuple[list[tuple[bytes, bytes]], int, int, int]:
    rows = list(machine.view().scan(b"", None))
    return rows, machine.applied_index(), machine.group_time_ms(), machine.revision_base


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    entries: list[Entry] = []
    for index in range(2, 2 + draw(st.integers(1, 30))):
        stamp_ms = draw(STAMPS)
        match draw(st.sampled_from(["plain"] * 12 + ["other", "other", "expire", "empty", "conf"])):
            case "plain":
                write = Write(draw(KEYS), draw(st.binary(max_size=3)), **PLAIN)
                entries.append(Entry(index, 1, EntryKind.NORMAL, payload_of(write, stamp_ms)))
            case "other":
                write = Write(draw(KEYS), **draw(st.sampled_from(OTHERS)))
                entries.append(Entry(index, 1, EntryKind.NORMAL, payload_of(write, stamp_ms)))
            case "expire":
                entries.append(Entry(index, 1, EntryKind.NORMAL, expire_payload(stamp_ms)))
            case "empty":
                entries.append(Entry(index, 1, EntryKind.EMPTY, b""))
            case "conf":
                members = Members(tuple(sorted(draw(st.sets(st.integers(1, 4), min_size=1)))))
                entries.append(Entry(index, 1, EntryKind.CONF, b"", members))
    return entries


@given(logs(), st.data())
@settings(max_examples=150, deadline=None)
def test_the_short_cut_comes_to_what_the_commands_come_to(entries: list[Entry], data: st.DataObject) -> None:
    slow, quick = machine_of(slow_registry()), machine_of(new_registry())
    expected = [result for entry in entries for result in slow.apply_many([entry])]
    found: list[Any] = []
    while len(found) < len(entries):
        cut = data.draw(st.integers(1, len(entries) - len(found)))
        found += quick.apply_many(entries[len(found) : len(found) + cut])
    assert found == expected
    assert contents(quick) == contents(slow)


def state_rows(stage: Stage = Stage.SERVES) -> dict[bytes, bytes | None]:
    return {keys.SHARD_KEY: encode_state(replace(birth_state("shard-0", "default", 0, 1), stage=stage))}


def plain(*written: tuple[bytes, bytes], stamp_ms: int = 50) -> list[bytes]:
    return [payload_of(Write(key, value, **PLAIN), stamp_ms) for key, value in written]


def test_a_run_of_plain_puts_is_one_row_for_each_key() -> None:
    view = DictView({b"db": encode_row(3, 10, 20, 0, b"old")})
    done = apply_plain_puts(view, state_rows(), plain((b"a", b"1"), (b"b", b"2"), (b"a", b"3")), 100, 60)
    assert done is not None
    assert done.puts == [(b"da", encode_row(102, 60, 60, 0, b"3")), (b"db", encode_row(101, 10, 60, 0, b"2"))]
    assert done.now_ms == 60
    assert list(done.results) == [WriteResult(WriteKind.OK, number, number) for number in (100, 101, 102)]


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.SERVES])
def test_a_shard_in_another_stage_is_left_to_the_commands(stage: Stage) -> None:
    assert apply_plain_puts(DictView({}), state_rows(stage), plain((b"a", b"1")), 100, 60) is None


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_not_plain_is_left_to_the_commands(other: dict[str, Any]) -> None:
    payloads = [*plain((b"a", b"1")), payload_of(Write(b"b", **other), 50)]
    assert apply_plain_puts(DictView({}), state_rows(), payloads, 100, 60) is None


def test_rows_that_expire_or_are_damaged_are_left_to_the_commands() -> None:
    whole = encode_row(3, 10, 20, 0, b"old")
    for row in (encode_row(3, 10, 20, 1, b"old"), whole[:20], b"\x02" + whole[1:], b""):
        assert apply_plain_puts(DictView({b"da": row}), state_rows(), plain((b"a", b"1")), 100, 60) is None


def test_a_shard_without_a_record_is_left_to_the_commands() -> None:
    assert apply_plain_puts(DictView({}), {keys.SHARD_KEY: None}, plain((b"a", b"1")), 100, 60) is None


def test_entries_that_are_cut_short_are_nobodys_plain_puts() -> None:
    (whole,) = plain((b"key", b""))
    assert PutRun.of([whole], 1, 0) is not None
    for end in range(len(whole)):
        assert PutRun.of([whole[:end]], 1, 0) is None


def test_rows_must_be_as_many_as_keys() -> None:
    run = PutRun.of(plain((b"a", b"1")), 1, 0)
    assert run is not None
    with pytest.raises(ValueError, match="for each of the keys"):
        run.rows([], 1)


def test_results_are_a_sequence() -> None:
    results = PutResults(range(5, 9))
    assert (len(results), results[1].revision, results[-1].revision) == (4, 6, 8)
    assert [result.revision for result in results[1:3]] == [6, 7]
    with pytest.raises(IndexError):
        results[4]
