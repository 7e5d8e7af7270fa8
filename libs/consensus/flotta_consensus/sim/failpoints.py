"""Failpoints of a simulated process: an armed one ends the process where it stands.

`ProcessKilled` derives from BaseException, so that no `except Exception` of the code under test survives its own
death.
"""

from __future__ import annotations

from collections import Counter


class ProcessKilled(BaseException):
    """The simulated process is dead from here on."""


class SimFailpoints:
    """Implements `Failpoints`: counts what is passed, and dies where it was told to."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self._armed: dict[str, int] = {}

    def arm(self, name: str, hits: int = 1) -> None:
        """Die at the `hits`-th time from now that the point is passed."""
        if hits < 1:
            raise ValueError(f"hits {hits} must be at least 1")
        self._armed[name] = hits

    def disarm(self) -> None:
        self._armed.clear()

    def reach(self, name: str) -> None:
        self.passed[name] += 1
        left = self._armed.get(name)
        if left is None:
            return
        if left > 1:
            self._armed[name] = left - 1
            return
        self._armed.clear()
        raise ProcessKilled(name)
