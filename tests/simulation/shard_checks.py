"""Client histories of one shard against its committed log, and against no log at all.

`check_against_log` replays the log through the reference model: every answer must be the model's answer at the
index it names, indices must keep the real-time order, what was acknowledged must be in the log and what was refused
must not. `check_linearizable_keys` then takes the same history per key through the WGL checker, which knows
nothing of indices; the log only tells it which unanswered writes happened, and by when.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from flotta_consensus.sim.checkers import AppliedEntry, CommittedLog, SafetyViolation
from flotta_consensus.sim.history import Operation, Verdict
from flotta_consensus.sim.linearizability import UNSEEN, Call, Linearizable, State, check_linearizable
from shard_commands import EMPTY_CHAIN, extend, tag_of_payload
from shard_model import Answer, ShardModel

MOVED = "MOVED"
READS = frozenset({"get", "chain"})


def tag_of(operation: Operation) -> bytes:
    """What marks an attempt in the log."""
    return b"%d" % operation.number


def describe(operation: Operation) -> str:
    span = f"[{operation.called_us / 1e6:.6f}, {(operation.returned_us or 0) / 1e6:.6f}]"
    return (
        f"operation {operation.number} of client {operation.client}: {operation.kind} {operation.key!r} "
        f"{operation.args!r} {span} -> {operation.verdict.value} {operation.result!r} at {operation.revision}"
    )


def indices_by_tag(entries: Iterable[AppliedEntry]) -> dict[bytes, AppliedEntry]:
    """Where each attempt stands in the log; standing there twice is a violation."""
    found: dict[bytes, AppliedEntry] = {}
    for entry in entries:
        if entry.kind != 0:
            continue
        tag = tag_of_payload(entry.payload)
        if tag is None:
            continue
        if tag in found:
            raise SafetyViolation(f"attempt {tag!r} is in the log twice, at {found[tag].index} and {entry.index}")
        found[tag] = entry
    return found


def check_against_log(
    log: CommittedLog, model: ShardModel, operations: Sequence[Operation]
) -> dict[bytes, AppliedEntry]:
    """Replays `log` through `model`, which ends at the log's end. Returns where each attempt stands."""
    entries = log.in_order(model.index + 1)
    placed = indices_by_tag(entries)
    _check_placement(log, operations, placed)
    reads: dict[int, list[Operation]] = defaultdict(list)
    writes: dict[int, Operation] = {}
    for operation in operations:
        if operation.kind in READS:
            if operation.verdict is Verdict.OK:
                reads[operation.revision - model.revision_base].append(operation)
        elif (entry := placed.get(tag_of(operation))) is not None:
            writes[entry.index] = operation
    beyond = [index for index in reads if not model.index <= index <= log.last_index]
    if beyond:
        raise SafetyViolation(f"a read names index {beyond[0]}, which nobody applied: {describe(reads[beyond[0]][0])}")
    _check_reads(model, reads[model.index])
    for entry in entries:
        answer = model.apply(entry)
        operation = writes.get(entry.index)
        if operation is not None:
            operation.notes["answer_of_log"] = answer
            if operation.verdict is Verdict.OK and operation.result != answer:
                raise SafetyViolation(f"the log says {answer!r}: {describe(operation)}")
        _check_reads(model, reads[entry.index])
    check_real_time_order(operations, placed, model.revision_base)
    return placed


def _check_placement(log: CommittedLog, operations: Sequence[Operation], placed: dict[bytes, AppliedEntry]) -> None:
    """Acknowledged means committed, at the index it says; refused means never committed."""
    for operation in operations:
        if operation.kind in READS:
            continue
        entry = placed.get(tag_of(operation))
        if operation.verdict is Verdict.OK:
            if entry is None:
                raise SafetyViolation(f"an acknowledged write is lost from group {log.group}: {describe(operation)}")
            if entry.index != operation.notes["index"]:
                raise SafetyViolation(f"the write stands at index {entry.index}: {describe(operation)}")
        elif operation.verdict is Verdict.REJECTED and entry is not None:
            raise SafetyViolation(f"a refused write was committed at index {entry.index}: {describe(operation)}")


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


