"""Flotta beside etcd and Redis: same machine, same run. Each part can be run alone.

    python bench/benchmark.py                                  what `make bench` runs: the parts core and idle
    python bench/benchmark.py --full                           what `make bench-full` runs: all parts
    python bench/benchmark.py --only put --conc 50 --rounds 3  one lever, quickly
    python bench/benchmark.py --parts failover --kills 5
    python bench/benchmark.py --smoke --full                   every part with tiny counts, no figures worth reading

Results lie under bench/results, the newest of each part; a quick look (anything but a part's own settings) is kept
apart from them as `quick.json`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import batches
import core
import failover
import idle
import links
import saturation
import startup
import sweeps
from bars import bar_table
from pictures import draw
from records import QUICK, RESULTS, Result, load_all, merged_facts, save

PARTS: dict[str, Callable[[argparse.Namespace, Path], Result]] = {
    "core": core.run,
    "batches": batches.run,
    "idle": idle.run,
    "shards": sweeps.shards,
    "values": sweeps.values,
    "nodes": sweeps.nodes,
    "transports": sweeps.transports,
    "saturation": saturation.run,
    "startup": startup.run,
    "failover": failover.run,
    "links": links.run,
}
BENCH = ("core", "idle")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--parts", default=",".join(BENCH), help=f"of {', '.join(PARTS)}")
    found.add_argument("--full", action="store_true", help="all parts")
    found.add_argument("--smoke", action="store_true", help="tiny counts")
    found.add_argument("--results", type=Path, default=RESULTS, help="directory of the JSON files")
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--seconds", type=float, default=2.5, help="length of a cell")
    found.add_argument("--calls", type=int, default=0, help="calls of a cell, instead of its length")
    found.add_argument("--transport", default="", help="of all our services; unset: their default")
    found.add_argument("--kills", type=int, default=30, help="of the part failover")
    found.add_argument("--startup-keys", type=int, default=1_000_000, help="of the part startup")
    found.add_argument("--coordinators", type=int, default=3)
    narrow = found.add_argument_group("core only")
    narrow.add_argument("--only", default="put,get", help="operations: put,get")
    narrow.add_argument("--systems", default="flotta,etcd,redis")
    narrow.add_argument("--conc", default="1,50,200", help="clients at once")
    narrow.add_argument("--conn", default="1,8", help="connections they share (c=1 always has one)")
    narrow.add_argument("--tools", default="ghz,h2load", help="h2load runs from c=16 on, over 8 connections")
    narrow.add_argument("--value-bytes", type=int, default=256)
    narrow.add_argument("--keys", type=int, default=10_000)
    narrow.add_argument("--nodes", type=int, default=3)
    narrow.add_argument("--shards", type=int, default=8)
    return found


CORE_ONLY = ("only", "systems", "conc", "conn", "tools", "value_bytes", "keys", "nodes", "shards")


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, and `quick`: whether they are others than the parts' own."""
    parsing = parser()
    given = parsing.parse_args(words)
    changed = {name for name, value in vars(given).items() if value != parsing.get_default(name)}
    given.quick = bool(changed - {"parts", "full", "results"})
    if given.full:
        given.parts = ",".join(PARTS)
    elif changed & set(CORE_ONLY):
        given.parts = "core"
    if given.smoke:
        given.rounds, given.calls, given.conc, given.conn, given.keys = 1, 200, "20", "8", 200
    if unknown := set(given.parts.split(",")) - set(PARTS):
        parsing.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return given


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that everything started is stopped
    errors: list[str] = []
    for part in given.parts.split(","):
        print(f"part {part}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="flotta-bench-") as folder:
            result = PARTS[part](given, Path(folder))
        if given.quick:
            result = replace(result, part=QUICK)
        save(result, given.results)
        errors += result.errors
        print(f"\n{result.text()}")
    if not given.quick:
        results = load_all(given.results)
        print(f"\n{bar_table(merged_facts([*results.values()])).text()}\n")
        for path in draw(results, given.results):
            print(f"chart: {path}")
    print(f"\nevery figure: {given.results}")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
