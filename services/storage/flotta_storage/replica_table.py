"""The replicas that run in this process, as the request path finds them.

Invariant: a replica is in the table from the moment its group can take requests until its removal begins, or until the
shard goes on without it: it is then kept aside, where no request finds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flotta_embedded.machine import Machine

from flotta_storage.core.absorptions import Absorption, decode_absorption
from flotta_storage.core.divisions import Division, decode_division
from flotta_storage.core.keys import ABSORPTION_KEY, DIVISION_KEY, FOLLOWED_KEY, SHARD_KEY
from flotta_storage.core.shard_state import ShardState, Stage, decode_state


@dataclass(slots=True, eq=False)
class Replica:
    """One running replica."""

    shard_id: str
    group: int
    replica: int
    machine: Machine

    def state(self) -> ShardState | None:
        """The shard's record as applied here; None while the replica is still empty."""
        raw = self.machine.kept_row(SHARD_KEY)
        return None if raw is None else decode_state(raw)

    def division(self) -> Division | None:
        """What remains to be done since the shard divided, as applied here; None most of the time."""
        raw = self.machine.kept_row(DIVISION_KEY)
        return None if raw is None else decode_division(raw)

    def absorption(self) -> Absorption | None:
        """What it has of shards that it takes over; None most of the time."""
        raw = self.machine.kept_row(ABSORPTION_KEY)
        return None if raw is None else decode_absorption(raw)

    def is_noted(self) -> bool:
        """Are its changes noted, or have been, and the notes are still there?"""
        return self.machine.kept_row(FOLLOWED_KEY) is not None

    def has_strangers(self) -> bool:
        """May there be rows that it does not own: of shards that were born of it, or that it takes over?"""
        state = self.state()
        return self.division() is not None or (state is not None and state.stage is Stage.ABSORBS)

    def applied_revision(self) -> int:
        return self.machine.revision(self.machine.applied_index())


class ReplicaTable:
    def __init__(self) -> None:
        self._by_shard: dict[str, Replica] = {}
        self._by_group: dict[int, Replica] = {}
        self._retired: dict[int, Replica] = {}  # by group

    def add(self, replica: Replica) -> None:
        self._retired.pop(replica.group, None)
        self._by_shard[replica.shard_id] = replica
        self._by_group[replica.group] = replica

    def remove(self, group: int) -> None:
        self._retired.pop(group, None)
        removed = self._by_group.pop(group, None)
        if removed is not None and self._by_shard.get(removed.shard_id) is removed:
            del self._by_shard[removed.shard_id]

    def retire(self, replica: Replica) -> None:
        """Nobody finds it any more; what it holds stays until it is removed."""
        self.remove(replica.group)
        self._retired[replica.group] = replica

    def kept(self, group: int) -> Replica | None:
        """Whether it serves or not."""
        return self._by_group.get(group) or self._retired.get(group)

    def kept_of_shard(self, shard_id: str) -> Replica | None:
        retired = (one for one in self._retired.values() if one.shard_id == shard_id)
        return self._by_shard.get(shard_id) or next(retired, None)

    def clear(self) -> None:
        self._retired.clear()
        self._by_shard.clear()
        self._by_group.clear()

    def of_shard(self, shard_id: str) -> Replica | None:
        return self._by_shard.get(shard_id)

    def of_group(self, group: int) -> Replica | None:
        return self._by_group.get(group)

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._by_group.values()))

    def __len__(self) -> int:
        return len(self._by_group)
