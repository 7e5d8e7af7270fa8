"""Many keys in one request: keys per second, and what a key costs.

Ours are batches of 100 keys over all shards, each key with a status of its own. Beside them stand etcd's Put with 200
clients, driven by the same tool in the same round, and etcd's transactions of 100 puts. Those promise more (all or
nothing) and spread less: they are one entry in the log of etcd's one group, and 128 operations are their limit.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from figures import Measure, Spread, ratios
from records import Result, Table
from report import by_cell, failures, process_table, quietness, rate_table
from rounds import Bench, Cell, Plan
from systems import Target, etcd, flotta

KEYS_PER_BATCH = 100
SINGLE = {tool: Cell("put", 200, 8, tool) for tool in ("ghz", "h2load")}
PUTS = [
    Cell("put", 1, 1, "h2load", batch=KEYS_PER_BATCH),
    Cell("put", 16, 8, "h2load", batch=KEYS_PER_BATCH),
    Cell("put", 64, 8, "h2load", batch=KEYS_PER_BATCH),
    Cell("put", 64, 8, "ghz", batch=KEYS_PER_BATCH),
]
GETS = [Cell("get", 64, 8, "h2load", batch=KEYS_PER_BATCH)]
JUDGED = PUTS[2]
FACT = "batch keys ÷ etcd put c=200"


def run(given: Namespace, folder: Path) -> Result:
    rounds, calls = (1, 64) if given.smoke else (given.rounds, given.calls)
    with flotta(folder / "batches", transport=given.transport) as ours, etcd(folder / "batches-etcd") as theirs:
        ours.pause()
        theirs.pause()
        cells: dict[str, tuple[Target, Sequence[Cell]]] = {
            "flotta": (ours, [*PUTS, *GETS]),
            "etcd": (theirs, [*SINGLE.values(), JUDGED]),
        }
        measures = Bench(folder, Plan(rounds, given.seconds, calls)).run(cells)
    found = {cell.name: _ratios(measures, cell) for cell in PUTS}
    header = ["cell", "keys/s ÷ etcd's Put c=200", "CPU per key ÷ etcd's per Put"]
    tables = [
        rate_table(f"Batches of {KEYS_PER_BATCH} keys (etcd's: transactions)", measures, quietness(measures)),
        Table(
            "Flotta's batches ÷ etcd's single puts, by the same tool",
            header,
            [[name, *(ratio.text() if ratio is not None else "–" for ratio in each)] for name, each in found.items()],
        ),
        process_table("CPU by process", measures, ("flotta", "etcd")),
    ]
    rate = found[JUDGED.name][0]
    return Result("batches", tables, {FACT: rate} if rate is not None else {}, measures, failures(measures))


def _ratios(measures: list[Measure], cell: Cell) -> list[Spread | None]:
    cells = by_cell(measures)
    ours, theirs = cells[cell.name]["flotta"], cells[SINGLE[cell.tool].name]["etcd"]
    return [ratios(ours, theirs, figure) for figure in ("rate", "cpu_us_total")]
