"""What changed in the map since a version: a bounded history of changed ids.

A watcher that is too far behind, or ahead of anything this history has seen, needs the full state (None).
Invariant: the history covers (floor, version] without a gap; recording a version that does not follow the last one
(a snapshot was installed, the process just started) forgets everything before it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

CHANGES_MAX = 1024
IDS_MAX = 65_536  # over all changes kept; bounds the memory that large ones take


@dataclass(frozen=True, slots=True)
class Change:
    """What one version changed; ids sorted."""

    version: int
    nodes: tuple[str, ...]
    shards: tuple[str, ...]
    partitioning: bool

    @property
    def weight(self) -> int:
        return 1 + len(self.nodes) + len(self.shards)


@dataclass(frozen=True, slots=True)
class Delta:
    """Everything that changed in (previous, version]; ids sorted."""

    previous: int
    version: int
    nodes: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    partitioning: bool = False


class History:
    def __init__(self, version: int, *, changes_max: int = CHANGES_MAX, ids_max: int = IDS_MAX) -> None:
        self._floor = version
        self._version = version
        self._changes: deque[Change] = deque()
        self._weight = 0
        self._changes_max = changes_max
        self._ids_max = ids_max

    @property
    def version(self) -> int:
        return self._version

    def record(self, change: Change) -> None:
        if change.version != self._version + 1:
            self.reset(change.version - 1)
        self._changes.append(change)
        self._version = change.version
        self._weight += change.weight
        while self._changes and (len(self._changes) > self._changes_max or self._weight > self._ids_max):
            dropped = self._changes.popleft()
            self._weight -= dropped.weight
            self._floor = dropped.version

    def reset(self, version: int) -> None:
        """Start anew at a version that was reached some other way."""
        self._changes.clear()
        self._weight = 0
        self._floor = self._version = version

    def since(self, version: int) -> Delta | None:
        """What a watcher at `version` has to learn; None: send it everything."""
        if not self._floor <= version <= self._version:
            return None
        nodes: set[str] = set()
        shards: set[str] = set()
        partitioning = False
        for change in reversed(self._changes):
            if change.version <= version:
                break
            nodes.update(change.nodes)
            shards.update(change.shards)
            partitioning = partitioning or change.partitioning
        return Delta(version, self._version, tuple(sorted(nodes)), tuple(sorted(shards)), partitioning)
