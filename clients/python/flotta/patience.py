"""What one call has left: its time, how long the next pause is, and whether an attempt is in doubt."""

from __future__ import annotations

import random
import time

RETRY_MS = 25
RETRY_MS_MAX = 1_000
ATTEMPT_MS_MIN = 10  # with less than that left an attempt would only put its outcome in doubt


class Patience:
    """See the module. Made when the call begins."""

    def __init__(self, timeout_ms: int) -> None:
        self._deadline_s = time.monotonic() + timeout_ms / 1000
        self._pause_ms: float = RETRY_MS
        self.in_doubt = False

    def left_s(self) -> float:
        """Never nothing at all: grpc takes no timeout of 0."""
        return max(0.001, self._deadline_s - time.monotonic())

    def longer(self, pause_ms: int) -> None:
        """Let the next pause last at least so long."""
        self._pause_ms = max(self._pause_ms, pause_ms)

    def lasts(self) -> bool:
        """Is there time for the next pause?"""
        return time.monotonic() + self._pause_ms * 1.25 / 1000 < self._deadline_s

    def allows_an_attempt(self) -> bool:
        """Is there time for one? A pause may have lasted longer than it was to."""
        return time.monotonic() + ATTEMPT_MS_MIN / 1000 < self._deadline_s

    def next_pause_s(self) -> float:
        """How long to pause now; the one after that is twice as long."""
        pause_s = self._pause_ms * random.uniform(0.75, 1.25) / 1000
        self._pause_ms = min(self._pause_ms * 2, RETRY_MS_MAX)
        return pause_s
