"""Who waits for which request: every waiter is answered exactly once, and their number is bounded.

Request ids are never reused within one host incarnation; those of one batch follow each other. Deadlines are kept in
coarse buckets of ids rather than in a heap: nearly every waiter is answered long before its deadline, and then its id
in the bucket costs one failed lookup. A waiter is never answered before its deadline by more than nothing, and at most
one bucket after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flotta_consensus.api import Committed, Entry, Outcome, ProposeDone

ProposeManyDone = Callable[[list[Outcome]], None]

_BUCKET_MS = 32
_UNDECIDED: Any = None


class Batch:
    """Collects the outcomes of proposals made together; calls back once, when the last one is decided."""

    __slots__ = ("_done", "_left", "_outcomes", "first", "group")

    def __init__(self, group: int, first: int, count: int, done: ProposeManyDone) -> None:
        self.group = group
        self.first = first
        self._outcomes: list[Outcome] = [_UNDECIDED] * count
        self._left = count
        self._done = done

    def decide(self, number: int, outcome: Outcome) -> None:
        self._outcomes[number - self.first] = outcome
        self._left -= 1
        if not self._left:
            self._done(self._outcomes)


class Waiters:
    """Proposals (membership changes included) by request id."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._next_id = 1
        self._waiting: dict[int, Batch] = {}
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
        return self.add_many(group, 1, lambda outcomes: done(outcomes[0]), deadline_ms).start

    def add_many(self, group: int, count: int, done: ProposeManyDone, deadline_ms: int) -> range:
        first = self._next_id
        self._next_id += count
        numbers = range(first, first + count)
        self._waiting.update(dict.fromkeys(numbers, Batch(group, first, count, done)))
        self._remember(numbers, deadline_ms)
        return numbers

    def resolve(self, number: int, outcome: Outcome) -> bool:
        """Answer a waiter. False if nobody waits (any more)."""
        batch = self._waiting.pop(number, None)
        if batch is None:
            return False
        batch.decide(number, outcome)
        return True

    def committed(self, numbers: Sequence[int], entries: Sequence[Entry], results: Sequence[Any]) -> None:
        """Answer those who wait for entries that were applied now; the number of an entry nobody here proposed is 0."""
        waiting = self._waiting
        if not waiting or not any(numbers):
            return
        for number, entry, result in zip(numbers, entries, results, strict=True):
            batch = waiting.pop(number, None)
            if batch is not None:
                answer = result if entry.members is None else entry.members
                batch.decide(number, Committed(entry.index, entry.term, answer))

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
        self._fail([number for number, batch in self._waiting.items() if batch.group == group], outcome)

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
