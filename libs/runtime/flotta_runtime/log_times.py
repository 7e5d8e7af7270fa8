"""How long the syncs of a Raft log take: the figure by which a slow or dying disk shows first.

Read when scraped, from counters that the native log keeps; nothing is asked of its thread, so that the figures come
while a sync hangs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from flotta_runtime.metrics import Metrics
from flotta_runtime.native_stats import buckets_of

SyncTimes = Callable[[], tuple[list[int], int, int]]  # `RaftHost.sync_times`


class LogTimes(Collector):
    """Makes metrics of them."""

    def __init__(self, metrics: Metrics, times: SyncTimes) -> None:
        self._times = times
        metrics.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        counts, total_ns, under_way_ns = self._times()
        yield HistogramMetricFamily(
            "flotta_log_sync_seconds",
            "Time that a sync of the Raft log took.",
            buckets=buckets_of(counts),
            sum_value=total_ns / 1e9,
        )
        yield GaugeMetricFamily(
            "flotta_log_sync_under_way_seconds",
            "How long the sync that is under way has lasted; 0 while there is none.",
            value=under_way_ns / 1e9,
        )
