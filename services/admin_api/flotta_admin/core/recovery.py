"""Which replica a shard without a quorum goes on from, judged by what those that still answer say. Pure.

Refused wherever somebody could still have, or get, a quorum: the coordinators only know who is DEAD for them. The
longest log wins as in an election, by the term of its last entry and then by its length, so nothing is given up that
another survivor has.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Survivor:
    """A replica that answered."""

    node_id: str
    replica_id: int
    term: int
    last_term: int
    last_index: int
    applied_index: int
    epoch: int
    leader_replica: int = 0
    voters: tuple[int, ...] = ()
    outgoing: tuple[int, ...] = ()
    behind: bool = False  # it owns other keys than the map says: a division has not come to it
    given_up: bool = False  # by an earlier recovery: it does not serve, and no quorum of such ones counts

    @property
    def rank(self) -> tuple[int, int, int]:
        return self.last_term, self.last_index, self.applied_index


@dataclass(frozen=True, slots=True)
class Choice:
    """`best` goes on; nobody who answered knows a greater term or epoch than these."""

    best: Survivor
    seen_term: int
    seen_epoch: int


def choose(shard_id: str, survivors: Sequence[Survivor], dead: Collection[str]) -> Choice | str:
    """Who goes on; or a sentence why nobody should. `dead`: nodes that the coordinators take for DEAD."""
    undead = sorted(one.node_id for one in survivors if one.node_id in dead)
    if undead:
        return f"{', '.join(undead)} answers, though the coordinators hear nothing of it: mend its way to them instead"
    led = next((one for one in survivors if one.leader_replica and not one.given_up), None)
    if led is not None:
        return f"{shard_id} has a leader: its replica on {led.node_id} is in touch with it"
    told = [one for one in survivors if one.epoch and one.last_index and not one.behind]
    if not told:
        return f"no node that is left has anything of {shard_id} as it is now: start one that does, or restore a backup"
    answering = {one.replica_id for one in told}
    for one in (one for one in told if not one.given_up):
        if _has_quorum(one.voters, answering) and _has_quorum(one.outgoing or one.voters, answering):
            return f"the replicas of {shard_id} that answer are a quorum: they will elect a leader by themselves"
    best = min(told, key=lambda one: ([-figure for figure in one.rank], one.node_id))
    return Choice(best, max(one.term for one in survivors), max(one.epoch for one in told))


def _has_quorum(voters: Collection[int], answering: Collection[int]) -> bool:
    return sum(voter in answering for voter in voters) > len(voters) // 2
