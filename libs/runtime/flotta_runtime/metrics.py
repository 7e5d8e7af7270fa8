"""Prometheus metrics, one registry per service, so that several services in one process keep theirs apart.

Hot paths bind label children once and keep them. What is counted in every turn of an event loop is a `LoopCounter` or a
`LoopHistogram`: plain numbers, added to on the loop and made into metric families when it is scraped, without a lock.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per child that nobody reads

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY_BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class LoopCount:
    """One number of a `LoopCounter`; add to `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class LoopCounter(Collector):
    """A counter that only its event loop adds to; `name` ends in _total."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._counts: dict[tuple[str, ...], LoopCount] = {}

    def labels(self, *values: str) -> LoopCount:
        """The number of these values, the same one every time."""
        return self._counts.setdefault(values, LoopCount())

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, count in self._counts.items():
            family.add_metric(values, count.value)
        yield family


class LoopHistogram(Collector):
    """A distribution that only its event loop adds to."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name, self._documentation, self._bounds = name, documentation, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        names = (*(str(float(bound)) for bound in self._bounds), "+Inf")
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        family = HistogramMetricFamily(self._name, self._documentation)
        family.add_metric((), buckets, self._sum)
        yield family


class Metrics:
    """A service's registry and the means to make metrics in it. Each metric is made once, under its full name."""

    def __init__(self, service: str, node: str = "") -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.gauge("flotta_service_info", "Which service and node this is; always 1.", ("service", "node")).labels(
            service, node
        ).set(1)
        self.gauge("flotta_asyncio_tasks", "Unfinished tasks of the event loop that is scraped.").set_function(_tasks)

    def counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
        """A number that only grows; `name` ends in _total."""
        return Counter(name, documentation, labels, registry=self.registry)

    def gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
        """A number that goes up and down; `.set_function(callable)` reads it when scraped."""
        return Gauge(name, documentation, labels, registry=self.registry)

    def histogram(
        self, name: str, documentation: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS_S
    ) -> Histogram:
        """A distribution; seconds by default (`name` ends in _seconds)."""
        return Histogram(name, documentation, labels, registry=self.registry, buckets=buckets)

    def loop_counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> LoopCounter:
        """A counter for what is counted in every turn of the loop."""
        counter = LoopCounter(name, documentation, labels)
        self.registry.register(counter)
        return counter

    def loop_histogram(self, name: str, documentation: str, buckets: Sequence[float]) -> LoopHistogram:
        """A distribution of what is seen in every turn of the loop."""
        histogram = LoopHistogram(name, documentation, buckets)
        self.registry.register(histogram)
        return histogram

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


def _tasks() -> int:
    """None are seen from outside a loop."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
