"""Stories of replicated groups as readable text."""

from __future__ import annotations

from pathlib import Path

import pytest
import transcript
from consensus_script import Script

FILES = sorted((Path(__file__).parent / "cases").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_consensus_transcript(path: Path) -> None:
    transcript.check(path, Script)


def test_there_are_consensus_transcripts() -> None:
    transcript.check_files(FILES, at_least=8)
