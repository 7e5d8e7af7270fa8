"""What must hold of every group at every instant, whatever its state machine is.

- Election safety: a term has at most one leader.
- Log matching: two logs that have an entry of the same index and term hold the same entry there.
- State-machine safety: what one replica applied at an index, every replica applies there.
- Order: a replica applies each index once, without a gap, from the index of its state.
- Promises: a term and a vote that were given outlive the process.
- State equality: replicas that applied the same index hold the same bytes.

A broken invariant raises `SafetyViolation` at the step that broke it, so the transcript ends there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class SafetyViolation(Exception):
    """An invariant is broken; the message says which, where and how."""


class LivenessViolation(Exception):
    """Faults have stopped, and still the cluster does not come to rest."""


def fingerprint(*parts: bytes | int) -> bytes:
    """A short digest of an entry or of a state."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        data = part if isinstance(part, bytes) else part.to_bytes(8, "big")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class AppliedEntry:
    """An entry as the first replica applied it."""

    index: int
    term: int
    kind: int
    payload: bytes
    first_applied_us: int
    by_node: int


class ElectionSafety:
    """At most one leader a term."""

    def __init__(self) -> None:
        self._leaders: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._leaders)

    def saw_leader(self, group: int, term: int, replica: int) -> bool:
        """True when this leader was not known yet."""
        known = self._leaders.get((group, term))
        if known is None:
            self._leaders[group, term] = replica
            return True
        if known != replica:
            raise SafetyViolation(f"election safety: group {group} term {term} has leaders {known:#x} and {replica:#x}")
        return False

    def leader(self, group: int, term: int) -> int | None:
        return self._leaders.get((group, term))


class Promises:
    """What a replica has promised by its term and its vote, which a restart must not undo."""

    def __init__(self) -> None:
        self._given: dict[tuple[int, int], tuple[int, int]] = {}
        self.compared = 0

    def given(self, group: int, replica: int, term: int, vote: int) -> None:
        """Everything that the replica sent was durable first, and this is what it stands at."""
        self._given[group, replica] = (term, vote)

    def kept(self, group: int, replica: int, term: int, vote: int) -> None:
        """What the replica stands at after a restart."""
        before = self._given.get((group, replica))
        if before is None:
            return
        self.compared += 1
        if term < before[0] or (term == before[0] and before[1] and vote != before[1]):
            raise SafetyViolation(
                f"promise: group {group} replica {replica:#x} stood at term {before[0]} with its vote for "
                f"{before[1]:#x}, and after a restart at term {term} with {vote:#x}"
            )


class LogMatching:
    """Remembers every entry ever seen in any log by (group, index, term)."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int, int], tuple[bytes, int]] = {}
        self.compared = 0

    def saw_log(self, node: int, group: int, entries: Iterable[tuple[int, int, int, bytes]]) -> None:
        """(index, term, kind, payload) of a replica's log, in order."""
        before: tuple[int, int] | None = None
        for index, term, kind, payload in entries:
            if before is not None and (index != before[0] + 1 or term < before[1]):
                raise SafetyViolation(f"log shape: group {group} node {node} has ({index}, term {term}) after {before}")
            before = (index, term)
            mark = fingerprint(kind, payload)
            known, other = self._seen.setdefault((group, index, term), (mark, node))
            self.compared += 1
            if known != mark:
                raise SafetyViolation(
                    f"log matching: group {group} index {index} term {term} differs between nodes {other} and {node}"
                )


class CommittedLog:
    """The one sequence of entries that a group applied, put together from all its replicas."""

    def __init__(self, group: int) -> None:
        self.group = group
        self.entries: dict[int, AppliedEntry] = {}
        self.last_index = 0

    def saw_applied(
        self, node: int, now_us: int, state_index: int, entries: Sequence[tuple[int, int, int, bytes]]
    ) -> None:
        """A replica whose state stands at `state_index` is about to apply (index, term, kind, payload)."""
        expected = state_index
        for index, term, kind, payload in entries:
            expected += 1
            if index != expected:
                raise SafetyViolation(
                    f"apply order: group {self.group} node {node} applies index {index}, its state is at {expected - 1}"
                )
            known = self.entries.get(index)
            if known is None:
                self.entries[index] = AppliedEntry(index, term, kind, payload, now_us, node)
                self.last_index = max(self.last_index, index)
            elif (known.term, known.kind, known.payload) != (term, kind, payload):
                raise SafetyViolation(
                    f"state machine safety: group {self.group} index {index}: node {known.by_node} applied "
                    f"term {known.term} kind {known.kind} {known.payload[:48]!r}, "
                    f"node {node} applies term {term} kind {kind} {payload[:48]!r}"
                )

    def in_order(self, first_index: int) -> list[AppliedEntry]:
        """Every entry from `first_index`; a hole is a violation, for somebody must have applied it."""
        missing = [index for index in range(first_index, self.last_index + 1) if index not in self.entries]
        if missing:
            raise SafetyViolation(
                f"committed log: group {self.group} has entries that no replica applied: {missing[:8]}"
            )
        return [self.entries[index] for index in range(first_index, self.last_index + 1)]


class StateEquality:
    """Replicas of one group at one applied index hold the same bytes."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, int], tuple[bytes, int]] = {}
        self.compared = 0

    def saw_state(self, node: int, group: int, applied_index: int, mark: bytes) -> None:
        known, other = self._states.setdefault((group, applied_index), (mark, node))
        if other != node:
            self.compared += 1
        if known != mark:
            raise SafetyViolation(
                f"state equality: group {group} at index {applied_index} differs between nodes {other} and {node}"
            )
