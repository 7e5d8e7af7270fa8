"""Puts the newest results into docs/performance.md, between its two marks, and the charts beside it.

python bench/publish.py

Only whole parts are taken: a quick look leaves no record. What a part means is written around the marks by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from bars import bar_table
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


def section(results: dict[str, Result]) -> str:
    """All that stands between the marks."""
    whole = {part: results[part] for part in TITLES if part in results}
    if not whole:
        return "Nothing measured yet."
    machine = next(iter(whole.values())).machine
    told = f"{machine['cores']} cores ({machine['model']}, kernel {machine['kernel']})"
    parts = [
        f"Measured on {told}, load generator included.",
        bar_table(merged_facts([*whole.values()])).markdown(),
    ]
    for part, result in whole.items():
        parts.append(f"### {TITLES[part]}")
        if part in CHARTS:
            parts.append(f"![{TITLES[part]}]({CHARTS[part]})")
        parts += [table.markdown() for table in result.tables]
        parts.append(f"Measured on {result.when[:10]}.")
    return "\n\n".join(parts)


def replaced(page: str, text: str) -> str:
    """The page with what is between its marks exchanged."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> int:
    results = load_all()
    PAGE.write_text(replaced(PAGE.read_text(), section(results)))
    for path in [PAGE, *draw(results, PAGE.parent)]:
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
