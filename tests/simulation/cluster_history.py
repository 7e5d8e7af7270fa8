"""What the clients of the cluster were told, against each shard's committed log and against no log at all.

The log of a shard is replayed through the reference model. Then: what was acknowledged happened, as it was said; what
was refused did not; nothing happened twice, whatever gateways repeated; a read saw what stood at the revision it names.
The same history goes key by key through the linearizability checker, which knows nothing of logs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from flotta_consensus.sim.checkers import AppliedEntry, CommittedLog, SafetyViolation
from flotta_consensus.sim.history import Operation, Verdict
from flotta_consensus.sim.linearizability import UNSEEN, Call, Linearizable, State, check_linearizable
from shard_checks import check_real_time_order, describe, entries_by_tag, tag_of
from shard_model import NO_EFFECT, Answer, ShardModel

Effects = dict[bytes, list[tuple[AppliedEntry, Answer]]]
"""The entries of each tag that were executed, whatever came of it."""


def replay(log: CommittedLog, model: ShardModel, operations: Sequence[Operation]) -> Effects:
    """The log through the model, to its end, with every read held to what stood at its revision."""
    entries = log.in_order(model.index + 1)
    tags = {entry.index: tag for tag, found in entries_by_tag(entries).items() for entry in found}
    reads: dict[int, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind == "get" and operation.verdict is Verdict.OK and operation.result is not None:
            reads[operation.revision].append(operation)
    beyond = [revision for revision in reads if not model.revision <= revision <= model.revision_base + log.last_index]
    if beyond:
        raise SafetyViolation(f"a read names a revision that never was: {describe(reads[beyond[0]][0])}")
    effects: Effects = defaultdict(list)
    for entry in entries:
        answer = model.apply(entry)
        if isinstance(answer, Answer) and answer.kind not in NO_EFFECT and not answer.duplicate:
            effects[tags[entry.index]].append((entry, answer))
        for operation in reads[model.revision]:
            row = model.row(operation.key)
            found = None if row is None else (row.value, row.version)
            if operation.result != found:
                raise SafetyViolation(f"at revision {model.revision} the log says {found!r}: {describe(operation)}")
    return effects


def check_outcomes(group: int, operations: Sequence[Operation], effects: Effects) -> None:
    """Exactly once, and as it was said."""
    families: dict[bytes, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind != "get":
            families[tag_of(operation)].append(operation)
    for tag, attempts in families.items():
        happened = effects.get(tag, [])
        first = describe(attempts[0])
        if len(happened) > 1:
            indices = [entry.index for entry, _ in happened]
            raise SafetyViolation(f"a write happened more than once in group {group}, at {indices}: {first}")
        told = [operation for operation in attempts if operation.verdict is Verdict.OK]
        if told and not happened:
            raise SafetyViolation(f"an acknowledged write is lost from group {group}: {describe(told[0])}")
        if happened and all(operation.verdict is Verdict.REJECTED for operation in attempts):
            raise SafetyViolation(f"a refused write happened, at {happened[0][0].index}: {first}")
        for operation in told:
            ((entry, answer),) = happened
            said = operation.result
            exact = said.kind != "OK" or (said.revision, said.version) == (answer.revision, answer.version)
            if said.kind != answer.kind or not exact:
                raise SafetyViolation(f"entry {entry.index} came to {answer!r}: {describe(operation)}")
            operation.notes["index"] = answer.revision


def check_order(operations: Sequence[Operation]) -> None:
    """Whoever was answered before another one called stands before it in the log. Reads that found nothing name no
    revision, EVENTUAL ones promise no order, and of repeated writes nobody can say which attempt it was."""
    ordered = [
        operation
        for operation in operations
        if operation.verdict is Verdict.OK
        and "request_id" not in operation.notes
        and "eventual" not in operation.notes
        and (operation.kind != "get" or operation.result is not None)
    ]
    check_real_time_order(ordered, {}, 0)  # revisions, which go on where a shard divides


def step_row(state: State, asked: Any, answered: Any) -> tuple[bool, State]:
    """A row as (value, version) or None. Answers are what the gateway's API tells, which of a refusal is the kind."""
    kind, value, condition, version = asked
    if kind == "get":
        return answered == state, state
    current: Any = state
    refused = None
    if kind == "delete" and current is None:
        refused = "NOT_FOUND"
    elif kind == "create" and current is not None:
        refused = "ALREADY_EXISTS"
    elif condition and (current[1] if current else 0) != condition:
        refused = "VERSION_MISMATCH"
    if refused is not None:
        return answered is UNSEEN or answered == refused, state
    return answered is UNSEEN or answered == "OK", None if kind == "delete" else (value, version)


def check_keys(operations: Sequence[Operation], effects: Effects, timed: frozenset[bytes]) -> tuple[int, int]:
    """Every key by itself; keys that expire are no registers. Returns (keys, undecided keys)."""
    calls: dict[bytes, list[Call]] = defaultdict(list)
    families: dict[bytes, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.key in timed or "eventual" in operation.notes:
            continue
        if operation.kind != "get":
            families[tag_of(operation)].append(operation)
        elif operation.verdict is Verdict.OK and operation.returned_us is not None:
            asked = ("get", b"", 0, 0)
            call = Call(operation.called_us, operation.returned_us, asked, operation.result, describe(operation))
            calls[operation.key].append(call)
    for tag, attempts in families.items():
        for entry, answer in effects.get(tag, []):
            shape = attempts[0]
            called = min(operation.called_us for operation in attempts)
            told = [one for one in attempts if one.verdict is Verdict.OK]
            seen = max(entry.first_applied_us, called)
            returned = min((one.returned_us or seen for one in told), default=seen)
            asked = (shape.kind, shape.args[0], shape.args[1], answer.revision)
            calls[shape.key].append(
                Call(called, returned, asked, told[0].result.kind if told else UNSEEN, describe(shape))
            )
    undecided = 0
    for key in sorted(calls):
        result = check_linearizable(calls[key], None, step_row, steps_max=300_000)
        if result.verdict is Linearizable.NO:
            raise SafetyViolation(f"key {key!r} is not linearizable around {result.stuck_at}")
        undecided += result.verdict is Linearizable.UNDECIDED
    return len(calls), undecided
