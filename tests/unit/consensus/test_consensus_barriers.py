"""Barriers that are looked at only when something may be due, against barriers that are looked at every time."""

from __future__ import annotations

import itertools
from typing import Any

from flotta_consensus.api import ReadOutcome, Rejected, RejectReason
from flotta_consensus.core.reads import Barriers, GroupReads, ReadRetry
from hypothesis import given
from hypothesis import strategies as st

RETRY = ReadRetry(first_ms=40, longest_ms=200, after_drop_ms=15)
GROUPS = 3


class Lazy(Barriers):
    """In which order groups have their turn is nobody's promise; here it is the same."""

    def requests(self, now_ms: int) -> list[tuple[int, int]]:
        self._asking = dict(sorted(self._asking.items()))
        return super().requests(now_ms)


class Always(Lazy):
    """Forgets when something is due."""

    def expire(self, now_ms: int) -> None:
        self._due_ms = 0
        super().expire(now_ms)

    def requests(self, now_ms: int) -> list[tuple[int, int]]:
        self._asking.update((group, reads) for group, reads in self._active.items() if reads.waits_to_ask())
        return super().requests(now_ms)


class World:
    """One kind of barriers, what came of them, and the requests under way."""

    def __init__(self, kind: type[Barriers]) -> None:
        numbers = itertools.count(1)
        self.barriers = kind(1_000, lambda: next(numbers))
        self.reads = [GroupReads(RETRY) for _ in range(GROUPS)]
        self.flights: list[tuple[int, int]] = []
        self.told: list[Any] = []
        self.now_ms = 0
        self.added = 0

    def step(self, what: str, group: int, value: int) -> None:
        if what == "add":
            self.added += 1
            number = self.added

            def done(outcome: ReadOutcome) -> None:
                self.told.append((self.now_ms, number, outcome))

            self.barriers.add(group, self.reads[group], done, self.now_ms + value)
        elif what == "pass":
            self.now_ms += value
        elif what == "applied":
            self.barriers.applied(self.reads[group], value)
        elif what == "fail":
            self.barriers.fail_group(group, Rejected(RejectReason.UNKNOWN_GROUP))
        elif self.flights:
            group, read_id = self.flights.pop(value % len(self.flights))
            if what == "answer":
                self.barriers.answered(self.reads[group], read_id, value, value - value % 3)
            else:
                reason = RejectReason.NO_LEADER if value % 2 else RejectReason.OVERLOADED
                self.barriers.dropped(group, self.reads[group], read_id, Rejected(reason), self.now_ms)
        self.barriers.expire(self.now_ms)
        self.flights += self.barriers.requests(self.now_ms)


def _moment(told: tuple[int, int, ReadOutcome]) -> tuple[int, int]:
    return told[:2]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "pass", "pass", "answer", "answer", "drop", "applied", "fail"]),
            st.integers(0, GROUPS - 1),
            st.integers(1, 120),
        ),
        max_size=60,
    )
)
def test_nothing_that_is_due_is_overlooked(steps: list[tuple[str, int, int]]) -> None:
    lazy, busy = World(Lazy), World(Always)
    for step in (*steps, *(("pass", 0, 50) for _ in range(4))):
        lazy.step(*step)
        busy.step(*step)
        assert lazy.flights == busy.flights
        assert sorted(lazy.told, key=_moment) == sorted(busy.told, key=_moment)
        assert lazy.barriers.waiting == busy.barriers.waiting
    assert lazy.barriers.waiting == 0
    assert sorted(number for _, number, _ in lazy.told) == list(range(1, lazy.added + 1))
