"""Puts the newest results into docs/performance.md, between its two marks, and the charts beside it.

python bench/publish.py

Only whole parts are taken: a quick look leaves no record. A part that has no record here keeps the section and the bars
that the page has of it, with their date: records belong to the machine they were made on, and the page outlives it.
What a part means is written around the marks by hand.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from bars import NOT_MEASURED, bar_table
from pictures import draw
from records import Result, load_all, merged_facts
from systems import ROOT

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
TITLES = {
    "core": "Beside etcd and Redis",
    "idle": "Idle",
    "transports": "Native and grpcio transport",
    "batches": "Batches",
    "failover": "Fail-over",
    "saturation": "Latency over load",
    "shards": "Shards",
    "values": "Value sizes",
    "nodes": "Storage nodes",
    "startup": "Start-up",
    "links": "Links beside gRPC streams",
    "soak": "Soak",
}
CHARTS = {"core": "performance.svg", "saturation": "saturation.svg"}


def section(results: dict[str, Result], published: str = "") -> str:
    """All that stands between the marks; `published` is what stands there now."""
    whole = {part: results[part] for part in TITLES if part in results}
    if not whole:
        return published.strip() or "Nothing measured yet."
    machine = next(iter(whole.values())).machine
    told = f"{machine['cores']} cores ({machine['model']}, kernel {machine['kernel']})"
    bars, sections = _kept(published)
    table = bar_table(merged_facts([*whole.values()])).markdown().splitlines()
    rows = [bars.get(_name(row), row) if NOT_MEASURED in row else row for row in table]
    parts = [f"Measured on {told}, load generator included.", "\n".join(rows)]
    for part, title in TITLES.items():
        if part in whole:
            parts.append(_of_part(part, whole[part]))
        elif title in sections:
            parts.append(sections[title])
    return "\n\n".join(parts)


def _of_part(part: str, result: Result) -> str:
    chart = [f"![{TITLES[part]}]({CHARTS[part]})"] if part in CHARTS else []
    tables = [table.markdown() for table in result.tables]
    return "\n\n".join([f"### {TITLES[part]}", *chart, *tables, f"Measured on {result.when[:10]}."])


def _name(row: str) -> str:
    return row.split("|")[1].strip() if row.startswith("|") else ""


def _kept(published: str) -> tuple[dict[str, str], dict[str, str]]:
    """What the page has: the rows of the bars by what they are about, the sections by title."""
    head, *sections = re.split(r"(?m)^(?=### )", published)
    bars = {_name(row): row for row in head.splitlines() if row.startswith("|")}
    return bars, {each.partition("\n")[0].removeprefix("### "): each.strip() for each in sections}


def replaced(page: str, results: dict[str, Result]) -> str:
    """The page with what is between its marks made anew."""
    before, begin, rest = page.partition(BEGIN)
    published, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{section(results, published)}\n\n{END}{after}"


def main() -> int:
    results = load_all()
    PAGE.write_text(replaced(PAGE.read_text(), results))
    for path in [PAGE, *draw(results, PAGE.parent)]:
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
