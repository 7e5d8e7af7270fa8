"""The benchmark's arithmetic."""

import math

import pytest
from figures import Measure, load_from, percentile, ratios, slope_per_hour, spread


def measure(system: str, number: int, rate: float, cpu_us: float = 100.0) -> Measure:
    return Measure(
        system=system,
        cell="put c=50 conn=8",
        round=number,
        calls=1000,
        errors=0,
        rate=rate,
        p50_ms=1.0,
        p99_ms=2.0,
        p999_ms=3.0,
        cpu_us={"a": cpu_us / 2, "b": cpu_us / 2},
        load_cpu_us=10.0,
        foreign_cores=0.0,
        stolen_cores=0.0,
    )


def test_a_percentile_is_a_value_that_was_seen():
    ordered = list(range(1, 1001))
    assert [percentile(ordered, p) for p in (50, 99, 99.9, 100)] == [500, 990, 999, 1000]
    assert percentile([7.0], 99.9) == 7.0
    assert percentile([1.0, 2.0], 0) == 1.0
    assert math.isnan(percentile([], 50))


def test_only_what_succeeded_counts_as_rate():
    load = load_from([3.0, 1.0, 2.0], calls=5, seconds=0.5)
    assert (load.succeeded, load.rate, load.p50_ms, load.p999_ms) == (3, 6.0, 2.0, 3.0)


def test_ratios_are_taken_within_a_round():
    ours = [measure("flotta", n, rate) for n, rate in enumerate((100.0, 50.0, 300.0))]
    theirs = [measure("etcd", n, rate) for n, rate in enumerate((100.0, 25.0, 100.0))]
    ratio = ratios(ours, theirs, "rate")
    assert ratio is not None
    assert (ratio.middle, ratio.low, ratio.high) == (2.0, 1.0, 3.0)


def test_rounds_that_one_of_them_missed_give_no_ratio():
    assert ratios([measure("flotta", 0, 1.0)], [measure("etcd", 1, 1.0)], "rate") is None
    ratio = ratios([measure("flotta", n, 4.0) for n in (0, 1)], [measure("etcd", 1, 2.0)], "rate")
    assert ratio is not None
    assert (ratio.low, ratio.high) == (2.0, 2.0)


def test_cpu_is_that_of_all_processes_together():
    ratio = ratios([measure("flotta", 0, 1.0, cpu_us=30.0)], [measure("etcd", 0, 1.0, cpu_us=120.0)], "cpu_us_total")
    assert ratio is not None
    assert ratio.middle == 0.25


def test_spread_says_middle_and_ends():
    assert spread([5.0, 1.0, 2.0]).text(1) == "2.0 (1.0–5.0)"
    with pytest.raises(ValueError, match="spread of nothing"):
        spread([])


def test_slope_is_per_hour():
    assert slope_per_hour([0.0, 1800.0, 3600.0], [10.0, 15.0, 20.0]) == pytest.approx(10.0)
    assert slope_per_hour([0.0, 10.0], [4.0, 4.0]) == 0.0
    assert slope_per_hour([5.0], [4.0]) == 0.0
    with pytest.raises(ValueError, match="1 times for 2 values"):
        slope_per_hour([5.0], [4.0, 4.0])
