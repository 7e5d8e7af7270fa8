"""What happened, as text: every run leaves the same bytes for the same seed.

The hash covers every line ever written; only the last ones are kept for a failure report unless all are wanted.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable

from flotta_consensus.sim.clock import Scheduler


class Transcript:
    """Timed lines, their hash, and counts of what they tell."""

    def __init__(
        self, scheduler: Scheduler, *, echo: Callable[[str], None] | None = None, lines_kept_max: int = 400
    ) -> None:
        self._scheduler = scheduler
        self._echo = echo
        self._hash = hashlib.sha256()
        self._tail: deque[str] = deque(maxlen=lines_kept_max)
        self.lines = 0
        self.counts: Counter[str] = Counter()

    def note(self, who: str, what: str) -> None:
        now_us = self._scheduler.now_us
        line = f"{now_us // 1_000_000:4d}.{now_us % 1_000_000:06d} {who:<9} {what}"
        self._hash.update(line.encode())
        self._hash.update(b"\n")
        self._tail.append(line)
        self.lines += 1
        if self._echo is not None:
            self._echo(line)

    def count(self, name: str, by: int = 1) -> None:
        """Count something that happened; a campaign demands that everything did at least once."""
        self.counts[name] += by

    def tail(self) -> list[str]:
        return list(self._tail)

    def digest(self) -> str:
        """The hash of every line so far and of the counts."""
        whole = self._hash.copy()
        for name in sorted(self.counts):
            whole.update(f"{name}={self.counts[name]}\n".encode())
        return whole.hexdigest()
