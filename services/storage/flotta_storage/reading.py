"""Reads in batches: one barrier per group and loop turn, then one multi-get, with epoch and ownership checked in the
state that is read.

Invariants: a STRONG answer comes from a state read after a barrier that began after the read arrived; a row that the
leader's clock calls expired is never returned by a STRONG read, because group time is moved past its expiry first.
A node that stamps nothing, its clock being out of bounds, has group time alone to go by. A session's read is answered
from a state that holds the session's revision, or refused: after a barrier a revision that is not there never was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from flotta_consensus.api import Committed, Outcome, ReadOutcome, ReadReady, Rejected, Unknown
from flotta_proto.flotta.storage_pb2 import Operation, Reply

from flotta_storage import replies
from flotta_storage.answers import Answers
from flotta_storage.batch_handler import Admitted, Deadlines, Groups
from flotta_storage.budget import Budget
from flotta_storage.core.commands import expire_payload
from flotta_storage.core.guarantees import STRONG, Demand, Guarantee, demand
from flotta_storage.core.reads import Miss, read_many
from flotta_storage.hints import Hints
from flotta_storage.replica_table import Replica
from flotta_storage.stamping import StampSource

Later = Callable[[Callable[[], None]], object]
"""Runs a function at the end of this loop turn (`loop.call_soon`)."""

SLICE_READS: Final = 32


@dataclass(slots=True, eq=False)
class _Read:
    """One admitted read: what it asks for, where its answer goes, and what it took of the budget."""

    operation: Operation
    demand: Demand
    answers: Answers
    size: int


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
        self._waiting: dict[int, tuple[Replica, list[_Read]]] = {}
        self.barriers = 0

    def add(self, replica: Replica, reads: Sequence[Admitted], answers: Answers) -> None:
        """Answer from the state as it is where that keeps the promise asked for; the others need a barrier."""
        local: list[_Read] = []
        barred: list[_Read] = []
        applied = replica.applied_revision()
        fresh_ms = self._groups.fresh_ms(replica.group)
        now_ms = self._groups.now_ms()
        for operation, size in reads:
            wanted = demand_of(operation)
            met = wanted is not STRONG and wanted.met_locally(applied, fresh_ms, now_ms)
            (local if met else barred).append(_Read(operation, wanted, answers, size))
        if barred:
            if not self._waiting:
                self._later(self._flush)
            self._waiting.setdefault(replica.group, (replica, []))[1].extend(barred)
        if local:
            self._read(replica, local, None)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for replica, reads in waiting.values():
            buckets: dict[int, list[_Read]] = {}
            for read in reads:
                buckets.setdefault(self._deadlines.bucket(read.operation), []).append(read)
            for timeout_ms, ours in buckets.items():
                self.barriers += 1
                self._groups.read_barrier_with(replica.group, self._barred(replica, ours), timeout_ms)

    def _barred(self, replica: Replica, reads: list[_Read]) -> Callable[[ReadOutcome], None]:
        def done(outcome: ReadOutcome) -> None:
            if not isinstance(outcome, ReadReady):
                self._give_up(reads, outcome)
                return
            strong = [read for read in reads if read.demand.guarantee is Guarantee.LINEARIZABLE]
            self._read(replica, strong, self._stamp_ms() or None)
            if len(strong) < len(reads):
                others = [read for read in reads if read.demand.guarantee is not Guarantee.LINEARIZABLE]
                self._read(replica, others, None)

        return done

    def _read(self, replica: Replica, reads: list[_Read], wall_ms: int | None) -> None:
        """With `wall_ms`, rows that this clock calls expired are expired first. In slices, so that many large values
        never lie in memory together unasked."""
        overdue: list[_Read] = []
        for start in range(0, len(reads), SLICE_READS):
            some = reads[start : start + SLICE_READS]
            if self._budget.full:
                _answer([(read, replies.rate_limited(read.operation)) for read in some])
            else:
                overdue += self._read_slice(replica, some, wall_ms)
        if overdue:
            self._expire(replica, overdue, wall_ms or 0)

    def _read_slice(self, replica: Replica, reads: list[_Read], wall_ms: int | None) -> list[_Read]:
        """Answer what can be answered; returns the reads of overdue rows."""
        machine = replica.machine
        wanted = [(read.operation.key, read.operation.epoch) for read in reads]
        _, rows = read_many(machine.view(), wanted, machine.group_time_ms(), wall_ms)
        revision = replica.applied_revision()
        overdue: list[_Read] = []
        answered: list[tuple[_Read, Reply]] = []
        for read, row in zip(reads, rows, strict=True):
            asked = read.demand.guarantee
            if row is not Miss.MOVED and revision < read.demand.session_revision:
                answered.append((read, replies.unreached(read.operation, revision)))
            elif isinstance(row, bytes):
                answered.append((read, replies.found(read.operation, row, revision, asked)))
            elif row is Miss.OVERDUE:
                overdue.append(read)
            elif row is Miss.MOVED:
                answered.append((read, replies.moved(read.operation, self._hints)))
            else:
                answered.append((read, replies.absent(read.operation, revision, asked)))
        _answer(answered)
        return overdue

    def _expire(self, replica: Replica, reads: list[_Read], wall_ms: int) -> None:
        """Only the leader may move group time, by a committed entry; then the rows are gone for everybody."""
        role = self._groups.role(replica.group)
        if role is None or not role.is_leader:
            leader = role.leader if role is not None else 0
            _answer([(read, replies.not_leader(read.operation, self._hints, leader)) for read in reads])
            return

        def done(outcomes: list[Outcome]) -> None:
            (outcome,) = outcomes
            if isinstance(outcome, Committed):
                self._read(replica, reads, None)
            else:
                self._give_up(reads, outcome)

        timeout_ms = max(self._deadlines.of(read.operation) for read in reads)
        self._groups.propose_many_with(replica.group, [expire_payload(wall_ms, len(reads))], done, timeout_ms)

    def _give_up(self, reads: list[_Read], outcome: Rejected | Unknown) -> None:
        _answer([(read, replies.without_result(read.operation, outcome, self._hints)) for read in reads])


def _answer(answered: Sequence[tuple[_Read, Reply]]) -> None:
    """One list for each batch that the reads came with."""
    by_batch: dict[Answers, tuple[list[Reply], list[int]]] = {}
    for read, reply in answered:
        found = by_batch.get(read.answers)
        if found is None:
            found = by_batch[read.answers] = ([], [])
        found[0].append(reply)
        found[1].append(read.size)
    for answers, (replies_found, sizes) in by_batch.items():
        answers.give(replies_found, sum(sizes))
