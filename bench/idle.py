"""What a cluster costs that nobody uses: CPU and memory of each process, 64 shards with three replicas each."""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path

from figures import Spread, spread
from machine import sample
from records import Result, Table
from systems import flotta

SHARDS = 64
SETTLE_S = 10


def run(given: Namespace, folder: Path) -> Result:
    shards, watch_s = (4, 1.0) if given.smoke else (SHARDS, 20.0)
    with flotta(folder / "idle", shards=shards, transport=given.transport) as target:
        time.sleep(0 if given.smoke else SETTLE_S)
        before, began = target.cpu_s(), time.monotonic()
        time.sleep(watch_s)
        elapsed, after = time.monotonic() - began, target.cpu_s()
        percent = {name: (after[name] - before[name]) / elapsed * 100 for name in after}
        now = {name: sample(pid) for name, pid in target.pids.items()}
    rows = [
        [name, f"{percent[name]:.2f}", f"{each.rss_bytes / 1e6:.0f}", str(each.threads), str(each.files)]
        for name, each in now.items()
    ]
    nodes = [name for name in now if name.startswith("node")]
    facts = {
        "idle storage CPU percent": _worst([percent[name] for name in nodes]),
        "idle storage MB": _worst([now[name].rss_bytes / 1e6 for name in nodes]),
    }
    title = f"Idle, {shards} shards × 3 replicas, watched for {watch_s:.0f} s"
    return Result("idle", [Table(title, ["process", "CPU % of a core", "RSS MB", "threads", "files"], rows)], facts)


def _worst(values: list[float]) -> Spread:
    """The bar is judged by the process that has most."""
    found = spread(values)
    return Spread(found.high, found.low, found.high)
