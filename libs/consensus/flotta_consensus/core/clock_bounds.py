"""Is this process's wall clock out of bounds against those of its peers?

Peers say what their clock shows with the frames they send. A frame only ever arrives late, so of what a peer said
lately the furthest ahead is the nearest to the truth: a stall or a slow link makes no clock look wrong. Estimates are
kept against the local monotonic clock, so that a jump of the own wall clock shows at once. A peer whose clock was set
back is believed after `window_ms` at the latest, and one that is silent for that long drops out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HEARD_MS = 10_000


def out_of_bounds(wall_ms: int, peer_wall_ms: Sequence[int], skew_max_ms: int) -> bool:
    """Whether `wall_ms` differs by more than `skew_max_ms` from more than half of the peers' clocks. Who hears nobody
    is in bounds."""
    apart = sum(abs(wall_ms - peer_ms) > skew_max_ms for peer_ms in peer_wall_ms)
    return 2 * apart > len(peer_wall_ms)


@dataclass(slots=True)
class _Heard:
    """The furthest ahead (peer wall - own monotonic) in the newest period, and in the one before it."""

    period: int
    newest_ms: int
    before_ms: int | None = None


class PeerClocks:
    """What is known of the peers' wall clocks. Two numbers for each peer."""

    def __init__(self, window_ms: int = HEARD_MS) -> None:
        self._period_ms = window_ms // 2
        self._heard: dict[int, _Heard] = {}

    def heard(self, node_num: int, peer_wall_ms: int, monotonic_ms: int) -> None:
        """A frame of this peer arrived, which left when its clock showed `peer_wall_ms`."""
        ahead_ms, period = peer_wall_ms - monotonic_ms, monotonic_ms // self._period_ms
        known = self._heard.get(node_num)
        if known is None or period > known.period + 1:
            self._heard[node_num] = _Heard(period, ahead_ms)
        elif period > known.period:
            self._heard[node_num] = _Heard(period, ahead_ms, known.newest_ms)
        else:
            known.newest_ms = max(known.newest_ms, ahead_ms)

    def walls_ms(self, monotonic_ms: int) -> list[int]:
        """What the clocks of the peers heard lately show now, as far as can be known."""
        period = monotonic_ms // self._period_ms
        found = []
        for known in self._heard.values():
            if period == known.period and known.before_ms is not None:
                found.append(max(known.newest_ms, known.before_ms) + monotonic_ms)
            elif period <= known.period + 1:
                found.append(known.newest_ms + monotonic_ms)
        return found
