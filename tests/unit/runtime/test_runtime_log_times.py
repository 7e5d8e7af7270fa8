"""The times of the log's syncs as Prometheus sees them."""

from __future__ import annotations

import flotta_native
from flotta_runtime.log_times import LogTimes
from flotta_runtime.metrics import Metrics


def test_sync_times_are_a_histogram_and_the_one_under_way_stands_beside_it() -> None:
    metrics = Metrics("test")
    counts = [0] * (len(flotta_native.TIME_BOUNDS_US) + 1)
    slot = flotta_native.TIME_BOUNDS_US.index(1_000)
    counts[slot], counts[-1] = 3, 1
    LogTimes(metrics, lambda: (counts, 9_500_000_000, 2_000_000_000))
    lines = metrics.render().decode().splitlines()
    assert 'flotta_log_sync_seconds_bucket{le="0.0005"} 0.0' in lines
    assert 'flotta_log_sync_seconds_bucket{le="0.001"} 3.0' in lines
    assert 'flotta_log_sync_seconds_bucket{le="+Inf"} 4.0' in lines
    assert "flotta_log_sync_seconds_count 4.0" in lines
    assert "flotta_log_sync_seconds_sum 9.5" in lines
    assert "flotta_log_sync_under_way_seconds 2.0" in lines
