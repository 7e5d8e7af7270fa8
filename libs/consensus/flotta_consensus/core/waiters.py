"""Who waits for which request: every waiter is answered exactly once, and their number is bounded.

Request ids are never reused within one host incarnation. Deadlines are kept in coarse buckets of ids rather than in
a heap: nearly every waiter is answered long before its deadline, and then its id in the bucket costs one failed
lookup. A waiter is never answered before its deadline by more than nothing, and at most one bucket after it.
"""

from __future__ import annotations

from collections.abc import Callable

from flotta_consensus.api import Outcome, ProposeDone

ProposeManyDone = Callable[[list[Outcome]], None]

_BUCKET_MS = 32


class BatchWaiter:
    """Collects the outcomes of proposals made together; calls back once, when the last one is decided."""

    __slots__ = ("_done", "_left", "outcomes")

    def __init__(self, count: int, done: ProposeManyDone) -> None:
        self.outcomes: list[Outcome | None] = [None] * count
        self._left = count
        self._done = done

    def resolve(self, slot: int, outcome: Outcome) -> None:
        self.outcomes[slot] = outcome
        self._left -= 1
        if self._left == 0:
            self._done([outcome for outcome in self.outcomes if outcome is not None])


class Waiters:
    """Proposals (membership changes included) by request id."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._next_id = 1
        # id -> (group, callback or batch, slot in the batch; -1 for a callback)
        self._waiting: dict[int, tuple[int, ProposeDone | BatchWaiter, int]] = {}
        self._buckets: dict[int, list[range]] = {}
        self._swept = -1  # buckets up to here are gone

    def __len__(self) -> int:
        return len(self._waiting)

    def room_for(self, count: int) -> bool:
        return len(self._waiting) + count <= self._count_max

    def new_id(self) -> int:
        """An id nobody waits for: reads share the numbering, since the host reports both alike."""
        number = self._next_id
        self._next_id += 1
        return number

    def add(self, group: int, done: ProposeDone, deadline_ms: int) -> int:
        number = self.new_id()
        self._waiting[number] = (group, done, -1)
        self._remember(range(number, number + 1), deadline_ms)
        return number

    def add_many(self, group: int, count: int, done: ProposeManyDone, deadline_ms: int) -> range:
        batch = BatchWaiter(count, done)
        first = self._next_id
        self._next_id += count
        numbers = range(first, first + count)
        self._waiting.update((number, (group, batch, number - first)) for number in numbers)
        self._remember(numbers, deadline_ms)
        return numbers

    def resolve(self, number: int, outcome: Outcome) -> bool:
        """Answer a waiter. False if nobody waits (any more)."""
        waiter = self._waiting.pop(number, None)
        if waiter is None:
            return False
        _, done, slot = waiter
        if isinstance(done, BatchWaiter):
            done.resolve(slot, outcome)
        else:
            done(outcome)
        return True

    def expire(self, now_ms: int, outcome: Outcome) -> int:
        """Answer everybody whose deadline passed; returns how many."""
        due = now_ms // _BUCKET_MS - 1  # a whole bucket later, so that nobody is answered early
        if due <= self._swept or not self._buckets:
            return 0
        self._swept = due
        answered = 0
        for bucket in sorted(bucket for bucket in self._buckets if bucket <= due):
            for numbers in self._buckets.pop(bucket):
                answered += sum(self.resolve(number, outcome) for number in numbers)
        return answered

    def fail_group(self, group: int, outcome: Outcome) -> None:
        self._fail([number for number, waiter in self._waiting.items() if waiter[0] == group], outcome)

    def fail_all(self, outcome: Outcome) -> None:
        self._fail(list(self._waiting), outcome)
        self._buckets.clear()

    def _fail(self, numbers: list[int], outcome: Outcome) -> None:
        for number in numbers:
            self.resolve(number, outcome)

    def _remember(self, numbers: range, deadline_ms: int) -> None:
        # A deadline in the past still lands in a bucket that the next sweep visits.
        bucket = max(deadline_ms // _BUCKET_MS, self._swept + 1)
        ranges = self._buckets.setdefault(bucket, [])
        if ranges and ranges[-1].stop == numbers.start:
            ranges[-1] = range(ranges[-1].start, numbers.stop)
        else:
            ranges.append(numbers)
