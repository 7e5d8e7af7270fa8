"""Reads in batches: one barrier per group and loop turn, then one multi-get, with epoch and ownership checked in the
state that is read.

Invariants: a STRONG answer comes from a state read after a barrier that began after the read arrived; a row that the
leader's clock calls expired is never returned by a STRONG read, because group time is moved past its expiry first.
A node that stamps nothing, its clock being out of bounds, has group time alone to go by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from flotta_consensus.api import Committed, Outcome, ReadOutcome, ReadReady
from flotta_proto.flotta.storage_pb2 import Operation, Reply

from flotta_storage import replies
from flotta_storage.batch_handler import Deadlines, Groups, ReplyCallback
from flotta_storage.budget import Budget
from flotta_storage.core.commands import expire_payload
from flotta_storage.core.guarantees import Demand, Guarantee, demand
from flotta_storage.core.reads import Miss, read_many
from flotta_storage.hints import Hints
from flotta_storage.replica_table import Replica
from flotta_storage.stamping import StampSource

Call = tuple[Operation, ReplyCallback]
Later = Callable[[Callable[[], None]], object]
"""Runs a function at the end of this loop turn (`loop.call_soon`)."""

SLICE_READS: Final = 32


def demand_of(operation: Operation) -> Demand:
    return demand(operation.consistency, operation.read_mode, operation.max_staleness_ms, operation.session_revision)


class ReadBatcher:
    """Collects the reads of a turn. `later` decides when a turn ends."""

    def __init__(
        self, groups: Groups, hints: Hints, stamp_ms: StampSource, budget: Budget, deadlines: Deadlines, later: Later
    ) -> None:
        self._groups = groups
        self._hints = hints
        self._stamp_ms = stamp_ms
        self._budget = budget
        self._deadlines = deadlines
        self._later = later
        self._waiting: dict[int, tuple[Replica, list[Call]]] = {}
        self.barriers = 0

    def add(self, replica: Replica, operations: Sequence[Operation], reply: ReplyCallback) -> None:
        """Answer from the state as it is where that keeps the promise asked for; the others need a barrier."""
        local: list[Call] = []
        barred: list[Call] = []
        applied = replica.applied_revision()
        fresh_ms = self._groups.fresh_ms(replica.group)
        now_ms = self._groups.now_ms()
        for operation in operations:
            wanted = demand_of(operation)
            (local if wanted.met_locally(applied, fresh_ms, now_ms) else barred).append((operation, reply))
        if barred:
            if not self._waiting:
                self._later(self._flush)
            self._waiting.setdefault(replica.group, (replica, []))[1].extend(barred)
        if local:
            self._read(replica, local, None)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for replica, calls in waiting.values():
            buckets: dict[int, list[Call]] = {}
            for call in calls:
                buckets.setdefault(self._deadlines.bucket(call[0]), []).append(call)
            for timeout_ms, ours in buckets.items():
                self.barriers += 1
                self._groups.read_barrier_with(replica.group, self._barred(replica, ours), timeout_ms)

    def _barred(self, replica: Replica, calls: list[Call]) -> Callable[[ReadOutcome], None]:
        def done(outcome: ReadOutcome) -> None:
            if isinstance(outcome, ReadReady):
                strong = [call for call in calls if demand_of(call[0]).guarantee is Guarantee.LINEARIZABLE]
                self._read(replica, strong, self._stamp_ms() or None)
                if len(strong) < len(calls):
                    others = [call for call in calls if demand_of(call[0]).guarantee is not Guarantee.LINEARIZABLE]
                    self._read(replica, others, None)
            else:
                _answer([(reply, replies.without_result(read, outcome, self._hints)) for read, reply in calls])

        return done

    def _read(self, replica: Replica, calls: list[Call], wall_ms: int | None) -> None:
        """With `wall_ms`, rows that this clock calls expired are expired first. In slices, so that many large values
        never lie in memory together unasked."""
        overdue: list[Call] = []
        for start in range(0, len(calls), SLICE_READS):
            some = calls[start : start + SLICE_READS]
            if self._budget.full:
                _answer([(reply, replies.rate_limited(read)) for read, reply in some])
            else:
                overdue += self._read_slice(replica, some, wall_ms)
        if overdue:
            self._expire(replica, overdue, wall_ms or 0)

    def _read_slice(self, replica: Replica, calls: list[Call], wall_ms: int | None) -> list[Call]:
        """Answer what can be answered; returns the reads of overdue rows."""
        machine = replica.machine
        wanted = [(read.key, read.epoch) for read, _ in calls]
        _, rows = read_many(machine.view(), wanted, machine.group_time_ms(), wall_ms)
        revision = replica.applied_revision()
        overdue: list[Call] = []
        answers: list[tuple[ReplyCallback, Reply]] = []
        for (read, reply), row in zip(calls, rows, strict=True):
            asked = demand_of(read).guarantee
            if row is Miss.OVERDUE:
                overdue.append((read, reply))
            elif isinstance(row, bytes):
                answers.append((reply, replies.found(read, row, revision, asked)))
            elif row is Miss.MOVED:
                answers.append((reply, replies.moved(read, self._hints)))
            else:
                answers.append((reply, replies.absent(read, revision, asked)))
        _answer(answers)
        return overdue

    def _expire(self, replica: Replica, calls: list[Call], wall_ms: int) -> None:
        """Only the leader may move group time, by a committed entry; then the rows are gone for everybody."""
        role = self._groups.role(replica.group)
        if role is None or not role.is_leader:
            leader = role.leader if role is not None else 0
            _answer([(reply, replies.not_leader(read, self._hints, leader)) for read, reply in calls])
            return

        def done(outcomes: list[Outcome]) -> None:
            (outcome,) = outcomes
            if isinstance(outcome, Committed):
                self._read(replica, calls, None)
            else:
                _answer([(reply, replies.without_result(read, outcome, self._hints)) for read, reply in calls])

        timeout_ms = max(self._deadlines.of(read) for read, _ in calls)
        self._groups.propose_many_with(replica.group, [expire_payload(wall_ms, len(calls))], done, timeout_ms)


def _answer(answers: list[tuple[ReplyCallback, Reply]]) -> None:
    """One list per callback."""
    by_callback: dict[ReplyCallback, list[Reply]] = {}
    for callback, reply in answers:
        by_callback.setdefault(callback, []).append(reply)
    for callback, found in by_callback.items():
        callback(found)
