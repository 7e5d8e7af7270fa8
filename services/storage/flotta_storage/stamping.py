"""The stamps a leader puts into the log: its wall clock, or nothing while that is out of bounds against its peers.

Group time then stands still: nothing expires by a wrong clock, and the stamp of a clock far ahead, which no later one
could take back, never gets into a log. Reads go by group time alone. A change is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from flotta_consensus.core.clock_bounds import out_of_bounds
from flotta_runtime.clock import Clock
from flotta_runtime.logging import get_logger

StampSource = Callable[[], int]
"""Milliseconds since the epoch, or `NO_STAMP`."""

NO_STAMP: Final = 0


class PeerWalls(Protocol):
    def walls_ms(self, monotonic_ms: int) -> Sequence[int]:
        """What the clocks of the peers heard lately show now."""
        ...


class Stamps:
    """See the module. `problem` is the sentence for the operator, empty while the clock is in bounds."""

    def __init__(self, clock: Clock, peers: PeerWalls, skew_max_ms: int, node_id: str) -> None:
        self._clock = clock
        self._peers = peers
        self._skew_max_ms = skew_max_ms
        self._log = get_logger("storage.clock", node=node_id)
        self.problem = ""

    def now_ms(self) -> int:
        wall_ms = self._clock.wall_ms()
        walls_ms = self._peers.walls_ms(self._clock.monotonic_ms())
        apart = out_of_bounds(wall_ms, walls_ms, self._skew_max_ms)
        if apart is not bool(self.problem):
            self._changed(wall_ms, walls_ms, apart)
        return NO_STAMP if apart else wall_ms

    def _changed(self, wall_ms: int, walls_ms: Sequence[int], apart: bool) -> None:
        if not apart:
            self.problem = ""
            self._log.info("the clock agrees with most peers again; group time goes on")
            return
        self.problem = (
            f"the clock differs by more than {self._skew_max_ms} ms from those of most peers: no time is stamped"
        )
        ahead_ms = sorted(wall_ms - peer_ms for peer_ms in walls_ms)
        self._log.error(self.problem, ahead_of_peers_ms=ahead_ms)
