"""Client histories of one shard against its committed log, and against no log at all.

`check_against_log` replays the log through the reference model: every answer must be the model's answer at the
index it names, indices must keep the real-time order, what was acknowledged must be in the log and what was refused
must not. `check_linearizable_keys` then takes the same history per key through the WGL checker, which knows
nothing of indices; the log only tells it which unanswered writes happened, and by when.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from flotta_consensus.api import EntryKind
from flotta_consensus.sim.checkers import AppliedEntry, CommittedLog, SafetyViolation
from flotta_consensus.sim.history import Operation, Verdict
from flotta_consensus.sim.linearizability import UNSEEN, Call, Linearizable, State, check_linearizable
from shard_commands import EMPTY_CHAIN, extend, tag_of_payload
from shard_model import NO_EFFECT, ShardModel

MOVED = "MOVED"
TIMED_PREFIX = b"flotta:"
READS = frozenset({"get", "chain"})


def tag_of(operation: Operation) -> bytes:
    """What marks the operation in the log: its request id, or a token of its own."""
    family: bytes = operation.notes.get("request_id", b"")
    return family or b"v%d" % operation.number


def shortened(value: Any) -> str:
    """Without the padding."""
    return re.sub(r"\.{4,}", "..", repr(value))


def padded(tag: bytes, padding_bytes: int) -> bytes:
    """A value of some length that begins with its tag."""
    return tag + b"." * padding_bytes


def describe(operation: Operation) -> str:
    span = f"[{operation.called_us / 1e6:.6f}, {(operation.returned_us or 0) / 1e6:.6f}]"
    return (
        f"operation {operation.number} of client {operation.client}: {operation.kind} {operation.key!r} "
        f"{shortened(operation.args)} {span} "
        f"-> {operation.verdict.value} {shortened(operation.result)} at {operation.revision}"
    )


Placed = dict[bytes, list[AppliedEntry]]
"""Where each tag stands in the log. Only attempts of one request share a tag, so others stand there once at most."""


def entries_by_tag(entries: Iterable[AppliedEntry]) -> Placed:
    found: Placed = defaultdict(list)
    for entry in entries:
        tag = tag_of_payload(entry.payload) if entry.kind == EntryKind.NORMAL else None
        if tag is not None:
            found[tag].append(entry)
    return dict(found)


def check_against_log(log: CommittedLog, model: ShardModel, operations: Sequence[Operation]) -> Placed:
    """Replays `log` through `model`, which ends at the log's end. Returns where each tag stands."""
    entries = log.in_order(model.index + 1)
    placed = entries_by_tag(entries)
    _check_placement(log, operations, placed)
    reads: dict[int, list[Operation]] = defaultdict(list)
    writes: dict[int, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind in READS:
            if operation.verdict is Verdict.OK:
                reads[operation.revision - model.revision_base].append(operation)
        elif operation.verdict is Verdict.OK:
            writes[operation.notes["index"]].append(operation)
        else:
            for entry in placed.get(tag_of(operation), ()):
                writes[entry.index].append(operation)
    beyond = [index for index in reads if not model.index <= index <= log.last_index]
    if beyond:
        raise SafetyViolation(f"a read names index {beyond[0]}, which nobody applied: {describe(reads[beyond[0]][0])}")
    _check_reads(model, reads[model.index])
    for entry in entries:
        answer = model.apply(entry)
        for operation in writes[entry.index]:
            operation.notes.setdefault("answers", {})[entry.index] = answer
            if operation.verdict is Verdict.OK and operation.result != answer:
                raise SafetyViolation(f"the log says {answer!r}: {describe(operation)}")
        _check_reads(model, reads[entry.index])
    check_real_time_order(operations, placed, model.revision_base)
    return placed


def _check_placement(log: CommittedLog, operations: Sequence[Operation], placed: Placed) -> None:
    """Acknowledged means committed, at the index it says; refused means never committed."""
    by_tag: dict[bytes, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind not in READS:
            by_tag[tag_of(operation)].append(operation)
    for tag, attempts in by_tag.items():
        free = [entry.index for entry in placed.get(tag, ())]
        for operation in attempts:
            if operation.verdict is Verdict.OK:
                if not placed.get(tag):
                    raise SafetyViolation(
                        f"an acknowledged write is lost from group {log.group}: {describe(operation)}"
                    )
                if operation.notes["index"] not in free:
                    raise SafetyViolation(f"the write stands at {free}, not where it says: {describe(operation)}")
                free.remove(operation.notes["index"])
        unanswered = sum(operation.verdict is Verdict.UNKNOWN for operation in attempts)
        if len(free) > unanswered:
            if any(operation.verdict is Verdict.REJECTED for operation in attempts):
                raise SafetyViolation(f"a refused write was committed at one of {free}: {describe(attempts[0])}")
            raise SafetyViolation(f"a write is in the log more often than proposed, at {free}: {describe(attempts[0])}")


def _check_reads(model: ShardModel, reads: Iterable[Operation]) -> None:
    for operation in reads:
        expected: Any
        if operation.kind == "chain":
            expected = model.chains.get(operation.key, EMPTY_CHAIN)
        elif not model.admits(operation.args, operation.key):
            expected = MOVED
        else:
            row = model.row(operation.key)
            expected = None if row is None else (row.value, row.version)
        if operation.result != expected:
            raise SafetyViolation(f"at index {model.index} the log says {expected!r}: {describe(operation)}")


def check_real_time_order(operations: Sequence[Operation], placed: Placed, revision_base: int = 0) -> None:
    """Whoever was answered before another one called stands before it: a write strictly, a read at least level."""
    completed: list[tuple[int, int, Operation]] = []
    started: list[tuple[int, Operation]] = []
    for operation in operations:
        ok = operation.verdict is Verdict.OK
        if operation.kind in READS:
            if not ok:
                continue
            index = operation.revision - revision_base
        elif ok:
            index = operation.notes["index"]
        else:
            entries = placed.get(tag_of(operation), [])
            if not entries or "request_id" in operation.notes:
                continue  # of a request with several attempts nobody can say which entry is whose
            index = entries[0].index
        started.append((index, operation))
        if ok and operation.returned_us is not None:
            completed.append((operation.returned_us, index, operation))
    completed.sort(key=lambda item: item[0])
    times = [returned_us for returned_us, _, _ in completed]
    highest: list[tuple[int, Operation]] = []
    for _, index, operation in completed:
        if not highest or index > highest[-1][0]:
            highest.append((index, operation))
        else:
            highest.append(highest[-1])
    for index, operation in started:
        before = bisect_right(times, operation.called_us - 1)
        if not before:
            continue
        floor, floor_operation = highest[before - 1]
        if index < floor or (index == floor and operation.kind not in READS):
            raise SafetyViolation(
                f"real-time order: index {index} after index {floor}: {describe(operation)}, "
                f"yet before it returned {describe(floor_operation)}"
            )


# Per key, without indices


def step_key(state: State, asked: Any, answered: Any) -> tuple[bool, State]:
    """A row as (value, version) or None. `asked` ends with the version a write takes if it changes something."""
    kind, value, condition, version = asked
    if kind == "get":
        return answered == state, state
    current: Any = state
    stands = current[1] if current else 0
    refused = None
    if kind == "delete" and current is None:
        refused = "NOT_FOUND"
    elif kind == "create" and current is not None:
        refused = "ALREADY_EXISTS"
    elif condition and stands != condition:
        refused = "VERSION_MISMATCH"
    if refused is not None:
        return answered is UNSEEN or answered == (refused, stands), state
    after = None if kind == "delete" else (value, version)
    return answered is UNSEEN or answered == ("OK", version), after


def step_chain(state: State, asked: Any, answered: Any) -> tuple[bool, State]:
    """A chain as (count, mark)."""
    kind, token, _, _ = asked
    if kind == "chain":
        return answered == state, state
    current: Any = state
    after = extend(current, token)
    return answered is UNSEEN or answered == after, after


def check_linearizable_keys(
    operations: Sequence[Operation], placed: Placed, timed_keys: frozenset[bytes] = frozenset(), revision_base: int = 0
) -> tuple[int, int]:
    """Every key by itself; `timed_keys` expire, which a register knows nothing of. Returns (keys, undecided keys)."""
    rows: dict[bytes, list[Call]] = defaultdict(list)
    chains: dict[bytes, list[Call]] = defaultdict(list)
    writes: dict[bytes, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.key in timed_keys:
            continue
        if operation.kind not in READS:
            writes[tag_of(operation)].append(operation)
        elif operation.verdict is Verdict.OK and operation.returned_us is not None and operation.result != MOVED:
            histories = chains if operation.kind == "chain" else rows
            asked = (operation.kind, b"", 0, 0)
            call = Call(operation.called_us, operation.returned_us, asked, operation.result, describe(operation))
            histories[operation.key].append(call)
    for tag, attempts in writes.items():
        histories = chains if attempts[0].kind == "append" else rows
        histories[attempts[0].key].extend(_write_calls(tag, attempts, placed.get(tag, []), revision_base))
    undecided = 0
    for name, histories, initial, step in (("row", rows, None, step_key), ("chain", chains, EMPTY_CHAIN, step_chain)):
        for key in sorted(histories):
            result = check_linearizable(histories[key], initial, step, steps_max=300_000)
            if result.verdict is Linearizable.NO:
                raise SafetyViolation(f"{name} {key!r} is not linearizable around {result.stuck_at}")
            undecided += result.verdict is Linearizable.UNDECIDED
    return len(rows) + len(chains), undecided


def _write_calls(
    tag: bytes, attempts: Sequence[Operation], entries: Sequence[AppliedEntry], revision_base: int
) -> list[Call]:
    """All attempts of one request are one operation, from its first call to its answer. One that nobody answered was
    over when a replica first applied the entry that took effect. A foreign id is new again after the dedup window, so
    it may take effect twice; an id that says its time may not."""
    answers: dict[int, Any] = {}
    for operation in attempts:
        answers.update(operation.notes.get("answers", {}))
    effective = [entry for entry in entries if _took_effect(answers[entry.index])]
    if len(effective) > 1 and tag.startswith(TIMED_PREFIX):
        indices = [entry.index for entry in effective]
        raise SafetyViolation(f"request {tag!r} took effect more than once, at {indices}: {describe(attempts[0])}")
    shape = attempts[0]
    called = min(operation.called_us for operation in attempts)
    calls = []
    for entry in effective:
        version = revision_base + entry.index
        told = [one for one in attempts if one.verdict is Verdict.OK and one.revision == version]
        returned = min((one.returned_us or called for one in told), default=max(entry.first_applied_us, called))
        answered: Any = told[0].result if told else UNSEEN
        if shape.kind == "append":
            asked: tuple[Any, ...] = ("append", tag, 0, 0)
        else:
            asked = (shape.kind, shape.args[0], shape.args[1], version)
            answered = (answered.kind, answered.version) if told else UNSEEN
        calls.append(Call(called, returned, asked, answered, describe(shape)))
    return calls


def _took_effect(answer: Any) -> bool:
    """Was it executed, whatever came of it? A repetition only repeats the answer."""
    return getattr(answer, "kind", "") not in NO_EFFECT and not getattr(answer, "duplicate", False)
