"""What a cluster of hosts does, as readable text. REWRITE_TRANSCRIPTS=1 writes the answers anew; read the diff."""

import os
from pathlib import Path

import pytest
from native_script import Script, parse

FILES = sorted((Path(__file__).parent / "data").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_native_transcript(path: Path) -> None:
    blocks = parse(path.read_text())
    script = Script()
    answers = [script.run(block.lines) for block in blocks]
    if os.environ.get("REWRITE_TRANSCRIPTS"):
        path.write_text("\n\n".join(block.render(said) for block, said in zip(blocks, answers, strict=True)) + "\n")
        return
    for block, said in zip(blocks, answers, strict=True):
        assert said == block.expected, f"{path.name}: {block.lines}"


def test_there_are_native_transcripts_and_each_expects_something() -> None:
    assert len(FILES) >= 4
    for path in FILES:
        assert all(block.expected for block in parse(path.read_text())), path.name
