"""Half the load a cluster can take, for as long as asked, while every process is watched for growth.

    python bench/soak.py --minutes 10

Each segment puts fresh values under its share of the keys; at the end every acknowledged value that no later segment
replaced is read back. Memory of each process is sampled every five seconds; open files, threads and asyncio tasks go up
and down with the requests in flight, so they are sampled at rest after each segment. Memtables and caches are filled
beforehand, and the first quarter is warm-up. Of the rest the median of the last quarter may lie above that of the first
by no more than: memory 10 % or 16 MB, whichever is more; 10 open files; 2 threads; 20 tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
from figures import Load, Spread, slope_per_hour
from flotta import AsyncClient
from generators import KEY_FORMAT, Work, ghz, shuffled_keys
from machine import sample
from records import QUICK, Result, Table, once, save
from systems import Flotta, counter, flotta

MINUTES_MIN = 10.0  # of a soak that goes into the records
SEGMENT_S = 20.0
SAMPLE_S = 5.0
REST_S = 0.5
FILL_CALLS = 200_000  # more than a node's memtables take, so that they are flushed before anything is compared
KEY_SETS = 10
KEYS_PER_SET = 2_000
VALUE_BYTES = 256
CLIENTS = 50
LOAD_SHARE = 0.5
WARM_UP_SHARE = 0.25
READERS = 50


@dataclass
class Watch:
    """Samples, (seconds since the start, value), of each process and figure."""

    target: Flotta
    rows: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        while not self.stop.wait(SAMPLE_S):
            for name, pid in self.target.pids.items():
                self._note(name, "memory MB", sample(pid).rss_bytes / 1e6)

    def at_rest(self) -> None:
        """What must be back where it was whenever nothing is in flight."""
        time.sleep(REST_S)
        for name, pid in self.target.pids.items():
            seen = sample(pid)
            self._note(name, "open files", seen.files)
            self._note(name, "threads", seen.threads)
            self._note(name, "asyncio tasks", counter(self.target.metrics_url(name), "flotta_asyncio_tasks "))

    def _note(self, process: str, figure: str, value: float) -> None:
        self.rows.setdefault((process, figure), []).append((time.monotonic() - self.began, value))


@dataclass(frozen=True)
class Growth:
    """One figure of one process after the warm-up."""

    process: str
    figure: str
    first: float
    last: float
    per_hour: float

    @property
    def allowed(self) -> float:
        return {"memory MB": max(16.0, self.first * 0.1), "open files": 10, "threads": 2, "asyncio tasks": 20}[
            self.figure
        ]

    @property
    def too_much(self) -> bool:
        return self.last - self.first > self.allowed


def growths(rows: dict[tuple[str, str], list[tuple[float, float]]]) -> list[Growth]:
    """Of every process and figure, after the warm-up."""
    found = []
    for (process, figure), samples in sorted(rows.items()):
        after = samples[int(len(samples) * WARM_UP_SHARE) :]
        seconds, values = [moment for moment, _ in after], [value for _, value in after]
        quarter = max(1, len(after) // 4)
        slope = slope_per_hour(seconds, values)
        found.append(Growth(process, figure, median(values[:quarter]), median(values[-quarter:]), slope))
    return found


def growth_table(found: Sequence[Growth], title: str, note: str) -> Table:
    rows = [
        [
            f"{each.process}: {each.figure}",
            f"{each.first:.1f}",
            f"{each.last:.1f}",
            f"{each.per_hour:+.1f}",
            f"{each.allowed:.0f}",
            "GROWS" if each.too_much else "flat",
        ]
        for each in found
    ]
    header = ["", "first quarter after warm-up", "last quarter", "slope per hour", "growth allowed", ""]
    return Table(title, header, rows, note)


@dataclass
class Pressure:
    """Half puts, half gets, at a fixed rate; remembers which value each key must hold."""

    target: Flotta
    folder: Path
    expected: dict[bytes, bytes] = field(default_factory=dict)
    calls: int = 0
    failed: int = 0

    def fill(self, calls: int) -> None:
        keys = [key for number in range(KEY_SETS) for key in key_set(number)]
        for left in range(calls, 0, -len(keys)):
            value = secrets.token_bytes(VALUE_BYTES)
            ghz(self.target, Work("put", keys, value, min(left, len(keys)), CLIENTS, 8), self.folder)

    def capacity(self, seconds: float) -> float:
        """Operations per second of a closed loop, half of them puts, half gets."""
        rates = []
        for operation in ("put", "get"):
            keys, value = shuffled_keys(KEYS_PER_SET, seed=3), secrets.token_bytes(VALUE_BYTES)
            probe = ghz(self.target, Work(operation, keys, value, KEYS_PER_SET, CLIENTS, 8), self.folder)
            calls = max(KEYS_PER_SET, int(probe.rate * seconds))
            rates.append(ghz(self.target, Work(operation, keys, value, calls, CLIENTS, 8), self.folder).rate)
        return 2 / sum(1 / rate for rate in rates)

    def segment(self, number: int, rate: float, seconds: float) -> None:
        """Puts under this segment's keys, gets of the last segment's, at once."""
        value = secrets.token_bytes(VALUE_BYTES)
        keys, before = key_set(number), key_set(max(0, number - 1))
        calls = max(1, int(rate / 2 * seconds))
        counts = {operation: self.target.answered(operation) for operation in ("put", "get")}
        with ThreadPoolExecutor(2) as pool:
            loads = [
                pool.submit(self._load, Work(operation, names, value, calls, CLIENTS, 8, max(1, int(rate / 2))))
                for operation, names in (("put", keys), ("get", before))
            ]
            ok = [load.result().succeeded for load in loads]
        answered = [self.target.answered(operation) - counts[operation] for operation in counts]
        failed = 2 * calls - sum(map(min, ok, answered))
        if number > 0 or failed == 0:  # the gets of the first segment race with its puts
            self.failed += failed
        self.calls += 2 * calls
        self.expected.update(dict.fromkeys(keys[:calls], value))

    def _load(self, work: Work) -> Load:
        folder = self.folder / work.operation
        folder.mkdir(exist_ok=True)
        return ghz(self.target, work, folder)

    async def read_back(self) -> list[bytes]:
        """Keys that do not hold the value acknowledged last."""
        wrong: list[bytes] = []
        waiting = iter(list(self.expected.items()))

        async def reader(client: AsyncClient) -> None:
            for key, value in waiting:
                entry = await client.get(key)
                if entry is None or entry.value != value:
                    wrong.append(key)

        async with AsyncClient(self.target.address) as client, asyncio.TaskGroup() as group:
            for _ in range(READERS):
                group.create_task(reader(client))
        return wrong


def key_set(number: int) -> list[bytes]:
    first = number % KEY_SETS * KEYS_PER_SET
    return [KEY_FORMAT % key for key in range(first, first + KEYS_PER_SET)]


def soak(minutes: float, transport: str, fill_calls: int, folder: Path) -> Result:
    with flotta(folder / "soak", transport=transport) as target:
        pressure = Pressure(target, folder)
        pressure.fill(fill_calls)
        capacity = pressure.capacity(min(5.0, minutes * 10))
        rate = capacity * LOAD_SHARE
        print(f"capacity {capacity:.0f} operations/s; {rate:.0f}/s for {minutes:g} minutes", flush=True)
        watch = Watch(target)
        watching = threading.Thread(target=watch.run, name="watch")
        watching.start()
        try:
            segments = max(1, round(minutes * 60 / SEGMENT_S))
            for number in range(segments):
                pressure.segment(number, rate, min(SEGMENT_S, minutes * 60))
                watch.at_rest()
        finally:
            watch.stop.set()
            watching.join()
        answers = target.answers()
        wrong = asyncio.run(pressure.read_back())
    return _result(minutes, rate, pressure, watch, wrong, answers)


def _result(
    minutes: float, rate: float, pressure: Pressure, watch: Watch, wrong: list[bytes], answers: dict[str, int]
) -> Result:
    found = growths(watch.rows)
    errors = [
        f"{each.process}: {each.figure} grew from {each.first:.1f} to {each.last:.1f}"
        for each in found
        if each.too_much
    ]
    if pressure.failed:
        errors.append(f"{pressure.failed} of {pressure.calls} calls failed; answers of the gateway: {answers}")
    if wrong:
        errors.append(f"{len(wrong)} keys lost the value acknowledged last, the first of them {wrong[0]!r}")
    note = (
        f"{pressure.calls} calls, {pressure.failed} failed; {len(pressure.expected)} keys read back, "
        f"{len(wrong)} wrong; {max(map(len, watch.rows.values()), default=0)} samples of memory"
    )
    table = growth_table(found, f"Soak: {minutes:g} minutes at {rate:.0f} operations/s, half of capacity", note)
    memory = [each.per_hour for each in found if each.figure == "memory MB"]
    facts: dict[str, Spread] = {"soak memory MB per hour": once(max(memory, default=0.0))}
    return Result("soak", [table], facts, errors=errors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--transport", default="", help="of all services; unset: their default")
    parser.add_argument("--fill", type=int, default=FILL_CALLS, help="puts before anything is watched")
    given = parser.parse_args()
    whole = given.minutes >= MINUTES_MIN and given.fill >= FILL_CALLS and not given.transport
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that the cluster is stopped
    with tempfile.TemporaryDirectory(prefix="flotta-soak-") as folder:
        result = soak(given.minutes, given.transport, given.fill, Path(folder))
    result = save(result if whole else replace(result, part=QUICK))
    print(result.text())
    for error in result.errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if result.errors else 0


if __name__ == "__main__":
    sys.exit(main())
