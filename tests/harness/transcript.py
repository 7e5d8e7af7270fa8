"""Transcripts: text files of commands and the answers they must get, like a session one can read.

Blocks are set apart by blank lines; in a block, comments and commands stand above `----` and the answer below it.
REWRITE_TRANSCRIPTS=1 writes the answers anew; read the diff.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

DASHES = "----"


class Script(Protocol):
    """What runs the commands of one file, block by block."""

    def run(self, lines: Sequence[str]) -> Sequence[str]: ...


@dataclass(frozen=True)
class Block:
    """Comments and commands, and what they must be answered."""

    head: tuple[str, ...]
    expected: tuple[str, ...]

    @property
    def commands(self) -> list[str]:
        return [line for line in self.head if not line.startswith("#")]


def parse(text: str) -> list[Block]:
    blocks = []
    for part in filter(None, (chunk.strip("\n") for chunk in text.split("\n\n"))):
        lines = part.split("\n")
        if DASHES not in lines:
            raise ValueError(f"a block without {DASHES}: {lines[0]}")
        at = lines.index(DASHES)
        blocks.append(Block(tuple(lines[:at]), tuple(lines[at + 1 :])))
    return blocks


def check(path: Path, new_script: Callable[[], Script]) -> None:
    """Run one file; AssertionError at the first block that is answered otherwise."""
    blocks = parse(path.read_text())
    script = new_script()
    answers = [tuple(script.run(block.commands)) for block in blocks]
    if os.environ.get("REWRITE_TRANSCRIPTS"):
        pairs = zip(blocks, answers, strict=True)
        path.write_text("\n\n".join("\n".join((*block.head, DASHES, *said)) for block, said in pairs) + "\n")
        return
    for block, said in zip(blocks, answers, strict=True):
        if said != block.expected:
            raise AssertionError(f"{path.name}: {block.commands}\nsaid:     {said}\nexpected: {block.expected}")


def check_files(files: Sequence[Path], at_least: int) -> None:
    """There are transcripts, and every block of them expects something."""
    if len(files) < at_least:
        raise AssertionError(f"{len(files)} transcripts, expected {at_least} or more")
    for path in files:
        for block in parse(path.read_text()):
            if not block.expected:
                raise AssertionError(f"{path.name}: {block.head} expects nothing")
