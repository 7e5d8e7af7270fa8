"""How long a cluster with many keys takes from its start command to a write on every shard: after a stop, after a kill.

After a kill -9 of everything the Raft logs are replayed from what RocksDB had flushed; that is the difference.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from argparse import Namespace
from pathlib import Path

from generators import KEY_FORMAT, Work, ghz
from machine import alive, sample
from records import Result, Table, once
from shard_writers import ShardWriters, first_after_s
from systems import Flotta, flotta

SHARDS = 8
CHUNK_KEYS = 20_000
VALUE_BYTES = 256
CLIENTS = 200


def run(given: Namespace, folder: Path) -> Result:
    keys = 2_000 if given.smoke else given.startup_keys
    with flotta(folder / "startup", shards=SHARDS, transport=given.transport) as target:
        began = time.monotonic()
        fill(target, keys, folder)
        filled_s = time.monotonic() - began
        stopped_s = asyncio.run(_restart(target, kill=False))
        killed_s = asyncio.run(_restart(target, kill=True))
        rows = [
            ["keys", f"{keys:,}"],
            ["filled in, s", f"{filled_s:.1f}"],
            ["start after a stop, s", f"{stopped_s:.2f}"],
            ["start after kill -9 of all processes, s", f"{killed_s:.2f}"],
        ]
        for name in sorted(name for name in target.pids if name.startswith("node")):
            rss, disk = sample(target.pids[name]).rss_bytes, _disk_bytes(folder / "startup" / "data" / name)
            rows.append([f"{name}: RSS MB, disk MB", f"{rss / 1e6:.0f}, {disk / 1e6:.0f}"])
    title = f"Start with {keys:,} keys of {VALUE_BYTES} bytes: from the command to a write on each of {SHARDS} shards"
    facts = {"start after stop s": once(stopped_s), "start after kill s": once(killed_s)}
    return Result("startup", [Table(title, ["", ""], rows)], facts)


def fill(target: Flotta, keys: int, folder: Path) -> None:
    """Every key once. SystemExit when the gateway did not count as many good puts."""
    value, answered = secrets.token_bytes(VALUE_BYTES), target.answered("put")
    for first in range(0, keys, CHUNK_KEYS):
        names = [KEY_FORMAT % number for number in range(first, min(first + CHUNK_KEYS, keys))]
        ghz(target, Work("put", names, value, len(names), min(CLIENTS, len(names)), 8), folder)
        print(f"  {first + len(names):,} keys", end="\r", flush=True)
    if (missing := keys - (target.answered("put") - answered)) > 0:
        raise SystemExit(f"error: {missing} of {keys} puts failed")


async def _restart(target: Flotta, kill: bool) -> float:
    """Seconds from the start command until every shard has acknowledged a write."""
    async with ShardWriters(target.address, SHARDS, 1).running() as writers:
        if kill:
            await asyncio.to_thread(_kill_all, target)
        else:
            await asyncio.to_thread(target.script, "stop")
        began = time.monotonic()
        await asyncio.to_thread(target.script, "start")
        await writers.all_acknowledge(began, list(writers.acks), seconds=600)
        return max(first_after_s(times, began) for times in writers.acks.values())


def _kill_all(target: Flotta) -> None:
    for pid in target.pids.values():
        os.kill(pid, signal.SIGKILL)
    while any(map(alive, target.pids.values())):
        time.sleep(0.02)


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
