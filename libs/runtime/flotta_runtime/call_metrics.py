"""Counts and times of gRPC calls, under the metric names of go-grpc-prometheus, so that its dashboards work.

Plain numbers, added to on the event loop and made into metric families when somebody scrapes, on the same loop: no lock
and no label look-up stands on the path of a call. One call costs well under a microsecond; so do many at once, because
`end_many` counts calls of the same length together. Nothing is sampled: the times of a batch are those between the
turn of the loop that took its calls and the turn that answered them, and each call is in the histogram.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from flotta_runtime.metrics import LATENCY_BUCKETS_S, Metrics

_LABELS = ("grpc_type", "grpc_service", "grpc_method")
_BOUNDS = (*map(str, LATENCY_BUCKETS_S), "+Inf")


class MethodCounts:
    """What became of the calls of one method."""

    __slots__ = ("_buckets", "_handled", "_seconds", "labels", "started")

    def __init__(self, kind: str, path: str) -> None:
        _, service, name = path.split("/")
        self.labels = (kind, service, name)
        self.started = 0
        self._handled = {"OK": 0}
        self._buckets = [0] * len(_BOUNDS)
        self._seconds = 0.0

    def begin(self) -> float:
        """A call has begun. Returns what `end` wants to know."""
        self.started += 1
        return time.perf_counter()

    def end(self, began: float, code: str) -> None:
        """It has ended with this code."""
        self.end_many(1, time.perf_counter() - began, code)

    def end_many(self, calls: int, seconds: float, code: str) -> None:
        """That many calls, which took that long each, have ended with this code."""
        self._handled[code] = self._handled.get(code, 0) + calls
        self._buckets[bisect_left(LATENCY_BUCKETS_S, seconds)] += calls
        self._seconds += seconds * calls

    def handled(self) -> dict[str, int]:
        """Calls by code."""
        return dict(self._handled)

    def cumulated(self) -> tuple[list[tuple[str, float]], float]:
        """Histogram buckets as Prometheus wants them, and the sum of all times."""
        buckets, total = [], 0
        for bound, calls in zip(_BOUNDS, self._buckets, strict=True):
            total += calls
            buckets.append((bound, float(total)))
        return buckets, self._seconds


class CallMetrics(Collector):
    """The calls of one server."""

    def __init__(self, metrics: Metrics) -> None:
        self._methods: dict[str, MethodCounts] = {}
        metrics.registry.register(self)

    def method(self, kind: str, path: str) -> MethodCounts:
        """The counts of a method; the same however often it is asked for."""
        found = self._methods.get(path)
        if found is None:
            found = self._methods[path] = MethodCounts(kind, path)
        return found

    def describe(self) -> Iterator[Metric]:
        return iter(_families())

    def collect(self) -> Iterator[Metric]:
        started, handled, seconds = _families()
        for method in self._methods.values():
            started.add_metric(method.labels, method.started)
            for code, calls in method.handled().items():
                handled.add_metric((*method.labels, code), calls)
            buckets, total = method.cumulated()
            seconds.add_metric(method.labels, buckets, total)
        return iter((started, handled, seconds))


def _families() -> tuple[CounterMetricFamily, CounterMetricFamily, HistogramMetricFamily]:
    return (
        CounterMetricFamily("grpc_server_started_total", "gRPC calls begun.", labels=_LABELS),
        CounterMetricFamily("grpc_server_handled_total", "gRPC calls ended, by code.", labels=(*_LABELS, "grpc_code")),
        HistogramMetricFamily("grpc_server_handling_seconds", "How long gRPC calls took.", labels=_LABELS),
    )
