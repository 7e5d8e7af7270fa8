"""Scans beside everything else: one small step of one scan a pass of the event loop, in turns.

Invariants: a STRONG piece comes from a state frozen after a barrier that began after the scan arrived, and shows no row
that the leader's clock calls expired; point reads and writes wait for one step at most; a piece ends when half of the
time its sender waits is over, with what it has. How many views are frozen at once is bounded, and so is what waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from flotta_consensus.api import Committed, Outcome, ReadOutcome, ReadReady, Rejected, Unknown
from flotta_embedded.api import FrozenView
from flotta_proto.flotta.storage_pb2 import Operation, Reply

from flotta_storage import replies
from flotta_storage.answers import Answers
from flotta_storage.batch_handler import NOT_SERVING, Admitted, Deadlines, Groups
from flotta_storage.core import keys
from flotta_storage.core.commands import expire_payload
from flotta_storage.core.guarantees import Demand, Guarantee
from flotta_storage.core.scans import Cursor
from flotta_storage.core.shard_state import decode_state
from flotta_storage.hints import Hints
from flotta_storage.reading import Later, demand_of
from flotta_storage.replica_table import Replica
from flotta_storage.stamping import StampSource

RUNNING_MAX: Final = 4  # each holds a frozen view
WAITING_MAX: Final = 1_024
SWEEP_ROWS: Final = 1_024


@dataclass(slots=True, eq=False)
class _Scan:
    """One piece: what it asks for, where its answer goes, and what it took of the budget."""

    replica: Replica
    operation: Operation
    demand: Demand
    answers: Answers
    size: int
    stop_ms: int  # when it is to end, on the host's clock
    wall_ms: int | None = None
    view: FrozenView | None = None
    cursor: Cursor | None = None


class Scanner:
    """Takes checked scans. `later` runs a function in the next pass of the event loop."""

    def __init__(self, groups: Groups, hints: Hints, stamp_ms: StampSource, deadlines: Deadlines, later: Later) -> None:
        self._groups = groups
        self._hints = hints
        self._stamp_ms = stamp_ms
        self._deadlines = deadlines
        self._later = later
        self._running: deque[_Scan] = deque()
        self._waiting: deque[_Scan] = deque()
        self._scheduled = False
        self._closed = False

    @property
    def scans_open(self) -> int:
        """Those past their barrier, and not yet answered."""
        return len(self._running) + len(self._waiting)

    def add(self, replica: Replica, scans: Sequence[Admitted], answers: Answers) -> None:
        """Begin these; each has room in the budget for what it may find."""
        now_ms = self._groups.now_ms()
        for operation, size in scans:
            timeout_ms = self._deadlines.of(operation)
            scan = _Scan(replica, operation, demand_of(operation), answers, size, now_ms + timeout_ms // 2)
            if scan.demand.met_locally(replica.applied_revision(), self._groups.fresh_ms(replica.group), now_ms):
                self._queue(scan)
            else:
                self._groups.read_barrier_with(replica.group, partial(self._barred, scan), timeout_ms)

    def close(self) -> None:
        """Answer what is open, and let go of every view. What comes later is refused."""
        self._closed = True
        for scan in (*self._running, *self._waiting):
            self._answer(scan, replies.unavailable(scan.operation, NOT_SERVING))
        self._running.clear()
        self._waiting.clear()

    def _barred(self, scan: _Scan, outcome: ReadOutcome) -> None:
        if not isinstance(outcome, ReadReady):
            self._give_up(scan, outcome)
            return
        if scan.demand.guarantee is Guarantee.LINEARIZABLE:
            scan.wall_ms = self._stamp_ms() or None
        self._queue(scan)

    def _queue(self, scan: _Scan) -> None:
        if self._closed:
            self._answer(scan, replies.unavailable(scan.operation, NOT_SERVING))
        elif len(self._waiting) >= WAITING_MAX:
            self._answer(scan, replies.rate_limited(scan.operation))
        else:
            self._waiting.append(scan)
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._later(self._turn)

    def _turn(self) -> None:
        """One step of one scan."""
        self._scheduled = False
        while self._waiting and len(self._running) < RUNNING_MAX:
            self._running.append(self._waiting.popleft())
        if not self._running:
            return
        scan = self._running.popleft()
        if self._goes_on(scan):
            self._running.append(scan)
        if self._running or self._waiting:
            self._schedule()

    def _goes_on(self, scan: _Scan) -> bool:
        """Take one step; False when the scan has its answer or waits for the log."""
        cursor = scan.cursor or self._opened(scan)
        if cursor is None:
            return False
        cursor.step()
        if cursor.overdue:
            _let_go(scan)
            self._expire(scan)
            return False
        if self._groups.now_ms() >= scan.stop_ms:
            cursor.stop()
        if not cursor.ended:
            return True
        self._answer(scan, replies.scanned(scan.operation, cursor.part))
        return False

    def _opened(self, scan: _Scan) -> Cursor | None:
        """A cursor over the state of now; None if that is not a state to answer from, and then it is answered."""
        replica, operation = scan.replica, scan.operation
        try:
            view = scan.view = replica.machine.freeze()
        except KeyError:  # the replica was removed meanwhile
            self._answer(scan, replies.moved(operation, self._hints))
            return None
        raw = view.get(keys.SHARD_KEY)
        state = None if raw is None else decode_state(raw)
        if state is None or state.sealed or (operation.epoch and operation.epoch != state.epoch):
            self._answer(scan, replies.moved(operation, self._hints))
            return None
        revision = replica.applied_revision()
        if revision < scan.demand.session_revision:
            self._answer(scan, replies.unreached(operation, revision))
            return None
        cursor = scan.cursor = Cursor(view, state, operation.scan, replica.machine.group_time_ms(), scan.wall_ms)
        cursor.part.revision = revision
        cursor.part.guarantee = replies.guarantee_of(scan.demand.guarantee)
        return cursor

    def _expire(self, scan: _Scan) -> None:
        """Move group time past what the clock calls expired, as for a read (`reading.py`), and begin anew."""
        role = self._groups.role(scan.replica.group)
        if role is None or not role.is_leader:
            leader = role.leader if role is not None else 0
            self._answer(scan, replies.not_leader(scan.operation, self._hints, leader))
            return

        def done(outcomes: list[Outcome]) -> None:
            (outcome,) = outcomes
            if isinstance(outcome, Committed):
                scan.wall_ms = None
                self._queue(scan)
            else:
                self._give_up(scan, outcome)

        payload = expire_payload(scan.wall_ms or 0, SWEEP_ROWS)
        timeout_ms = self._deadlines.of(scan.operation)
        self._groups.propose_many_with(scan.replica.group, [payload], done, timeout_ms)

    def _give_up(self, scan: _Scan, outcome: Rejected | Unknown) -> None:
        self._answer(scan, replies.without_result(scan.operation, outcome, self._hints))

    def _answer(self, scan: _Scan, reply: Reply) -> None:
        _let_go(scan)
        scan.answers.give([reply], scan.size)


def _let_go(scan: _Scan) -> None:
    view, scan.view, scan.cursor = scan.view, None, None
    if view is not None:
        view.close()