def check_real_time_order(
    operations: Sequence[Operation], placed: dict[bytes, AppliedEntry], revision_base: int = 0
) -> None:
    """Whoever was answered before another one called stands before it: a write strictly, a read at least level."""
    completed: list[tuple[int, int, Operation]] = []
    started: list[tuple[int, Operation]] = []
    for operation in operations:
        if operation.kind in READS:
            if operation.verdict is not Verdict.OK:
                continue
            index = operation.revision - revision_base
        else:
            entry = placed.get(tag_of(operation))
            if entry is None:
                continue
            index = entry.index
        started.append((index, operation))
        if operation.verdict is Verdict.OK and operation.returned_us is not None:
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
    kind, token = asked
    if kind == "chain":
        return answered == state, state
    current: Any = state
    after = extend(current, token)
    return answered is UNSEEN or answered == after, after


def check_linearizable_keys(
    operations: Sequence[Operation], placed: dict[bytes, AppliedEntry], timed_keys: frozenset[bytes] = frozenset()
) -> tuple[int, int]:
    """Every key by itself; `timed_keys` expire, which a register knows nothing of. Returns (keys, undecided keys)."""
    rows: dict[bytes, list[Call]] = defaultdict(list)
    chains: dict[bytes, list[Call]] = defaultdict(list)
    for operation in operations:
        if operation.key in timed_keys:
            continue
        if operation.kind in ("append", "chain"):
            call = _chain_call(operation, placed)
            if call is not None:
                chains[operation.key].append(call)
        else:
            call = _row_call(operation, placed)
            if call is not None:
                rows[operation.key].append(call)
    undecided = 0
    for name, histories, initial, step in (("row", rows, None, step_key), ("chain", chains, EMPTY_CHAIN, step_chain)):
        for key in sorted(histories):
            result = check_linearizable(histories[key], initial, step, steps_max=300_000)
            if result.verdict is Linearizable.NO:
                raise SafetyViolation(f"{name} {key!r} is not linearizable around {result.stuck_at}")
            undecided += result.verdict is Linearizable.UNDECIDED
    return len(rows) + len(chains), undecided


def _span(operation: Operation, placed: dict[bytes, AppliedEntry]) -> tuple[float, float] | None:
    """The window of an operation that happened. An unanswered write was over when a replica first applied it."""
    if operation.verdict is Verdict.OK and operation.returned_us is not None:
        return operation.called_us, operation.returned_us
    entry = placed.get(tag_of(operation))
    if operation.verdict is Verdict.UNKNOWN and entry is not None:
        return operation.called_us, max(entry.first_applied_us, operation.called_us)
    return None


def _row_call(operation: Operation, placed: dict[bytes, AppliedEntry]) -> Call | None:
    span = _span(operation, placed)
    if span is None:
        return None
    if operation.kind == "get":
        if operation.result == MOVED:
            return None
        return Call(*span, ("get", None, 0, 0), operation.result, describe(operation))
    entry = placed[tag_of(operation)]
    answer: Answer = operation.notes["answer_of_log"]
    if answer.kind == "SHARD_MOVED":
        return None
    answered = (operation.result.kind, operation.result.version) if operation.verdict is Verdict.OK else UNSEEN
    value, condition = operation.args[0], operation.args[1]
    version = operation.notes.get("revision_base", 0) + entry.index
    return Call(*span, (operation.kind, value, condition, version), answered, describe(operation))


def _chain_call(operation: Operation, placed: dict[bytes, AppliedEntry]) -> Call | None:
    span = _span(operation, placed)
    if span is None:
        return None
    if operation.kind == "chain":
        return Call(*span, ("chain", b""), operation.result, describe(operation))
    answered: Any = operation.result if operation.verdict is Verdict.OK else UNSEEN
    return Call(*span, ("append", tag_of(operation)), answered, describe(operation))
