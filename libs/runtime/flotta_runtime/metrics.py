"""Prometheus metrics, one registry per service, so that several services in one process keep theirs apart.

Hot paths bind label children once and keep them; counters are cheap, label look-ups are not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per child that nobody reads

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY_BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


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

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


def _tasks() -> int:
    """None are seen from outside a loop."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
