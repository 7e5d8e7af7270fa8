"""Latency over load: calls begin at a fixed rate whatever the answers do, from a tenth of capacity to beyond it.

Closed loops hide what overload does, since a slow server slows its clients; here the rate stays. Capacity is the
closed-loop rate with 200 clients of the same run. Calls that fail beyond capacity are a result, not an error.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from figures import Measure
from records import Result, Table
from report import quietness
from rounds import Bench, Cell, Plan
from systems import Target, etcd, flotta

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25)
CLOSED = {operation: Cell(operation, 200, 8) for operation in ("put", "get")}


def run(given: Namespace, folder: Path) -> Result:
    with flotta(folder / "saturation", transport=given.transport) as ours, etcd(folder / "etcd") as theirs:
        targets: dict[str, Target] = {"flotta": ours, "etcd": theirs}
        for target in targets.values():
            target.pause()
        plan = Plan(1, 1.0 if given.smoke else given.seconds * 2, given.calls)
        closed = Bench(folder, plan).run({name: (target, [*CLOSED.values()]) for name, target in targets.items()})
        capacity = {(measure.system, measure.cell): measure.rate for measure in closed}
        shares = SHARES[:2] if given.smoke else SHARES
        wanted = {
            name: [
                _step(operation, capacity[name, cell.name] * share)
                for operation, cell in CLOSED.items()
                for share in shares
            ]
            for name in targets
        }
        opened = Bench(folder, plan).run({name: (target, wanted[name]) for name, target in targets.items()})
    header = ["system", "offered", "ops/s", "p50 ms", "p99 ms", "p99.9 ms", "failed %", "CPU µs/op"]
    rows = [_row(measure) for measure in opened]
    note = f"Shares of the closed-loop rate with 200 clients: {', '.join(map(str, shares))}. {quietness(opened)}"
    return Result("saturation", [Table("Open loop: latency over load", header, rows, note)], {}, [*closed, *opened])


def _step(operation: str, rate: float) -> Cell:
    return Cell(operation, 200, 8, rate=max(10, int(round(rate, -1))))


def _row(measure: Measure) -> list[str]:
    return [
        measure.system,
        measure.cell,
        f"{measure.rate:.0f}",
        f"{measure.p50_ms:.2f}",
        f"{measure.p99_ms:.2f}",
        f"{measure.p999_ms:.2f}",
        f"{measure.errors / measure.calls * 100:.2f}",
        f"{measure.cpu_us_total:.1f}",
    ]
