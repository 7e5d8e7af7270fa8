"""The virtual clock: a heap of events, run in order of (time, arrival).

Invariants: time never goes back; two events of one instant run in the order they were scheduled; an event that
was cancelled never runs.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

US_PER_MS = 1_000


def stream(seed: int, name: str) -> random.Random:
    """The named stream of chance of a seed. Adding a stream never shifts the draws of another."""
    return random.Random(f"flotta-sim/{seed}/{name}")


class Event:
    """A scheduled callback; `cancel` makes it a no-op."""

    __slots__ = ("action", "at_us")

    def __init__(self, at_us: int, action: Callable[[], None]) -> None:
        self.at_us = at_us
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Scheduler:
    """Runs events one by one; the only clock of a simulation."""

    def __init__(self) -> None:
        self.now_us = 0
        self.steps = 0
        self._heap: list[tuple[int, int, Event]] = []
        self._arrivals = 0

    @property
    def now_ms(self) -> int:
        return self.now_us // US_PER_MS

    def at(self, at_us: int, action: Callable[[], None]) -> Event:
        """Run `action` at an instant; one that has passed means now."""
        event = Event(max(at_us, self.now_us), action)
        self._arrivals += 1
        heapq.heappush(self._heap, (event.at_us, self._arrivals, event))
        return event

    def after(self, delay_us: int, action: Callable[[], None]) -> Event:
        return self.at(self.now_us + delay_us, action)

    def every(self, period_us: int, action: Callable[[], None], *, first_us: int | None = None) -> None:
        """Run `action` for ever; a simulation ends by its scheduler being dropped."""
        if period_us <= 0:
            raise ValueError(f"period_us {period_us} must be positive")

        def again() -> None:
            self.after(period_us, again)
            action()

        self.after(period_us if first_us is None else first_us, again)

    def step(self) -> bool:
        """Run the next event; False when none is left."""
        while self._heap:
            at_us, _, event = heapq.heappop(self._heap)
            action = event.action
            if action is None:
                continue
            self.now_us = at_us
            self.steps += 1
            event.action = None
            action()
            return True
        return False

    def run_until(self, until_us: int) -> None:
        """Run every event up to and including an instant, then stand there."""
        while self._heap and self._heap[0][0] <= until_us:
            self.step()
        self.now_us = max(self.now_us, until_us)
