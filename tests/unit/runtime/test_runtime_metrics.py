"""Metrics of the event loop look to a scraper as the library's own do."""

from __future__ import annotations

from flotta_runtime.metrics import BATCH_BUCKETS, Metrics

SEEN = (0, 1, 1.5, 2, 3, 4096, 5000)


def lines_of(metrics: Metrics, name: str) -> list[str]:
    return [line.replace(name, "x") for line in metrics.render().decode().splitlines() if name in line]


def test_a_counter_of_the_loop_reads_as_any_other() -> None:
    metrics = Metrics("test")
    ours = metrics.loop_counter("flotta_ours_total", "Seen.", ("kind", "code"))
    theirs = metrics.counter("flotta_their_total", "Seen.", ("kind", "code"))
    for kind, code, count in (("put", "OK", 3), ("get", "OK", 0), ("put", "OK", 2), ("put", "NOT_FOUND", 1)):
        ours.labels(kind, code).value += count
        theirs.labels(kind, code).inc(count)
    found = lines_of(metrics, "flotta_ours")
    assert len(found) == 5
    assert found == lines_of(metrics, "flotta_their")


def test_a_histogram_of_the_loop_reads_as_any_other() -> None:
    metrics = Metrics("test")
    ours = metrics.loop_histogram("flotta_ours", "Seen.", BATCH_BUCKETS)
    theirs = metrics.histogram("flotta_their", "Seen.", buckets=BATCH_BUCKETS)
    for value in SEEN:
        ours.observe(value)
        theirs.observe(value)
    found = lines_of(metrics, "flotta_ours")
    assert len(found) == len(BATCH_BUCKETS) + 5
    assert found == lines_of(metrics, "flotta_their")
