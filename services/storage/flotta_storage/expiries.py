"""When shards have something to sweep: looked up in the rows only after the shard has applied something since.

An idle node would spend more on these lookups than on everything else. Invariant: an answer is of the machine's applied
index, so rows that came or went since are never missed.
"""

from __future__ import annotations

from flotta_storage.core.reads import next_expiry_ms
from flotta_storage.replica_table import Replica


class Expiries:
    """One for a node; `forget` a shard that is no longer asked about."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int, int | None]] = {}  # group -> (replica, applied index, time)

    def is_due(self, replica: Replica, stamp_ms: int) -> bool:
        """Never without a stamp (0), nor before a division is done with: sweeping is only for space, and can wait."""
        if replica.division() is not None:
            return False
        index = replica.machine.applied_index()
        known = self._known.get(replica.group)
        if known is None or known[:2] != (replica.replica, index):
            known = (replica.replica, index, next_expiry_ms(replica.machine.view()))
            self._known[replica.group] = known
        due_ms = known[2]
        return due_ms is not None and due_ms <= stamp_ms

    def forget(self, group: int) -> None:
        """Idempotent."""
        self._known.pop(group, None)
