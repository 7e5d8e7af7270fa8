"""The metrics that the pages name are metrics that the services have."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_every_metric_that_a_page_names_is_in_the_sources() -> None:
    sources = [path for folder in ("libs", "services") for path in (ROOT / folder).rglob("*.py")]
    made = {name for path in sources for name in re.findall(r'"(flotta_[a-z_]+)"', path.read_text())}
    named = {
        (page.name, name)
        for page in (ROOT / "docs").rglob("*.md")
        for name in re.findall(
            r"`(flotta_(?:gateway|storage|coordinator|log|rpc|admin|trace)_[a-z_]+)", page.read_text()
        )
    }
    assert len(named) >= 10
    modules = {path.stem for path in sources} | {path.parent.name for path in sources}
    unknown = {(page, name) for page, name in named if name not in made and name not in modules}
    assert not unknown
