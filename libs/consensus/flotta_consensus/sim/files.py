"""The files of a simulated node outside its log and engine: snapshots, built or received.

Invariant: what was not synced may be lost or cut short by a crash, as the seed decides; what was synced stays.
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass


@dataclass(slots=True)
class _File:
    content: bytes
    synced: bool


class SimFiles:
    """A flat folder."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._files: dict[str, _File] = {}
        self.full = False

    def write(self, name: str, content: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "injected: no space left on the simulated disk")
        self._files[name] = _File(content, synced=False)

    def sync(self, name: str) -> None:
        self._files[name].synced = True

    def read(self, name: str) -> bytes | None:
        found = self._files.get(name)
        return None if found is None else found.content

    def delete(self, name: str) -> None:
        self._files.pop(name, None)

    def names(self) -> list[str]:
        return sorted(self._files)

    def crash(self) -> int:
        """Lose power; returns how many files lost something."""
        damaged = 0
        for name in sorted(self._files):
            found = self._files[name]
            if found.synced:
                continue
            damaged += 1
            fate = self._rng.random()
            if fate < 0.4:
                del self._files[name]
            elif fate < 0.8:
                found.content = found.content[: self._rng.randrange(len(found.content) + 1)]
        return damaged
