"""Watching every replica of a simulation: a state machine that reports what it is told to apply, and one observer.

The observer knows the whole cluster, which no process does, so it sees at once what no process could: a second
leader, another entry at an index, another state after it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from flotta_consensus.api import Entry, Members, SnapshotSink, SnapshotSource, StateMachine
from flotta_consensus.sim.checkers import CommittedLog, ElectionSafety, LogMatching, Promises, StateEquality
from flotta_consensus.sim.clock import Scheduler


def members_bytes(members: Members) -> bytes:
    """A configuration as the payload of its log entry."""
    return json.dumps([sorted(members.voters), sorted(members.learners), sorted(members.outgoing)]).encode()


def members_of_bytes(data: bytes) -> Members:
    voters, learners, outgoing = json.loads(data)
    return Members(tuple(voters), tuple(learners), tuple(outgoing))


class Observer:
    """Every invariant of every group, checked as things happen."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.elections = ElectionSafety()
        self.logs = LogMatching()
        self.states = StateEquality()
        self.promises = Promises()
        self.committed: dict[int, CommittedLog] = {}
        self.on_applied: Callable[[int, int, Sequence[Entry]], None] | None = None

    def log(self, group: int) -> CommittedLog:
        return self.committed.setdefault(group, CommittedLog(group))

    def applying(self, node: int, group: int, state_index: int, entries: Sequence[Entry]) -> None:
        flat = [
            (entry.index, entry.term, int(entry.kind), members_bytes(entry.members) if entry.members else entry.payload)
            for entry in entries
        ]
        self.log(group).saw_applied(node, self._scheduler.now_us, state_index, flat)

    def applied(self, node: int, group: int, state_index: int, entries: Sequence[Entry], digest: bytes | None) -> None:
        if digest is not None:
            self.states.saw_state(node, group, state_index, digest)
        if self.on_applied is not None:
            self.on_applied(node, group, entries)


class ObservedMachine:
    """A `StateMachine` that is another one, seen by the observer. `digest` names the whole state in a few bytes."""

    def __init__(
        self, node: int, group: int, inner: StateMachine, observer: Observer, digest: Callable[[], bytes]
    ) -> None:
        self.node = node
        self.group = group
        self.inner = inner
        self._observer = observer
        self._digest = digest

    def applied_index(self) -> int:
        return self.inner.applied_index()

    def durable_index(self) -> int:
        return self.inner.durable_index()

    def members(self) -> Members:
        return self.inner.members()

    def apply_many(self, entries: Sequence[Entry]) -> Sequence[Any]:
        self._observer.applying(self.node, self.group, self.inner.applied_index(), entries)
        results = self.inner.apply_many(entries)
        self.report(entries)
        return results

    def report(self, entries: Sequence[Entry] = ()) -> None:
        """Show the observer the state as it is now: after a batch, a restart, a restore."""
        index = self.inner.applied_index()
        self._observer.applied(self.node, self.group, index, entries, self._digest() if index else None)

    def flush(self) -> Callable[[], int]:
        return self.inner.flush()

    def snapshot(self) -> SnapshotSource:
        return self.inner.snapshot()

    def restore(self) -> SnapshotSink:
        return self.inner.restore()

    def destroy(self) -> None:
        self.inner.destroy()
