"""The next step of a shard leader towards the voters and the leader that the map asks for.

`next_step` is pure and is called again whenever something may have changed; it names at most one step, and the next
call sees that step's committed effect. The order is: remove learners that nobody wants any more, add new replicas as
learners, wait until they have caught up, hand leadership to a voter that stays if this one leaves, then one joint
change that promotes and removes.

Invariants: a replica becomes a voter only after it was a learner that caught up; no voter is removed unless a majority
of the voters that remain is close to the leader's log; while a joint change runs nothing else is started.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from flotta_consensus.api import Members, node_of

CATCH_UP_ENTRIES = 256

Change = tuple[Literal["voter", "learner", "remove"], int]


@dataclass(frozen=True, slots=True)
class LeaderView:
    """A group as its leader sees it. `matched`: replica -> log index known to be durable there."""

    group: int
    replica: int
    members: Members
    last_index: int
    matched: Mapping[int, int] = field(default_factory=dict)
    active: Mapping[int, bool] = field(default_factory=dict)
    snapshots: frozenset[int] = frozenset()  # replicas that a snapshot is on its way to

    def close(self, replica: int, entries: int) -> bool:
        """Is this replica heard from, and within so many entries of the leader's log?"""
        if replica == self.replica:
            return True
        if replica in self.snapshots or not self.active.get(replica, False):
            return False
        matched = self.matched.get(replica, 0)
        # A replica that has acknowledged nothing may be blank, however short the log: a blank one casts no vote.
        return matched > 0 and matched + entries >= self.last_index


@dataclass(frozen=True, slots=True)
class Intent:
    """What the map asks of the shard. `targets` empty: the voters it has. `leader` 0: whoever leads."""

    targets: frozenset[int] = frozenset()
    leader: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a shard is from what the map asks of it."""

    lags: Mapping[int, int]  # replica that is to become a voter -> entries of the log that it still lacks
    copying: bool = False  # a snapshot is on its way to one of them
    waits_for: str = ""  # why the next step cannot be taken yet


@dataclass(frozen=True, slots=True)
class ChangeMembers:
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class TransferLeader:
    to_replica: int


@dataclass(frozen=True, slots=True)
class Wait:
    """There is something to do, and it cannot be done yet."""

    reason: str


@dataclass(frozen=True, slots=True)
class Settled:
    """The shard is as the map asks."""


Step = ChangeMembers | TransferLeader | Wait | Settled


def next_step(view: LeaderView, intent: Intent, catch_up_entries: int = CATCH_UP_ENTRIES) -> Step:
    """The one thing the leader of a group should do now."""
    if view.members.outgoing:
        return Wait("a joint change has not left its old configuration yet")
    voters = frozenset(view.members.voters)
    learners = frozenset(view.members.learners)
    targets = intent.targets or voters
    stray = learners - targets
    if stray:  # left over from an intent that was replaced before it was done; its node may be wanted for another one
        return ChangeMembers(_sorted_changes("remove", stray))
    missing = targets - voters - learners
    if missing:
        return ChangeMembers(_sorted_changes("learner", missing))
    if targets == voters:
        return _lead(view, intent, voters, catch_up_entries)
    return _change_voters(view, voters, targets, catch_up_entries)


def second_replicas(members: Members, targets: Collection[int]) -> list[int]:
    """Targets whose node has another replica that votes. The map does not know of that one yet; once it does, it names
    it instead, and until then nothing must be done: no node has two replicas of a shard."""
    taken = {node_of(voter) for voter in (*members.voters, *members.outgoing) if voter not in targets}
    return sorted(one for one in targets if one not in members.voters and node_of(one) in taken)


def progress_of(view: LeaderView, intent: Intent, step: Step) -> Progress | None:
    """What there is to tell of a change while it is under way; None when the shard is as the map asks."""
    if isinstance(step, Settled):
        return None
    coming = intent.targets - frozenset(view.members.voters)
    lags = {replica: max(0, view.last_index - view.matched.get(replica, 0)) for replica in sorted(coming)}
    return Progress(lags, not view.snapshots.isdisjoint(coming), step.reason if isinstance(step, Wait) else "")


def _change_voters(view: LeaderView, voters: frozenset[int], targets: frozenset[int], catch_up_entries: int) -> Step:
    behind = sorted(replica for replica in targets - voters if not view.close(replica, catch_up_entries))
    if behind:
        return Wait(f"replicas {behind} are still catching up")
    near = [replica for replica in targets if view.close(replica, catch_up_entries)]
    if len(near) <= len(targets) // 2:
        return Wait("too few of the voters that stay are close to the leader's log")
    leaving = voters - targets
    if view.replica in leaving:
        heir = _heir(view, voters & targets, catch_up_entries)
        if heir:
            return TransferLeader(heir)
        if voters & targets:
            return Wait("no voter that stays is close enough to take over leadership")
        leaving -= {view.replica}  # every voter goes: the next round hands over to a new one, which removes this one
    changes = _sorted_changes("voter", targets - voters)
    return ChangeMembers(changes + _sorted_changes("remove", leaving))


def _lead(view: LeaderView, intent: Intent, voters: frozenset[int], catch_up_entries: int) -> Step:
    if not intent.leader or intent.leader == view.replica or intent.leader not in voters:
        return Settled()
    if view.close(intent.leader, catch_up_entries):
        return TransferLeader(intent.leader)
    return Wait(f"replica {intent.leader} should lead, but is not close to the leader's log")


def best_heir(view: LeaderView, catch_up_entries: int = CATCH_UP_ENTRIES) -> int:
    """The voter to hand leadership to before this process stops; 0 if none is close enough."""
    return _heir(view, frozenset(view.members.voters) - {view.replica}, catch_up_entries)


def _heir(view: LeaderView, candidates: frozenset[int], catch_up_entries: int) -> int:
    near = [replica for replica in candidates if view.close(replica, catch_up_entries)]
    return max(near, key=lambda replica: (view.matched.get(replica, 0), -replica), default=0)


def _sorted_changes(kind: Literal["voter", "learner", "remove"], replicas: frozenset[int]) -> tuple[Change, ...]:
    return tuple((kind, replica) for replica in sorted(replicas))
