"""The charts of what was measured: ours beside etcd, and latency over load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chart import Bars, Lines, chart
from figures import Measure, Spread, spread
from records import Result

SYSTEMS = {"flotta": "Flotta (3 nodes, 3 coordinators, 1 gateway)", "etcd": "etcd (3 members)"}
CELLS = {
    f"{operation} c={clients} conn={connections}": f"{label} c={clients}"
    for operation, label in (("put", "Put"), ("get", "Get"))
    for clients, connections in ((1, 1), (50, 8), (200, 8))
}
LATENCY_FLOOR_MS = 0.01


def draw(results: dict[str, Result], folder: Path) -> list[Path]:
    """Write the charts that the results allow."""
    found = []
    if "core" in results:
        found.append(_write(folder / "performance.svg", core_chart(results["core"])))
    if "saturation" in results:
        found.append(_write(folder / "saturation.svg", saturation_chart(results["saturation"])))
    return found


def core_chart(result: Result) -> str:
    panels = [
        _bars("operations per second", result.measures, "rate"),
        _bars("CPU µs per operation, all server processes", result.measures, "cpu_us_total"),
        _bars("p99, ms", result.measures, "p99_ms"),
    ]
    title = "Put and STRONG Get of 256-byte values, 10,000 random keys, ghz on the same machine"
    cores = result.machine["cores"]
    return chart(title, f"median of the rounds, whiskers: least and most; {cores} cores; {result.when[:10]}", panels)


def _bars(title: str, measures: Sequence[Measure], figure: str) -> Bars:
    def bar(system: str, cell: str) -> Spread | None:
        values = [getattr(each, figure) for each in measures if (each.system, each.cell) == (system, cell)]
        return spread(values) if values else None

    return Bars(title, list(CELLS.values()), {label: [bar(name, c) for c in CELLS] for name, label in SYSTEMS.items()})


def saturation_chart(result: Result) -> str:
    panels = []
    for operation, label in (("put", "Put"), ("get", "STRONG Get")):
        series = {}
        for name, told in SYSTEMS.items():
            rows = [each for each in result.measures if each.system == name and each.cell.startswith(f"{operation} ")]
            opened = [each for each in rows if each.cell.endswith("/s") and each.p99_ms > 0]
            series[told] = [(each.rate, max(each.p99_ms, LATENCY_FLOOR_MS)) for each in opened]
        panels.append(Lines(f"{label}: p99 in ms over answered calls per second", "ops/s", series))
    note = f"calls begin at a fixed rate, 10 % to 125 % of the closed-loop rate with 200 clients; {result.when[:10]}"
    return chart("Latency over load", note, panels)


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
