"""Measures as tables: every cell with every system, the ratios, and where the CPU went by process."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from figures import Measure, Spread, ratios, spread
from records import Table

FOREIGN_CORES_MAX = 0.15
RATIO_FIGURES = {"rate": "rate", "p50": "p50_ms", "p99": "p99_ms", "CPU": "cpu_us_total"}


def by_cell(measures: Sequence[Measure]) -> dict[str, dict[str, list[Measure]]]:
    """cell -> system -> its measures, one a round, in the order in which they first came."""
    found: dict[str, dict[str, list[Measure]]] = {}
    for measure in measures:
        found.setdefault(measure.cell, {}).setdefault(measure.system, []).append(measure)
    return found


def rate_table(title: str, measures: Sequence[Measure], note: str = "") -> Table:
    """Rates and latencies, a row for each cell and system."""
    header = [
        "cell",
        "system",
        "ops/s (min–max)",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "failed",
        "CPU µs/op",
        "load's µs/op",
    ]
    rows = [
        [
            cell,
            system,
            spread([row.rate for row in found]).text(0),
            f"{_median(found, 'p50_ms'):.2f}",
            f"{_median(found, 'p99_ms'):.2f}",
            f"{_median(found, 'p999_ms'):.2f}",
            str(sum(row.errors for row in found)),
            f"{_median(found, 'cpu_us_total'):.1f}",
            f"{_median(found, 'load_cpu_us'):.1f}",
        ]
        for cell, systems in by_cell(measures).items()
        for system, found in systems.items()
    ]
    return Table(title, header, rows, note)


def ratio_table(title: str, measures: Sequence[Measure], ours: str, theirs: str) -> Table:
    """Ours ÷ theirs for every cell that both ran: median over the rounds, least and most."""
    rows = []
    for cell, systems in by_cell(measures).items():
        if ours in systems and theirs in systems:
            found = [ratios(systems[ours], systems[theirs], figure) for figure in RATIO_FIGURES.values()]
            rows.append([cell, *(ratio.text() if ratio is not None else "–" for ratio in found)])
    return Table(title, ["cell", "rate ÷", "p50 ÷", "p99 ÷", "CPU per op ÷"], rows)


def ratio_facts(measures: Sequence[Measure], ours: str, theirs: str) -> dict[str, Spread]:
    """`put c=50 conn=8: rate flotta ÷ etcd` and so on."""
    facts = {}
    for cell, systems in by_cell(measures).items():
        for name, figure in RATIO_FIGURES.items():
            ratio = ratios(systems.get(ours, []), systems.get(theirs, []), figure)
            if ratio is not None:
                facts[f"{cell}: {name} {ours} ÷ {theirs}"] = ratio
    return facts


def process_table(title: str, measures: Sequence[Measure], systems: Sequence[str]) -> Table:
    """CPU microseconds per operation of each process."""
    rows = []
    for cell, found in by_cell(measures).items():
        for system in systems:
            of_system = found.get(system, [])
            names = of_system[0].cpu_us if of_system else {}
            each = [f"{name} {median(row.cpu_us.get(name, 0.0) for row in of_system):.1f}" for name in names]
            if each:
                rows.append([cell, system, " · ".join(each)])
    return Table(title, ["cell", "system", "CPU µs/op of each process"], rows)


def _median(rows: Sequence[Measure], figure: str) -> float:
    return float(median(getattr(row, figure) for row in rows))


def quietness(measures: Sequence[Measure]) -> str:
    """Whether the machine was the benchmark's own."""
    foreign = spread([measure.foreign_cores for measure in measures])
    stolen = spread([measure.stolen_cores for measure in measures])
    text = f"Other processes used {foreign.text()} cores meanwhile, other guests took {stolen.text()}."
    if foreign.middle > FOREIGN_CORES_MAX:
        text += " NOT A QUIET MACHINE: rates mean little; CPU per operation and ratios within the run, a little more."
    return text


def failures(measures: Sequence[Measure]) -> list[str]:
    """A sentence for every cell that had calls fail."""
    return [
        f"{row.errors} of {row.calls} calls failed: {row.system}, {row.cell}, round {row.round + 1}"
        for row in measures
        if row.errors
    ]
