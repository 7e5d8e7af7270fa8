"""Many keys in one request beside etcd's single puts: keys per second, and what a key costs.

Ours are batches of 100 keys over all shards, each with a status of its own; beside them stands etcd's Put with 200
clients, driven by the same tool in the same round.
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
BATCHES = [
    Cell("put", 1, 1, "h2load", batch=KEYS_PER_BATCH),
    *(Cell("put", 8, 8, tool, batch=KEYS_PER_BATCH) for tool in ("ghz", "h2load")),
    Cell("put", 16, 8, "h2load", batch=KEYS_PER_BATCH),
    Cell("get", 8, 8, "h2load", batch=KEYS_PER_BATCH),
]
JUDGED = Cell("put", 16, 8, "h2load", batch=KEYS_PER_BATCH)
FACT = "batch keys ÷ etcd put c=200"


def run(given: Namespace, folder: Path) -> Result:
    rounds, calls = (1, 40) if given.smoke else (given.rounds, given.calls)
    with flotta(folder / "batches", transport=given.transport) as ours, etcd(folder / "batches-etcd") as theirs:
        ours.pause()
        theirs.pause()
        cells: dict[str, tuple[Target, Sequence[Cell]]] = {
            "flotta": (ours, BATCHES),
            "etcd": (theirs, [*SINGLE.values()]),
        }
        measures = Bench(folder, Plan(rounds, given.seconds, calls)).run(cells)
    table = rate_table(f"Batches of {KEYS_PER_BATCH} keys: keys per second", measures, quietness(measures))
    found = {cell.name: _ratios(measures, cell) for cell in BATCHES if cell.operation == "put"}
    rows = [[name, *(ratio.text() for ratio in found[name])] for name in found]
    header = ["cell", "keys/s ÷ etcd's Put c=200", "CPU per key ÷ etcd's per Put"]
    tables = [
        table,
        Table("Flotta's batches ÷ etcd's single puts, by the same tool", header, rows),
        process_table("CPU by process", measures, ("flotta", "etcd")),
    ]
    return Result("batches", tables, {FACT: found[JUDGED.name][0]}, measures, failures(measures))


def _ratios(measures: list[Measure], cell: Cell) -> list[Spread]:
    cells = by_cell(measures)
    ours, theirs = cells[cell.name]["flotta"], cells[SINGLE[cell.tool].name]["etcd"]
    found = [ratios(ours, theirs, figure) for figure in ("rate", "cpu_us_total")]
    return [ratio for ratio in found if ratio is not None]
