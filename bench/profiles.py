"""Where the CPU goes: samples of single processes under load, as small tables.

    python bench/profiles.py --operation put --conc 50
    python bench/profiles.py --operation get --conc 200 --processes gateway,node-1 --seconds 8

`perf` samples all threads, native code and kernel included, and knows no Python function: its shares are of the CPU
that the process used. `py-spy` knows Python functions only: its shares are of the time in which the GIL was held, and
what a function spends in native code it calls is its own. Both run, one after the other, under the same load.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from generators import GENERATORS, Work, shuffled_keys
from machine import cpu_s
from records import Table
from systems import Flotta, flotta

PERF_HZ = 499
PY_SPY_HZ = 250
KEYS = 10_000
VALUE_BYTES = 256


@contextmanager
def under_load(target: Flotta, operation: str, clients: int, batch: int, folder: Path) -> Iterator[None]:
    """ghz, or h2load with batches, runs again and again as long as the inside lasts."""
    generate = GENERATORS["ghz" if batch == 1 else "h2load"]
    stop = threading.Event()

    def run() -> None:
        calls = max(40, 2_000 // batch)
        while not stop.is_set():
            value = secrets.token_bytes(VALUE_BYTES)
            work = Work(operation, shuffled_keys(KEYS, 7), value, calls, clients, 8, batch=batch)
            calls = max(calls, int(generate(target, work, folder).rate * 3))

    thread = threading.Thread(target=run, name="load")
    thread.start()
    try:
        time.sleep(1.5)
        yield
    finally:
        stop.set()
        thread.join()


def perf(pids: dict[str, int], seconds: float, folder: Path) -> dict[str, Path]:
    """A recording of each process, all made at the same time."""
    files = {name: folder / f"{name}.perf" for name in pids}
    running = [
        subprocess.Popen(
            [
                "perf",
                "record",
                "-q",
                "-F",
                str(PERF_HZ),
                "-p",
                str(pid),
                "-o",
                str(files[name]),
                "--",
                "sleep",
                str(seconds),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, pid in pids.items()
    ]
    for process in running:
        _, errors = process.communicate(timeout=seconds + 60)
        if process.returncode != 0:
            raise SystemExit(f"error: perf record: {errors.strip()[-500:]}")
    return files


def perf_rows(recording: Path, keys: str, count: int) -> list[list[str]]:
    """`perf report` by the given sort keys: share of samples, then the keys."""
    command = ["perf", "report", "-i", str(recording), "--stdio", "-q", "--no-children", "--sort", keys, "-t", "|"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: perf report: {done.stderr.strip()[-500:]}")
    return parse_perf(done.stdout, count)


def parse_perf(text: str, count: int) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "%" in line]
    return [[f"{float(share.rstrip('%')):.1f} %", *(_short(cell) for cell in cells)] for share, *cells in rows][:count]


def _short(name: str) -> str:
    """A symbol without its privilege mark, and not longer than a table can bear."""
    name = name.removeprefix("[.] ").removeprefix("[k] ")
    return name if len(name) <= 90 else f"{name[:42]}…{name[-42:]}"


def py_spy(pid: int, seconds: float, path: Path) -> str:
    """Collapsed stacks of the samples in which a thread held the GIL."""
    spy = Path(sys.executable).parent / "py-spy"
    command = [
        *(str(spy), "record", "--pid", str(pid), "--duration", str(max(1, round(seconds))), "--rate", str(PY_SPY_HZ)),
        *("--format", "raw", "--output", str(path), "--nonblocking", "--full-filenames", "--gil"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: py-spy: {done.stderr.strip()[-500:]}")
    return path.read_text()


def parse_stacks(text: str, count: int) -> list[list[str]]:
    """(own share, share with callees, function) of the functions in which most time was spent."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    samples = 0
    for line in text.splitlines():
        stack, _, number = line.rpartition(" ")
        frames = [_function(frame) for frame in stack.split(";") if not frame.startswith("process ")]
        samples += int(number)
        own[frames[-1]] += int(number)
        whole.update({frame: int(number) for frame in set(frames)})
    ranked = sorted(whole, key=lambda name: (own[name], whole[name]), reverse=True)[:count]
    return [[f"{own[name] / samples:.1%}", f"{whole[name] / samples:.1%}", name] for name in ranked]


def _function(frame: str) -> str:
    """`function (dir/file.py)` of py-spy's `function (/long/dir/file.py:12)`."""
    name, _, place = frame.rpartition(" (")
    path = Path(place.rstrip(")").rpartition(":")[0] or place.rstrip(")"))
    return f"{name or frame} ({'/'.join(path.parts[-2:])})" if name else frame


def profile(target: Flotta, given: argparse.Namespace, folder: Path) -> list[Table]:
    pids = {name: target.pids[name] for name in given.processes.split(",")}
    tables = []
    with under_load(target, given.operation, given.conc, given.batch, folder):
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        recordings = perf(pids, given.seconds, folder)
        cores = {name: (cpu_s(pid) - before[name]) / given.seconds for name, pid in pids.items()}
        stacks = {name: py_spy(pid, given.seconds, folder / f"{name}.txt") for name, pid in pids.items()}
    for name, recording in recordings.items():
        keys = f" x{given.batch}" if given.batch > 1 else ""
        load = f"{given.operation}{keys} c={given.conc}, {cores[name]:.2f} cores"
        by_place = perf_rows(recording, "comm,dso", given.rows)
        by_symbol = perf_rows(recording, "dso,symbol", given.rows)
        tables.append(Table(f"{name}: threads and libraries ({load})", ["share", "thread", "library"], by_place))
        tables.append(Table(f"{name}: symbols ({load})", ["share", "library", "symbol"], by_symbol))
        header = ["own", "with callees", "function"]
        tables.append(Table(f"{name}: Python functions ({load})", header, parse_stacks(stacks[name], given.rows)))
    return tables


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operation", choices=("put", "get"), default="put")
    parser.add_argument("--conc", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1, help="keys of one request; h2load sends batches")
    parser.add_argument("--processes", default="gateway,node-1")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rows", type=int, default=15)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--transport", default="", help="of all services; unset: their default")
    parser.add_argument("--markdown", action="store_true", help="for docs")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that the cluster is stopped
    with (
        tempfile.TemporaryDirectory(prefix="flotta-profile-") as name,
        flotta(Path(name) / "profile", shards=given.shards, transport=given.transport) as target,
    ):
        tables = profile(target, given, Path(name))
    print("\n\n".join(table.markdown() if given.markdown else table.text() for table in tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
