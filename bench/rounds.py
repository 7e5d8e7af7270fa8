"""Measures cells in alternating rounds: in every round each system runs every cell, alone on the machine.

What drifts on a machine (other guests, clocks, disks) drifts between rounds; a ratio is therefore taken within a round,
and the spread of the rounds tells how far to trust it. The order of the systems is reversed every other round.

A call counts as good when the load generator and the system's own count agree; after puts a sample of what was written
is read back.
"""

from __future__ import annotations

import random
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from figures import Load, Measure
from generators import GENERATORS, Work, shuffled_keys
from machine import children_cpu_s, machine_busy_s
from systems import Target

READ_BACK_KEYS = 100
BYTES_PER_CELL_MAX = 256 << 20
PROBE_CALLS_PER_CLIENT = 20


@dataclass(frozen=True)
class Cell:
    """One row of the tables."""

    operation: str
    concurrency: int
    connections: int
    tool: str = "ghz"
    value_bytes: int = 256
    keys: int = 10_000
    rate: int = 0  # calls begun per second, whatever the answers do; 0: a closed loop
    batch: int = 1  # keys of one call; rates and CPU are a key's then, latencies the call's

    @property
    def name(self) -> str:
        if self.rate:
            return f"{self.operation} {self.rate}/s"
        size = f" {self.value_bytes} B" if self.value_bytes != 256 else ""
        tool = f" {self.tool}" if self.tool != "ghz" else ""
        batch = f" x{self.batch}" if self.batch > 1 else ""
        return f"{self.operation}{batch}{size} c={self.concurrency} conn={self.connections}{tool}"


@dataclass(frozen=True)
class Plan:
    """How long each cell takes. `calls` fixes the count, 0 derives it from the rate seen before."""

    rounds: int
    seconds: float
    calls: int = 0


class Bench:
    """Runs plans over running, paused systems."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan
        self._rates: dict[tuple[str, Cell], float] = {}
        self.measures: list[Measure] = []

    def run(self, cells: dict[str, tuple[Target, Sequence[Cell]]]) -> list[Measure]:
        """`cells`: per label, a paused target and what it is to run. Targets are paused again afterwards."""
        order = list(cells)
        for number in range(self._plan.rounds):
            for label in order if number % 2 == 0 else reversed(order):
                target, wanted = cells[label]
                self._one_round(label, target, wanted, number)
        return self.measures

    def _one_round(self, label: str, target: Target, cells: Sequence[Cell], number: int) -> None:
        target.resume()
        try:
            self._fill(target, cells)
            for cell in cells:
                measure = self._measure(label, target, cell, number)
                self.measures.append(measure)
                progress(measure)
        finally:
            target.pause()

    def _fill(self, target: Target, cells: Sequence[Cell]) -> None:
        """Every key exists and everything is warm before anything is measured."""
        for value_bytes, keys, tool in {(cell.value_bytes, cell.keys, cell.tool) for cell in cells}:
            cell = Cell("put", 50, 8, "redis-benchmark" if tool == "redis-benchmark" else "ghz", value_bytes, keys)
            answered = target.answered("put")
            self._generate(target, cell, keys, secrets.token_bytes(value_bytes))
            missing = keys - (target.answered("put") - answered)
            if missing > 0:
                raise SystemExit(f"error: {target.name} did not take {missing} of the first {keys} puts")

    def _generate(self, target: Target, cell: Cell, calls: int, value: bytes) -> Load:
        names = shuffled_keys(cell.keys, seed=7)
        work = Work(cell.operation, names, value, calls, cell.concurrency, cell.connections, cell.rate, cell.batch)
        return GENERATORS[cell.tool](target, work, self._folder)

    def _calls(self, label: str, target: Target, cell: Cell, value: bytes) -> int:
        if self._plan.calls:
            return self._plan.calls
        if cell.rate:
            return int(cell.rate * self._plan.seconds)
        if (label, cell) not in self._rates:
            calls = max(2 * cell.concurrency, PROBE_CALLS_PER_CLIENT * max(cell.concurrency, 20) // cell.batch)
            probe = self._generate(target, cell, calls - calls % cell.connections, value)
            self._rates[label, cell] = probe.rate
        wanted = int(self._rates[label, cell] * self._plan.seconds)
        limit = BYTES_PER_CELL_MAX // (cell.value_bytes * cell.batch)
        calls = max(min(wanted, limit), 2 * cell.concurrency)
        return calls - calls % cell.connections

    def _measure(self, label: str, target: Target, cell: Cell, number: int) -> Measure:
        value = secrets.token_bytes(cell.value_bytes)
        calls = self._calls(label, target, cell, value)
        answered, cpu, own = target.answered(cell.operation), target.cpu_s(), children_cpu_s()
        (busy, stolen), began = machine_busy_s(), time.monotonic()
        load = self._generate(target, cell, calls, value)
        (busy_after, stolen_after), elapsed = machine_busy_s(), time.monotonic() - began
        used = {name: seconds - cpu[name] for name, seconds in target.cpu_s().items()}
        load_s = children_cpu_s() - own
        answered_ok = target.answered(cell.operation) - answered
        operations = calls * cell.batch
        errors = operations - min(load.succeeded * cell.batch, answered_ok)
        if errors > operations // 2 and not cell.rate:
            raise SystemExit(f"error: {errors} of {operations} calls failed: {label}, {cell.name}")
        self._rates[label, cell] = load.rate
        if cell.operation == "put" and cell.tool != "redis-benchmark":
            self._read_back(target, cell, calls, value)
        return Measure(
            system=label,
            cell=cell.name,
            round=number,
            calls=operations,
            errors=errors,
            rate=load.rate * cell.batch,
            p50_ms=load.p50_ms,
            p99_ms=load.p99_ms,
            p999_ms=load.p999_ms,
            cpu_us={name: seconds * 1e6 / operations for name, seconds in used.items()},
            load_cpu_us=load_s * 1e6 / operations,
            foreign_cores=max(0.0, busy_after - busy - sum(used.values()) - load_s) / elapsed,
            stolen_cores=(stolen_after - stolen) / elapsed,
        )

    def _read_back(self, target: Target, cell: Cell, calls: int, value: bytes) -> None:
        """A sample of the keys that were put must hold this run's value."""
        count = min(cell.batch * (cell.connections if cell.tool == "h2load" else calls), cell.keys)
        written = shuffled_keys(cell.keys, seed=7)[:count]
        wanted = random.Random(calls).sample(written, min(READ_BACK_KEYS, len(written)))
        wrong = [key for key, found in zip(wanted, target.read(wanted), strict=True) if found != value]
        if wrong:
            raise SystemExit(f"error: {target.name} acknowledged puts that are not there: {wrong[:5]} of {len(wanted)}")


def progress(measure: Measure) -> None:
    print(
        f"  round {measure.round + 1} {measure.system:<8} {measure.cell:<28} {measure.rate:>8.0f}/s  "
        f"p50 {measure.p50_ms:.2f} ms  p99 {measure.p99_ms:.2f} ms  {measure.cpu_us_total:.0f} µs/op  "
        f"errors {measure.errors}",
        file=sys.stderr,
        flush=True,
    )
