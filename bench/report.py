"""Results as text: the tables on the screen, and the same in Markdown for docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from figures import Measure, ratios, spread

FOREIGN_CORES_MAX = 0.15


def by_cell(measures: Sequence[Measure]) -> dict[str, dict[str, list[Measure]]]:
    """cell -> system -> its measures, one a round, in the order in which they first came."""
    found: dict[str, dict[str, list[Measure]]] = {}
    for measure in measures:
        found.setdefault(measure.cell, {}).setdefault(measure.system, []).append(measure)
    return found


def tables(measures: Sequence[Measure], ours: str, theirs: str) -> str:
    """Every cell with every system, then ours ÷ theirs where both ran it."""
    lines = []
    for cell, systems in by_cell(measures).items():
        lines.append(f"\n{cell}")
        lines.append("  system       ops/s (min–max)          p50 ms   p99 ms  p99.9 ms  errors   CPU µs/op  (load's)")
        for system, rows in systems.items():
            rate = spread([row.rate for row in rows])
            lines.append(
                f"  {system:<10} {rate.text(0):>21}   {_median(rows, 'p50_ms'):>8.2f} {_median(rows, 'p99_ms'):>8.2f} "
                f"{_median(rows, 'p999_ms'):>9.2f} {sum(row.errors for row in rows):>7} "
                f"{_median(rows, 'cpu_us_total'):>11.1f}  ({_median(rows, 'load_cpu_us'):.1f})"
            )
        for system, rows in systems.items():
            each = {name: median(row.cpu_us.get(name, 0.0) for row in rows) for name in rows[0].cpu_us}
            if len(each) > 1:
                lines.append(f"    {system} by process: " + "  ".join(f"{name} {us:.1f}" for name, us in each.items()))
        if ours in systems and theirs in systems:
            lines.append("    " + ratio_line(systems[ours], systems[theirs], f"{ours} ÷ {theirs}"))
    return "\n".join(lines)


def ratio_line(ours: Sequence[Measure], theirs: Sequence[Measure], label: str) -> str:
    named = {"rate": "rate", "p50": "p50_ms", "p99": "p99_ms", "CPU": "cpu_us_total"}
    found = {name: ratios(ours, theirs, figure) for name, figure in named.items()}
    return f"{label}: " + "  ".join(f"{name} {ratio.text()}" for name, ratio in found.items() if ratio is not None)


def _median(rows: Sequence[Measure], figure: str) -> float:
    return float(median(getattr(row, figure) for row in rows))


def quietness(measures: Sequence[Measure]) -> str:
    """Whether the machine was the benchmark's own."""
    foreign = spread([measure.foreign_cores for measure in measures])
    stolen = spread([measure.stolen_cores for measure in measures])
    text = f"other processes used {foreign.text()} cores meanwhile, other guests took {stolen.text()}"
    if foreign.middle > FOREIGN_CORES_MAX:
        text += "\nNOT A QUIET MACHINE: rates mean little, CPU per operation and ratios within the run a little more"
    return text
