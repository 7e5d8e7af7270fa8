"""What RocksDB's own log costs under our engine: the figures of docs/adr/0020.

python bench/rocksdb_wal.py DIRECTORY
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from flotta_embedded.rocks import RocksEngine

SPACES = 8
PUTS = 40_000
VALUE = os.urandom(128)


def open_engine(path: str, logged: bool) -> RocksEngine:
    engine = RocksEngine(path)
    engine._unlogged.disable_wal = not logged  # type: ignore[assignment,method-assign]
    return engine


def fill(engine: RocksEngine, puts: int, batch: int) -> None:
    for space in range(SPACES):
        engine.create(f"s{space}")
    for at in range(0, puts, batch):
        rows = [(b"k%012d" % ((at + row) * 7919 % 1_000_003), VALUE) for row in range(batch)]
        engine.write(f"s{at // batch % SPACES}", rows, ())


def bytes_written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("wchar")).split()[1])


def write_cost(path: str, logged: bool, batch: int) -> tuple[float, float]:
    """(microseconds per put, megabytes written)"""
    shutil.rmtree(path, ignore_errors=True)
    engine = open_engine(path, logged)
    before, started = bytes_written(), time.perf_counter()
    fill(engine, PUTS, batch)
    elapsed = time.perf_counter() - started
    for space in range(SPACES):
        engine.flush(f"s{space}")
    written = bytes_written() - before
    engine.close()
    return elapsed / PUTS * 1e6, written / 1e6


def open_after_kill_ms(path: str, logged: bool) -> float:
    """A process that wrote 160,000 rows (24 MB) and never flushed is killed; the next one opens its directory."""
    shutil.rmtree(path, ignore_errors=True)
    subprocess.run([sys.executable, __file__, path, "on" if logged else "off"], check=False)
    started = time.perf_counter()
    engine = RocksEngine(path)
    elapsed = time.perf_counter() - started
    engine.close()
    return elapsed * 1e3


def main() -> None:
    path = sys.argv[1]
    if len(sys.argv) == 3:
        engine = open_engine(path, sys.argv[2] == "on")  # held: RocksDB flushes what it has when it is closed
        fill(engine, 160_000, 64)
        os.kill(os.getpid(), signal.SIGKILL)
    for batch in (1, 8, 64, 512):
        runs = [(logged, write_cost(path, logged, batch)) for _ in range(3) for logged in (True, False)]
        for logged in (True, False):
            cost, written = min(run for was, run in runs if was is logged)
            print(f"batch {batch:4} log {'on ' if logged else 'off'} {cost:5.2f} us/put {written:5.1f} MB written")
    for logged in (True, False):
        print(f"log {'on ' if logged else 'off'} open after kill {open_after_kill_ms(path, logged):6.1f} ms")


if __name__ == "__main__":
    main()
