"""How long writes to a shard stand still when the process that leads it is killed with SIGKILL, again and again.

Writers keep every shard busy through a gateway. A kill's gap is the longest silence of the slowest shard that the
victim led, as its clients saw it: detection, election, and the gateway's way to the new leader.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
import urllib.error
import urllib.request
from argparse import Namespace
from pathlib import Path

from figures import Spread, percentile
from records import Result, Table
from shard_writers import ShardWriters, longest_silence_s
from systems import Flotta, flotta

SHARDS = 8
WRITERS_PER_SHARD = 4
WATCH_S = 2.0
READY_S = 60.0


def run(given: Namespace, folder: Path) -> Result:
    kills = 1 if given.smoke else given.kills
    with flotta(folder / "failover", shards=SHARDS, transport=given.transport) as target:
        gaps = asyncio.run(_kill_and_watch(target, kills))
    worst = sorted(max(gap) for gap in gaps)
    single = sorted(value for gap in gaps for value in gap)
    header = ["", "count", "p50 s", "p90 s", "p99 s", "max s"]
    rows = [_row("kill (the slowest shard the victim led)", worst), _row("shard", single)]
    note = "Each kill, sorted, s: " + ", ".join(f"{value:.2f}" for value in worst)
    title = f"Writes of a shard stand still after kill -9 of its leader; {SHARDS} shards, {kills} kills, under load"
    facts = {"fail-over p99 s": Spread(percentile(worst, 99), worst[0], worst[-1])}
    return Result("failover", [Table(title, header, rows, note)], facts)


def _row(name: str, ordered: list[float]) -> list[str]:
    return [name, str(len(ordered)), *(f"{percentile(ordered, percent):.2f}" for percent in (50, 90, 99, 100))]


async def _kill_and_watch(target: Flotta, kills: int) -> list[list[float]]:
    """Per kill, the silence of each shard that the victim led."""
    gaps, chance = [], random.Random(11)
    async with ShardWriters(target.address, SHARDS, WRITERS_PER_SHARD).running() as writers:
        for _ in range(kills):
            led = await _led(target, chance)
            victim, shards = led
            await asyncio.sleep(chance.uniform(0.2, 0.7))
            killed = time.monotonic()
            os.kill(target.pids[victim], signal.SIGKILL)
            await asyncio.sleep(WATCH_S)
            await writers.all_acknowledge(killed + WATCH_S, shards)
            until = time.monotonic()
            gaps.append([longest_silence_s(writers.acks[shard], killed, until) for shard in shards])
            print(f"  killed {victim}, {len(shards)} shards: {max(gaps[-1]):.2f} s", flush=True)
            await asyncio.to_thread(target.script, "start", victim)
            await asyncio.to_thread(_wait_ready, target, victim)
            await writers.all_acknowledge(time.monotonic(), list(writers.acks))
    return gaps


async def _led(target: Flotta, chance: random.Random) -> tuple[str, list[str]]:
    """A node that leads shards, and which."""
    shards = await asyncio.to_thread(target.admin, "/admin/shards")
    leads: dict[str, list[str]] = {}
    for shard in shards:
        if shard["leader"]:
            leads.setdefault(shard["leader"], []).append(shard["shard_id"])
    return chance.choice(sorted(leads.items()))


def _wait_ready(target: Flotta, name: str) -> None:
    """Until the node says that it serves."""
    url, deadline = target.metrics_url(name).replace("/metrics", "/readyz"), time.monotonic() + READY_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.HTTPError, OSError):
            time.sleep(0.1)
    raise SystemExit(f"error: {name} is not ready after {READY_S:.0f} s")
