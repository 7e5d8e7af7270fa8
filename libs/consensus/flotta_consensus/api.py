"""What a replicated group promises, and what it asks of the state machine below it.

Everything here is a value or an interface; the driver (`core/driver.py`) and the asyncio and simulated
front ends are written against it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

SEQUENCE_BITS = 32


def replica_id(node_num: int, sequence: int) -> int:
    """The id of one replica: never used twice, and it names its node."""
    if not 0 < node_num < 1 << 32 or not 0 < sequence < 1 << SEQUENCE_BITS:
        raise ValueError(f"node_num {node_num} and sequence {sequence} must be between 1 and 2^32 - 1")
    return node_num << SEQUENCE_BITS | sequence


def node_of(replica: int) -> int:
    """The node number inside a replica id."""
    return replica >> SEQUENCE_BITS


def sequence_of(replica: int) -> int:
    """What tells a replica id from the others of its node."""
    return replica & ((1 << SEQUENCE_BITS) - 1)


@dataclass(frozen=True, slots=True)
class Members:
    """A committed configuration of a group, as replica ids. `outgoing` is not empty while a joint change runs."""

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    outgoing: tuple[int, ...] = ()

    def __contains__(self, replica: object) -> bool:
        return replica in self.voters or replica in self.learners or replica in self.outgoing


class EntryKind(enum.IntEnum):
    NORMAL = 0  # a proposed payload
    EMPTY = 1  # a new leader's first entry
    CONF = 2  # a membership change


@dataclass(slots=True)
class Entry:
    """One committed log entry, handed to the state machine in index order, exactly once per incarnation. Never changed;
    not frozen, because every replica makes one per entry and freezing makes that four times as dear."""

    index: int
    term: int
    kind: EntryKind
    payload: bytes
    members: Members | None = None  # CONF only: the configuration from here on


class SnapshotSource(Protocol):
    """A frozen view of a replica at exactly `index`. Must be closed; reading it never blocks writers.

    Read and closed in one worker thread, while the machine goes on in its own."""

    index: int

    def chunks(self, bytes_max: int) -> Iterator[bytes]:
        """The state in bounded slices; concatenated they are what `SnapshotSink` takes."""

    def close(self) -> None: ...


class SnapshotSink(Protocol):
    """Builds a replica's new state beside the old one. Nothing is visible before `commit`.

    `write` and `abort` may run in a worker thread; `commit` runs in the machine's own."""

    def write(self, chunk: bytes) -> None: ...

    def commit(self, index: int, term: int, members: Members) -> None:
        """Durably replace the old state, at once. ValueError if the chunks were not a whole snapshot."""

    def abort(self) -> None: ...


class StateMachine(Protocol):
    """The replicated state of one replica. Called from one thread, but for the function `flush` returns;
    deterministic in its entries alone. Between `restore` and its sink's end nothing is applied or flushed.

    Invariant: state, applied index, members, group time and dedup rows change in one atomic batch.
    """

    def applied_index(self) -> int:
        """Last index whose effects are in the (perhaps not yet durable) state."""

    def durable_index(self) -> int:
        """Last index that would survive a power cut, as of the last completed flush."""

    def members(self) -> Members:
        """The configuration at `applied_index`."""

    def apply_many(self, entries: Sequence[Entry]) -> Sequence[Any]:
        """Apply in order, in one batch; one result per entry (None for EMPTY and CONF).

        An application-level rejection is a result, not an exception; an exception ends the process.
        """

    def flush(self) -> Callable[[], int]:
        """Start making the state durable: reads the applied index now, and returns a function that does the slow
        part (any thread) and returns that index, from then on `durable_index`."""

    def snapshot(self) -> SnapshotSource: ...

    def restore(self) -> SnapshotSink: ...

    def destroy(self) -> None:
        """Delete the replica's state for good (after its removal is committed and tombstoned)."""


class RejectReason(enum.Enum):
    NOT_LEADER = "not_leader"
    NO_LEADER = "no_leader"
    OVERLOADED = "overloaded"
    UNKNOWN_GROUP = "unknown_group"
    CONF_PENDING = "conf_pending"
    LOST = "lost"
    INVALID = "invalid"
    CLOSED = "closed"


@dataclass(slots=True)
class Committed:
    """The entry is committed, applied here, and this is the state machine's result. Never changed, as `Entry`."""

    index: int
    term: int
    result: Any


@dataclass(frozen=True, slots=True)
class Rejected:
    """The proposal certainly has no effect, now or later. `leader` is a replica id, 0 if none is known."""

    reason: RejectReason
    leader: int = 0


@dataclass(frozen=True, slots=True)
class Unknown:
    """The proposal may have happened or may yet happen: the caller gave up waiting, or the host closed."""

    reason: str


Outcome = Committed | Rejected | Unknown


@dataclass(frozen=True, slots=True)
class ReadReady:
    """The local state machine now holds everything that was committed when the read began (or more)."""

    index: int


ReadOutcome = ReadReady | Rejected | Unknown


class Seizure(NamedTuple):
    """How the replica of a group that lost its quorum for good goes on alone; see `RaftHost.seize_group`."""

    from_replica: int
    replica: int
    term_min: int
    payloads: Sequence[bytes]


ProposeDone = Callable[[Outcome], None]
ReadDone = Callable[[ReadOutcome], None]


@dataclass(frozen=True, slots=True)
class RoleChange:
    """What this replica now believes. `leader` is a replica id, 0 if none is known."""

    group: int
    is_leader: bool
    term: int
    leader: int


class Failpoints(Protocol):
    """Named points around every persist, send, apply and snapshot step. `reach` may raise, sleep or exit."""

    def reach(self, name: str) -> None: ...


class NoFailpoints:
    """The production default."""

    def reach(self, name: str) -> None:
        return None


def batches(items: Sequence[Any], size_max: int) -> Iterable[Sequence[Any]]:
    """Slices of at most `size_max` items."""
    return (items[start : start + size_max] for start in range(0, len(items), size_max))
