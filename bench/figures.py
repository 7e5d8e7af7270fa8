"""From raw durations to the few numbers a reader compares: percentiles, medians over rounds, ratios and spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Load:
    """What one run of a load generator saw; latencies in milliseconds, of operations that succeeded."""

    calls: int
    succeeded: int
    seconds: float
    p50_ms: float
    p99_ms: float
    p999_ms: float

    @property
    def rate(self) -> float:
        return self.succeeded / self.seconds


@dataclass(frozen=True)
class Measure:
    """One cell of one system in one round. CPU in microseconds per call."""

    system: str
    cell: str
    round: int
    calls: int
    errors: int
    rate: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    cpu_us: dict[str, float]
    load_cpu_us: float
    foreign_cores: float  # CPU used by whatever else ran on the machine meanwhile
    stolen_cores: float  # CPU that the hypervisor gave to others meanwhile
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def cpu_us_total(self) -> float:
        return sum(self.cpu_us.values())


@dataclass(frozen=True)
class Spread:
    """The middle of several rounds, and how far they lie apart."""

    middle: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        return f"{self.middle:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` per cent of a sorted sequence do not exceed; NaN of nothing."""
    if not ordered:
        return math.nan
    rank = math.ceil(len(ordered) * percent / 100)
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def load_from(durations_ms: Sequence[float], calls: int, seconds: float) -> Load:
    """A Load from the durations of the operations that succeeded."""
    ordered = sorted(durations_ms)
    return Load(
        calls=calls,
        succeeded=len(ordered),
        seconds=seconds,
        p50_ms=percentile(ordered, 50),
        p99_ms=percentile(ordered, 99),
        p999_ms=percentile(ordered, 99.9),
    )


def spread(values: Sequence[float]) -> Spread:
    if not values:
        raise ValueError("a spread of nothing")
    return Spread(median(values), min(values), max(values))


def ratios(ours: Sequence[Measure], theirs: Sequence[Measure], figure: str) -> Spread | None:
    """Ours divided by theirs, round by round: what both were given in a round is alike. None without common rounds."""
    theirs_by_round = {measure.round: measure for measure in theirs}
    pairs = [(measure, theirs_by_round[measure.round]) for measure in ours if measure.round in theirs_by_round]
    found = [getattr(our, figure) / getattr(their, figure) for our, their in pairs if getattr(their, figure) > 0]
    return spread(found) if found else None


def slope_per_hour(seconds: Sequence[float], values: Sequence[float]) -> float:
    """The least-squares slope of values over time, per hour; 0 where time stands still."""
    if len(seconds) != len(values) or not seconds:
        raise ValueError(f"{len(seconds)} times for {len(values)} values")
    mean_s, mean = sum(seconds) / len(seconds), sum(values) / len(values)
    square = sum((s - mean_s) ** 2 for s in seconds)
    if square == 0:
        return 0.0
    return sum((s - mean_s) * (v - mean) for s, v in zip(seconds, values, strict=True)) / square * 3600
