"""Linearizable read barriers of one group: all that wait in a turn share one ReadIndex request.

A barrier that began before a request was issued may use its answer; nothing else may. A request can vanish in a
leader change, so one that is late or was dropped goes back to waiting and travels with the next, under a fresh id
(Raft ignores a repeated one), until its own deadline. An answer names an index, and is held until the state machine
has applied it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from flotta_consensus.api import ReadDone, ReadOutcome, ReadReady, Rejected, RejectReason, Unknown

RETRIED_REASONS = (RejectReason.NO_LEADER, RejectReason.NOT_LEADER, RejectReason.LOST)
"""What may be over in a moment: the barrier waits for it, within its deadline."""

Barrier = tuple[ReadDone, int]
"""Callback and deadline."""


_NEVER = 1 << 63


@dataclass(slots=True)
class _Flight:
    issued_ms: int
    barriers: list[Barrier]


@dataclass(frozen=True, slots=True)
class ReadRetry:
    """When a request counts as vanished. The wait doubles with each attempt, or a slow network would never answer
    a request that is still remembered."""

    first_ms: int = 400
    longest_ms: int = 3_200
    after_drop_ms: int = 50


@dataclass(slots=True)
class GroupReads:
    """The barriers of one group."""

    retry: ReadRetry
    fresh_ms: int | None = None  # when the last completed request was issued: the age of this replica's state
    _waiting: list[Barrier] = field(default_factory=list)
    _flights: dict[int, _Flight] = field(default_factory=dict)
    _held: list[tuple[int, _Flight]] = field(default_factory=list)  # answered; waits for apply
    _not_before_ms: int = 0
    _attempts: int = 0
    _last_drop: Rejected | None = None

    def idle(self) -> bool:
        return not (self._waiting or self._flights or self._held)

    def add(self, done: ReadDone, deadline_ms: int) -> None:
        self._waiting.append((done, deadline_ms))

    def waits_to_ask(self) -> bool:
        """Some barriers are in no request yet."""
        return bool(self._waiting)

    def wants_request(self, now_ms: int) -> bool:
        return bool(self._waiting) and now_ms >= self._not_before_ms

    def due_ms(self) -> int:
        """Not after the moment at which `expire` or `take_back_late` first has something to do."""
        times = [deadline for _, deadline in self._waiting]
        for flight in (*self._flights.values(), *(flight for _, flight in self._held)):
            times += [deadline for _, deadline in flight.barriers]
        times += [flight.issued_ms + self.retry.first_ms for flight in self._flights.values()]
        return min(times, default=_NEVER)

    def issued(self, read_id: int, now_ms: int) -> None:
        """All that wait now travel under this id."""
        self._flights[read_id] = _Flight(now_ms, self._waiting)
        self._waiting = []

    def answered(self, read_id: int, index: int, applied: int) -> int:
        """Returns how many barriers were resolved now."""
        flight = self._flights.pop(read_id, None)
        if flight is None:
            return 0
        self._attempts = 0
        self._last_drop = None
        if applied >= index:
            return self._complete(flight, applied)
        self._held.append((index, flight))
        return 0

    def applied(self, applied: int) -> int:
        """The state machine moved; returns how many barriers were resolved."""
        if not self._held:
            return 0
        ready = [flight for index, flight in self._held if index <= applied]
        self._held = [(index, flight) for index, flight in self._held if index > applied]
        return sum(self._complete(flight, applied) for flight in ready)

    def dropped(self, read_id: int, rejected: Rejected, now_ms: int) -> int:
        """The host refused the request; returns how many barriers were answered for good."""
        flight = self._flights.pop(read_id, None)
        if flight is None:
            return 0
        if rejected.reason not in RETRIED_REASONS:
            return _answer(flight.barriers, rejected)
        self._last_drop = rejected
        self._waiting = flight.barriers + self._waiting
        self._not_before_ms = now_ms + self.retry.after_drop_ms
        return 0

    def take_back_late(self, now_ms: int) -> None:
        """Requests that probably vanished go back to waiting."""
        patience_ms = min(self.retry.first_ms << min(self._attempts, 16), self.retry.longest_ms)
        late = [number for number, flight in self._flights.items() if now_ms - flight.issued_ms >= patience_ms]
        if late:
            self._attempts += 1
        for number in reversed(late):
            self._waiting = self._flights.pop(number).barriers + self._waiting

    def expire(self, now_ms: int) -> int:
        """Answer the barriers whose deadline passed; returns how many."""
        outcome: ReadOutcome = self._last_drop or Unknown("deadline")
        expired: list[Barrier] = []
        self._waiting = _keep(self._waiting, now_ms, expired)
        for flight in (*self._flights.values(), *(flight for _, flight in self._held)):
            flight.barriers = _keep(flight.barriers, now_ms, expired)
        # A request nobody waits for is forgotten, or the ids of lost ones would pile up.
        self._flights = {number: flight for number, flight in self._flights.items() if flight.barriers}
        self._held = [(index, flight) for index, flight in self._held if flight.barriers]
        return _answer(expired, outcome)

    def fail_all(self, outcome: ReadOutcome) -> int:
        barriers = list(self._waiting)
        for flight in (*self._flights.values(), *(flight for _, flight in self._held)):
            barriers.extend(flight.barriers)
        self._waiting, self._flights, self._held = [], {}, []
        return _answer(barriers, outcome)

    def _complete(self, flight: _Flight, applied: int) -> int:
        if self.fresh_ms is None or flight.issued_ms > self.fresh_ms:
            self.fresh_ms = flight.issued_ms
        return _answer(flight.barriers, ReadReady(applied))


class Barriers:
    """The barriers of all groups of a process: bounded in number, one request for each group and turn.

    A turn costs nothing for groups whose barriers are all on their way and not yet due."""

    def __init__(self, count_max: int, new_id: Callable[[], int]) -> None:
        self.waiting = 0
        self._count_max = count_max
        self._new_id = new_id
        self._active: dict[int, GroupReads] = {}
        self._asking: dict[int, GroupReads] = {}  # those with barriers that are in no request yet
        self._due_ms = _NEVER  # not after the first that `expire` has to look at

    def add(self, group: int, reads: GroupReads, done: ReadDone, deadline_ms: int) -> None:
        if self.waiting >= self._count_max:
            done(Rejected(RejectReason.OVERLOADED))
            return
        self.waiting += 1
        self._active[group] = self._asking[group] = reads
        self._due_ms = min(self._due_ms, deadline_ms)
        reads.add(done, deadline_ms)

    def requests(self, now_ms: int) -> list[tuple[int, int]]:
        """(group, id) of the requests to make now."""
        made: list[tuple[int, int]] = []
        for group, reads in list(self._asking.items()):
            if reads.wants_request(now_ms):
                made.append((group, self._new_id()))
                reads.issued(made[-1][1], now_ms)
                self._due_ms = min(self._due_ms, now_ms + reads.retry.first_ms)
            if not reads.waits_to_ask():
                del self._asking[group]
        return made

    def answered(self, reads: GroupReads, read_id: int, index: int, applied: int) -> None:
        self.waiting -= reads.answered(read_id, index, applied)

    def applied(self, reads: GroupReads, applied: int) -> None:
        self.waiting -= reads.applied(applied)

    def dropped(self, group: int, reads: GroupReads, read_id: int, rejected: Rejected, now_ms: int) -> None:
        self.waiting -= reads.dropped(read_id, rejected, now_ms)
        if reads.waits_to_ask():
            self._asking[group] = reads

    def expire(self, now_ms: int) -> None:
        if now_ms < self._due_ms:
            return
        for group, reads in list(self._active.items()):
            self.waiting -= reads.expire(now_ms)
            reads.take_back_late(now_ms)
            if reads.waits_to_ask():
                self._asking[group] = reads
            if reads.idle():
                del self._active[group]
        self._due_ms = min((reads.due_ms() for reads in self._active.values()), default=_NEVER)

    def fail_group(self, group: int, outcome: ReadOutcome) -> None:
        self._asking.pop(group, None)
        reads = self._active.pop(group, None)
        if reads is not None:
            self.waiting -= reads.fail_all(outcome)

    def fail_all(self, outcome: ReadOutcome) -> None:
        for group in list(self._active):
            self.fail_group(group, outcome)


def _answer(barriers: list[Barrier], outcome: ReadOutcome) -> int:
    for done, _ in barriers:
        done(outcome)
    return len(barriers)


def _keep(barriers: list[Barrier], now_ms: int, expired: list[Barrier]) -> list[Barrier]:
    if all(deadline > now_ms for _, deadline in barriers):
        return barriers
    expired.extend(barrier for barrier in barriers if barrier[1] <= now_ms)
    return [barrier for barrier in barriers if barrier[1] > now_ms]
