"""What a cluster of hosts does, as readable text."""

from __future__ import annotations

from pathlib import Path

import pytest
import transcript
from native_script import Script

FILES = sorted((Path(__file__).parent / "cases").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_native_transcript(path: Path) -> None:
    transcript.check(path, Script)


def test_there_are_native_transcripts() -> None:
    transcript.check_files(FILES, at_least=4)
