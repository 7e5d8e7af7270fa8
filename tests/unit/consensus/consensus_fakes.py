"""A scripted Raft host and a state machine that remembers, for tests of the driver."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flotta_consensus.api import Entry, EntryKind, Members
from flotta_consensus.core.driver import Driver, DriverLimits
from flotta_consensus.core.host import HostCodes

# Numbers unlike the native ones, so that nothing gets by without `HostCodes`.
CODES = types.SimpleNamespace(
    APPLY_NORMAL=40,
    APPLY_EMPTY=41,
    APPLY_CONF=42,
    APPLY_SNAPSHOT=43,
    DROP_NOT_LEADER=50,
    DROP_OVERLOADED=51,
    DROP_UNKNOWN_GROUP=52,
    DROP_CONF_PENDING=53,
    DROP_LOST=54,
    DROP_NO_LEADER=55,
    DROP_INVALID=56,
    ROLE_FOLLOWER=60,
    ROLE_LEADER=61,
)


@dataclass
class FakeBatch:
    messages: list[Any] = field(default_factory=list)
    snapshot_messages: list[Any] = field(default_factory=list)
    applies: list[Any] = field(default_factory=list)
    roles: list[Any] = field(default_factory=list)
    reads: list[Any] = field(default_factory=list)
    dropped: list[Any] = field(default_factory=list)
    snapshots_wanted: list[Any] = field(default_factory=list)
    compactions_wanted: list[Any] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)


@dataclass
class FakeMembership:
    voters: list[int]
    learners: list[int] = field(default_factory=list)
    voters_outgoing: list[int] = field(default_factory=list)


@dataclass
class FakeStatus:
    group: int
    replica: int = 1
    role: int = 60
    term: int = 1
    vote: int = 0
    leader: int = 0
    committed: int = 0
    delivered: int = 0
    first_index: int = 2
    last_index: int = 1
    log_bytes: int = 0
    membership: FakeMembership = field(default_factory=lambda: FakeMembership([1]))
    matched: dict[int, int] = field(default_factory=dict)
    pending_snapshot: dict[int, int] = field(default_factory=dict)
    recent_active: dict[int, bool] = field(default_factory=dict)


class FakeHost:
    """Remembers calls, and hands out the batch the test wrote."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.batch = FakeBatch()
        self.known: list[int] = []
        self.installs: dict[int, tuple[int, int, FakeMembership, bytes]] = {}
        self.fail_next: Exception | None = None

    def called(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]

    def groups(self) -> list[int]:
        return self.known

    def pending_install(self, group: int) -> tuple[int, int, FakeMembership, bytes] | None:
        return self.installs.get(group)

    def poll(self) -> FakeBatch:
        if self.fail_next is not None:
            raise self.fail_next
        batch, self.batch = self.batch, FakeBatch()
        return batch

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in (
            "create_group", "remove_group", "seize_group", "propose_many",
            "read_index_many", "step", "transfer_leader", "campaign",
            "change_membership", "snapshot_ready", "report_snapshot",
            "snapshot_progress", "report_unreachable", "compact",
        ):  # fmt: skip
            raise AttributeError(name)

        def call(*arguments: Any) -> None:
            if name in ("create_group", "seize_group", "change_membership") and self.fail_next is not None:
                error, self.fail_next = self.fail_next, None
                raise error
            self.calls.append((name, *(list(each) if isinstance(each, list) else each for each in arguments)))

        return call


class ListSource:
    def __init__(self, index: int, rows: list[bytes]) -> None:
        self.index = index
        self.rows = rows
        self.closed = False

    def chunks(self, bytes_max: int) -> Iterator[bytes]:
        yield from (row + b"\n" for row in self.rows)

    def close(self) -> None:
        self.closed = True


class ListSink:
    def __init__(self, machine: ListMachine) -> None:
        self._machine = machine
        self._data = b""
        self.aborted = False

    def write(self, chunk: bytes) -> None:
        self._data += chunk

    def commit(self, index: int, term: int, members: Members) -> None:
        self._machine.rows = self._data.splitlines()
        self._machine.index = self._machine.durable = index
        self._machine.current = members

    def abort(self) -> None:
        self.aborted = True


class ListMachine:
    """Its state is the list of payloads; the result of an entry is (index, payload)."""

    def __init__(self, index: int = 1, voters: Sequence[int] = (1,)) -> None:
        self.index = self.durable = index
        self.current = Members(voters=tuple(voters)) if index else Members()
        self.rows: list[bytes] = []
        self.batches: list[list[Entry]] = []
        self.flushes = 0
        self.destroyed = False

    def applied_index(self) -> int:
        return self.index

    def durable_index(self) -> int:
        return self.durable

    def members(self) -> Members:
        return self.current

    def apply_many(self, entries: Sequence[Entry]) -> list[Any]:
        assert not self.destroyed
        self.batches.append(list(entries))
        results: list[Any] = []
        for entry in entries:
            assert entry.index == self.index + 1
            self.index = entry.index
            if entry.kind is EntryKind.NORMAL:
                self.rows.append(entry.payload)
                results.append((entry.index, entry.payload))
            else:
                results.append(None)
            if entry.members is not None:
                self.current = entry.members
        return results

    def flush(self) -> Callable[[], int]:
        index = self.index
        self.flushes += 1

        def run() -> int:
            self.durable = max(self.durable, index)
            return index

        return run

    def snapshot(self) -> ListSource:
        return ListSource(self.index, list(self.rows))

    def restore(self) -> ListSink:
        return ListSink(self)

    def destroy(self) -> None:
        self.destroyed = True


class Bench:
    """A driver over a scripted host, with one open group."""

    def __init__(self, limits: DriverLimits | None = None, group: int = 7) -> None:
        self.host = FakeHost()
        self.sent: list[tuple[int, bytes]] = []
        self.driver = Driver(
            self.host, HostCodes.of(CODES), send=lambda node, frame: self.sent.append((node, frame)), limits=limits
        )
        self.group = group
        self.machine = ListMachine()
        self.host.known = [group]
        self.driver.open_group(group, self.machine)
        self.driver.turn(0)
        self.driver.checked([group], [FakeStatus(group)])
        self.outcomes: list[Any] = []

    def propose(self, payload: bytes = b"x", deadline_ms: int = 1_000) -> None:
        self.driver.propose(self.group, payload, self.outcomes.append, deadline_ms)

    def proposed_ids(self) -> list[int]:
        return [number for (proposals,) in self.host.called("propose_many") for _, number, _ in proposals]

    def read_ids(self) -> list[int]:
        return [number for (reads,) in self.host.called("read_index_many") for _, number in reads]

    def commit(self, *entries: tuple[int, bytes], first: int | None = None, term: int = 1) -> None:
        """Script entries (request id, payload) as committed from the machine's next index on."""
        index = self.machine.index + 1 if first is None else first
        for offset, (request_id, payload) in enumerate(entries):
            self.host.batch.applies.append((self.group, index + offset, term, request_id, CODES.APPLY_NORMAL, payload))
