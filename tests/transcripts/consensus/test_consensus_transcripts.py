"""Stories of replicated groups as readable text. REWRITE_TRANSCRIPTS=1 writes the answers anew; read the diff."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from consensus_script import Script, parse

FILES = sorted((Path(__file__).parent / "cases").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_story(path: Path) -> None:
    blocks = parse(path.read_text())
    script = Script()
    answers = [script.run(block.lines) for block in blocks]
    if os.environ.get("REWRITE_TRANSCRIPTS"):
        path.write_text("\n\n".join(block.render(said) for block, said in zip(blocks, answers, strict=True)) + "\n")
        return
    for block, said in zip(blocks, answers, strict=True):
        assert said == block.expected, f"{path.name}: {block.lines}"


def test_there_are_stories_and_each_block_expects_something() -> None:
    assert len(FILES) >= 8
    for path in FILES:
        assert all(block.expected for block in parse(path.read_text())), path.name
