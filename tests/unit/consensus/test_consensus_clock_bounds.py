"""When a clock counts as out of bounds, and what is remembered of the clocks of peers."""

from __future__ import annotations

import pytest
from flotta_consensus.core.clock_bounds import PeerClocks, out_of_bounds

WALL_MS = 1_700_000_000_000


@pytest.mark.parametrize(
    ("ahead_ms", "expected"),
    [
        ((), False),  # nobody to compare with
        ((500,), False),
        ((501,), True),
        ((-500,), False),
        ((-501,), True),
        ((501, 0), False),  # one of two is no majority
        ((501, 501), True),
        ((501, -501), True),  # wherever the others are, they are not here
        ((9_999, 9_999, 0), True),
        ((9_999, 0, 0), False),
        ((9_999, 9_999, 0, 0), False),
    ],
)
def test_a_clock_is_out_of_bounds_when_most_peers_disagree(ahead_ms: tuple[int, ...], expected: bool) -> None:
    assert out_of_bounds(WALL_MS, [WALL_MS - each for each in ahead_ms], 500) is expected


def test_a_late_frame_makes_no_clock_look_slow() -> None:
    clocks = PeerClocks(window_ms=1_000)
    clocks.heard(2, WALL_MS + 100, 100)
    clocks.heard(2, WALL_MS + 200, 900)  # 700 ms on its way, or in a loop that stood still
    assert clocks.walls_ms(900) == [WALL_MS + 900]
    clocks.heard(2, WALL_MS + 5_950, 950)  # set forward
    assert clocks.walls_ms(950) == [WALL_MS + 5_950]


def test_a_clock_set_back_is_believed_within_the_window() -> None:
    clocks = PeerClocks(window_ms=1_000)
    clocks.heard(2, WALL_MS, 0)
    shown = []
    for now_ms in range(100, 1_300, 100):
        clocks.heard(2, WALL_MS - 60_000 + now_ms, now_ms)
        (wall_ms,) = clocks.walls_ms(now_ms)
        shown.append(wall_ms - now_ms - WALL_MS)
    assert shown == [0] * 9 + [-60_000] * 3


def test_the_silent_drop_out() -> None:
    clocks = PeerClocks(window_ms=1_000)
    clocks.heard(2, WALL_MS, 0)
    clocks.heard(3, WALL_MS, 499)
    clocks.heard(3, WALL_MS, 500)
    assert len(clocks.walls_ms(999)) == 2
    assert clocks.walls_ms(1_000) == [WALL_MS + 500]
    assert clocks.walls_ms(1_500) == []
    clocks.heard(2, WALL_MS + 9_000, 9_000)  # back after a long silence: nothing of before counts
    assert clocks.walls_ms(9_000) == [WALL_MS + 9_000]
