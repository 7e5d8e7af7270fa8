"""How long a request may take, and a timing wheel: thousands of deadlines, nearly all cancelled before they come due.

Adding and removing are O(1) and a removed item is held on to by nobody. Items come due up to one tick late, never
early. Time is a parameter, in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

# Answer a little before the client's own timer rings, so that it hears more than DEADLINE_EXCEEDED.
_EARLY_MS_MAX = 20.0
_EARLY_SHARE = 0.05

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Patience:
    """The client's deadline is the request's; one that sets none, or a very late one, gets the configured limit."""

    default_ms: int
    longest_ms: int

    def deadline_ms(self, now_ms: float, remaining_ms: float | None) -> float:
        """On the clock of `now_ms`, for a client that waits for `remaining_ms` more."""
        if remaining_ms is None:
            return now_ms + self.default_ms
        early_ms = min(_EARLY_MS_MAX, remaining_ms * _EARLY_SHARE)
        return now_ms + min(remaining_ms - early_ms, self.longest_ms)


class DeadlineWheel(Generic[Item]):
    """Items by the tick at which they come due. An item is in the wheel at most once."""

    __slots__ = ("_buckets", "_next_tick", "_ticks", "tick_ms")

    def __init__(self, tick_ms: int) -> None:
        self.tick_ms = tick_ms
        self._buckets: dict[int, dict[Item, None]] = {}
        self._ticks: dict[Item, int] = {}
        self._next_tick = 0  # every bucket before it has been taken

    def __len__(self) -> int:
        return len(self._ticks)

    def __iter__(self) -> Iterator[Item]:
        """Everything that is in the wheel now, in no order."""
        return iter(list(self._ticks))

    def set(self, item: Item, at_ms: float) -> None:
        """Let `item` come due at `at_ms`, whatever was set before."""
        # Rounded up, so never early; and never into a bucket that `due` has already passed.
        tick = max(int(-(-at_ms // self.tick_ms)), self._next_tick)
        old = self._ticks.get(item)
        if old == tick:
            return
        if old is not None:
            self._take_out(item, old)
        self._ticks[item] = tick
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = {}
        bucket[item] = None

    def discard(self, item: Item) -> None:
        """Forget `item` if it is there."""
        tick = self._ticks.pop(item, None)
        if tick is not None:
            self._take_out(item, tick)

    def due(self, now_ms: float) -> list[Item]:
        """Take out everything whose time has come, earliest first."""
        tick_now = int(now_ms // self.tick_ms)
        if tick_now < self._next_tick:
            return []
        first, self._next_tick = self._next_tick, tick_now + 1
        if tick_now - first > len(self._buckets):
            ticks = sorted(tick for tick in self._buckets if tick <= tick_now)
        else:
            ticks = [tick for tick in range(first, tick_now + 1) if tick in self._buckets]
        items = [item for tick in ticks for item in self._buckets.pop(tick)]
        for item in items:
            del self._ticks[item]
        return items

    def _take_out(self, item: Item, tick: int) -> None:
        bucket = self._buckets[tick]
        del bucket[item]
        if not bucket:
            del self._buckets[tick]
