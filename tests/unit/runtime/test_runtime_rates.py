"""Token buckets: what gets in, how long the others wait, and how little is remembered."""

from __future__ import annotations

import pytest
from flotta_runtime.rates import Rates


def let_in(rates: Rates, name: str, now_ms: float, tries: int) -> int:
    return sum(rates.admit(name, now_ms) == 0 for _ in range(tries))


def test_a_burst_then_the_rate() -> None:
    rates = Rates(10, 5)
    assert let_in(rates, "a", 1_000, 20) == 5
    assert rates.admit("a", 1_000) in range(1, 102)
    assert let_in(rates, "a", 1_100, 20) == 1
    assert let_in(rates, "a", 1_650, 20) == 5
    assert let_in(rates, "a", 100_000, 20) == 5, "idle time saves up no more than a burst"


def test_what_is_told_is_when_the_next_one_is_let_in() -> None:
    rates = Rates(3, 1)
    assert rates.admit("a", 0) == 0
    wait_ms = rates.admit("a", 0)
    assert rates.admit("a", wait_ms - 2) > 0
    assert rates.admit("a", wait_ms) == 0


def test_names_do_not_share() -> None:
    rates = Rates(1, 2)
    assert let_in(rates, "a", 0, 9) == 2
    assert let_in(rates, "b", 0, 9) == 2


def test_a_refused_request_costs_nothing() -> None:
    rates = Rates(1, 1)
    rates.admit("a", 0)
    for now_ms in range(0, 1_000, 10):
        assert rates.admit("a", now_ms) > 0
    assert rates.admit("a", 1_000) == 0


def test_invented_names_share_one_bucket_once_the_room_is_used() -> None:
    rates = Rates(1, 2, names_max=10)
    assert sum(rates.admit(str(n), 0) == 0 for n in range(10_000)) == 10 + 2
    assert len(rates) == 11
    assert rates.admit("3", 0) == 0, "who has a bucket keeps it"


def test_idle_names_make_room() -> None:
    rates = Rates(1, 2, names_max=10)
    for n in range(10):
        rates.admit(str(n), 0)
    assert let_in(rates, "new", 5_000, 9) == 2
    assert len(rates) == 1


@pytest.mark.parametrize(("per_second", "burst", "names_max"), [(0, 1, 1), (-1, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_rate_that_lets_nobody_in_is_a_mistake(per_second: float, burst: int, names_max: int) -> None:
    with pytest.raises(ValueError, match="nobody"):
        Rates(per_second, burst, names_max=names_max)
