"""The examples of the SDK's page and of its package run against a real cluster, and print what they say."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import flotta
import pytest
from dev_process import dev

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "sdk.md"
BLOCK = re.compile(r"^```pycon\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_examples_print_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with dev(tmp_path / "data", "--shards", "4") as run:
        run.announced()
        where = run.endpoints()
        pages = {"sdk.md": "\n".join(BLOCK.findall(PAGE.read_text())), "flotta": flotta.__doc__ or ""}
        for name, text in pages.items():
            text = text.replace("localhost:7000", where["gateway"]).replace("localhost:9001", where["coordinators"])
            test = doctest.DocTestParser().get_doctest(text, {}, name, str(PAGE), 0)
            assert test.examples, f"{name} shows nothing"
            results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
            assert results.failed == 0, f"{results.failed} of {results.attempted} examples of {name} failed"
