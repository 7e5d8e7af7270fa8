"""A flood of equal events becomes one line a period, and none is forgotten in the count."""

from __future__ import annotations

from flotta_runtime.clock import ManualClock
from flotta_runtime.throttle import EVENTS_MAX, Throttle


def test_one_line_a_period_with_the_count_of_the_others() -> None:
    clock = ManualClock()
    throttle = Throttle(clock, period_ms=100)
    assert throttle.admit("unknown_group") == 0
    assert [throttle.admit("unknown_group") for _ in range(5)] == [None] * 5
    assert throttle.admit("bad_message") == 0
    clock.advance(100)
    assert throttle.admit("unknown_group") == 5
    assert throttle.admit("unknown_group") is None


def test_what_it_remembers_is_bounded() -> None:
    throttle = Throttle(ManualClock(), period_ms=100)
    for key in range(3 * EVENTS_MAX):
        assert throttle.admit(key) == 0
    assert throttle.admit(3 * EVENTS_MAX - 1) is None
    assert throttle.admit(0) == 0
