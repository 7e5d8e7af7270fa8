"""At most one log line per event and period, with a count of those left out: a flood of events is not a flood of lines.

Invariant: the number of remembered events is bounded; beyond the bound the oldest is forgotten.
"""

from __future__ import annotations

from collections.abc import Hashable

from flotta_runtime.clock import Clock

EVENTS_MAX = 1_024


class Throttle:
    """Decides whether an event of this key is told now."""

    def __init__(self, clock: Clock, period_ms: int = 10_000) -> None:
        self._clock = clock
        self._period_ms = period_ms
        self._told: dict[Hashable, tuple[int, int]] = {}  # key -> (when last told, left out since)

    def admit(self, key: Hashable) -> int | None:
        """None: be silent. Else tell it, with this number of equal events left out since the last time."""
        now_ms = self._clock.monotonic_ms()
        told = self._told.get(key)
        if told is not None and now_ms - told[0] < self._period_ms:
            self._told[key] = (told[0], told[1] + 1)
            return None
        self._told.pop(key, None)
        if len(self._told) >= EVENTS_MAX:
            del self._told[next(iter(self._told))]
        self._told[key] = (now_ms, 0)
        return told[1] if told is not None else 0
