"""What a part of the benchmark leaves behind: tables for people, facts for the bars, raw measures for later.

Each part writes one JSON file under bench/results; the newest run of each part is what the bars, the chart and
docs/performance.md are made of, so parts can be run on their own and at different times. A fact is a median with its
ends, `(middle, low, high)`; one that was seen once has them all alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from figures import Measure, Spread
from machine import describe
from systems import ROOT

RESULTS = ROOT / "bench" / "results"
QUICK = "quick"  # a part that was run with other settings than its own: kept to look at, never among the records


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column is the row's name."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""

    def text(self) -> str:
        """For the screen: columns aligned, numbers to the right."""
        lines = [self.header, *self.rows]
        columns = [[line[number] for line in lines] for number in range(len(self.header))]
        told = zip(*[_aligned(column) for column in columns], strict=True)
        return "\n".join(
            [
                self.title,
                *(("  " + "  ".join(line)).rstrip() for line in told),
                *([f"  {self.note}"] if self.note else []),
            ]
        )

    def markdown(self) -> str:
        """For docs."""
        lines = [f"| {' | '.join(self.header)} |", f"|{'---|' * len(self.header)}"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([f"**{self.title}**", "", *lines, *(["", self.note] if self.note else [])])


@dataclass(frozen=True)
class Result:
    """One part, run once."""

    part: str
    tables: list[Table]
    facts: dict[str, Spread]
    measures: list[Measure] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    when: str = ""
    machine: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        return "\n\n".join(table.text() for table in self.tables)


def _aligned(column: Sequence[str]) -> list[str]:
    width, numbers = max(map(len, column)), all(cell[:1].isdigit() for cell in column[1:])
    return [cell.rjust(width) if numbers else cell.ljust(width) for cell in column]


def save(result: Result, folder: Path = RESULTS) -> Result:
    """Write it, stamped with when and where it was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    content = {**asdict(result), "when": when, "machine": describe()}
    (folder / f"{result.part}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return load(folder / f"{result.part}.json")


def load(path: Path) -> Result:
    content = json.loads(path.read_text())
    return Result(
        part=content["part"],
        tables=[Table(**table) for table in content["tables"]],
        facts={name: Spread(**fact) for name, fact in content["facts"].items()},
        measures=[Measure(**measure) for measure in content["measures"]],
        errors=content["errors"],
        when=content["when"],
        machine=content["machine"],
    )


def load_all(folder: Path = RESULTS) -> dict[str, Result]:
    """The newest run of each part that was ever run here as it is meant to be."""
    return {path.stem: load(path) for path in sorted(folder.glob("*.json")) if path.stem != QUICK}


def once(value: float) -> Spread:
    return Spread(value, value, value)


def merged_facts(results: Sequence[Result]) -> dict[str, tuple[Spread, str]]:
    """fact -> (what it says, when it was measured); of two parts with one fact the newer one."""
    found: dict[str, tuple[Spread, str]] = {}
    for result in sorted(results, key=lambda each: each.when):
        found.update({name: (fact, result.when) for name, fact in result.facts.items()})
    return found
