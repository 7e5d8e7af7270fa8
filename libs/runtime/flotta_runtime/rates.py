"""How many requests a second each of many callers may make: one token bucket a name, in one number.

A bucket is the time at which it will be full again, so an idle caller's is the same as a new one's and is forgotten.
Invariant: the number of remembered names is bounded. When all of them are in use, further names share one bucket: who
invents a name for every request gets no more than one caller does.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

NAMES_MAX: Final = 1_024


class _Others:
    """The name of those for whom there is no room."""


class Rates:
    """`per_second` requests for each name in the long run, and `burst` of them at once."""

    def __init__(self, per_second: float, burst: int, *, names_max: int = NAMES_MAX) -> None:
        if per_second <= 0 or burst < 1 or names_max < 1:
            raise ValueError(f"a rate of {per_second} a second, {burst} at once, for {names_max} names lets nobody in")
        self._interval_ms = 1000 / per_second
        self._ahead_ms = (burst - 1) * self._interval_ms
        self._names_max = names_max
        self._full_ms: dict[Hashable, float] = {}
        self._swept_ms = float("-inf")

    def admit(self, name: Hashable, now_ms: float) -> int:
        """0: the request is let in, and counted. Else it is not, and one would be in so many milliseconds."""
        key = name if name in self._full_ms or self._has_room(now_ms) else _Others
        full_ms = max(self._full_ms.get(key, now_ms), now_ms)
        early_ms = full_ms - self._ahead_ms - now_ms
        if early_ms > 0:
            return int(early_ms) + 1
        self._full_ms[key] = full_ms + self._interval_ms
        return 0

    def __len__(self) -> int:
        """Names remembered."""
        return len(self._full_ms)

    def _has_room(self, now_ms: float) -> bool:
        if len(self._full_ms) < self._names_max:
            return True
        # Looking at every name for each new one would be the attack; what fills up in between waits.
        if now_ms - self._swept_ms >= self._ahead_ms + self._interval_ms:
            self._swept_ms = now_ms
            self._full_ms = {name: full_ms for name, full_ms in self._full_ms.items() if full_ms > now_ms}
        return len(self._full_ms) < self._names_max
