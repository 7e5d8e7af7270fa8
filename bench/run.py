"""Put and Get through the gateway beside etcd's three members and Redis: same machine, same run.

python bench/run.py                                  what `make bench` runs
python bench/run.py --only put --conc 50 --rounds 3  one lever, quickly
python bench/run.py --smoke                          every path once, no figures worth reading
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from figures import Measure
from machine import describe
from report import quietness, tables
from rounds import Bench, Cell, Plan
from systems import ROOT, Target, etcd, flotta, redis

RESULTS = ROOT / "bench" / "results"


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="put,get", help="operations: put,get")
    parser.add_argument("--systems", default="flotta,etcd,redis")
    parser.add_argument("--conc", default="1,50,200", help="clients at once")
    parser.add_argument("--conn", default="1,8", help="connections they share (c=1 always has one)")
    parser.add_argument("--tools", default="ghz,h2load", help="h2load runs from c=50 on, over 8 connections")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.5, help="length of a cell")
    parser.add_argument("--calls", type=int, default=0, help="calls of a cell, instead of its length")
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--coordinators", type=int, default=3)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--transport", default="", help="of all our services; unset: their default")
    parser.add_argument("--name", default="latest", help="of the file under bench/results")
    parser.add_argument("--smoke", action="store_true", help="tiny counts")
    given = parser.parse_args(words)
    if given.smoke:
        given.rounds, given.calls, given.conc, given.keys = 1, 200, "1,20", 200
    return given


def cells(given: argparse.Namespace, system: str) -> list[Cell]:
    """The rows of the tables for one system."""
    found = []
    for operation in given.only.split(","):
        for concurrency in map(int, given.conc.split(",")):
            size = {"value_bytes": given.value_bytes, "keys": given.keys}
            if system == "redis":
                found.append(Cell(operation, concurrency, concurrency, "redis-benchmark", **size))
                continue
            shared = [int(count) for count in given.conn.split(",")] if concurrency > 1 else [1]
            if "ghz" in given.tools:
                found += [Cell(operation, concurrency, connections, **size) for connections in shared]
            if "h2load" in given.tools and concurrency >= 16:
                found.append(Cell(operation, concurrency, 8, "h2load", **size))
    return found


def start(system: str, given: argparse.Namespace, folder: Path) -> AbstractContextManager[Target]:
    if system == "etcd":
        return etcd(folder)
    if system == "redis":
        return redis(folder)
    return flotta(
        folder,
        nodes=given.nodes,
        coordinators=given.coordinators,
        shards=given.shards,
        transport=given.transport,
    )


def run(given: argparse.Namespace) -> list[Measure]:
    targets: dict[str, tuple[Target, Sequence[Cell]]] = {}
    with tempfile.TemporaryDirectory(prefix="flotta-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        for system in given.systems.split(","):
            target = stack.enter_context(start(system, given, folder / system))
            target.pause()
            targets[system] = (target, cells(given, system))
        return Bench(folder, Plan(given.rounds, given.seconds, given.calls)).run(targets)


def save(name: str, given: argparse.Namespace, measures: list[Measure]) -> Path:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "arguments": vars(given),
        "measures": [asdict(measure) for measure in measures],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that everything started is stopped
    measures = run(given)
    print(tables(measures, "flotta", "etcd"))
    print(f"\n{quietness(measures)}")
    print(f"every figure: {save(given.name, given, measures).relative_to(ROOT)}")
    failed = sum(measure.errors for measure in measures)
    if failed:
        print(f"error: {failed} calls failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
