"""One replica as the driver sees it: its machine, what runs beside it, and the applying of entries in order.

Invariants: entries reach the machine in index order without gaps and once; while a snapshot is being installed
nothing else touches the machine, and what the log delivers meanwhile waits its turn; a flush and an install of one
machine never overlap; a machine is destroyed only when nothing runs beside it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flotta_consensus.api import (
    Entry,
    EntryKind,
    Failpoints,
    Members,
    RoleChange,
    StateMachine,
)
from flotta_consensus.core.effects import InstallSnapshot
from flotta_consensus.core.host import HostCodes, members_of
from flotta_consensus.core.manifest import Manifest
from flotta_consensus.core.reads import GroupReads
from flotta_consensus.core.waiters import Waiters

_NORMAL = EntryKind.NORMAL
HostApply = tuple[int, int, int, int, int, Any]


class InvariantError(RuntimeError):
    """Something that must hold does not. The process must end: going on could spread the damage."""


class Phase(enum.Enum):
    CREATING = "creating"  # the host has not said yet that it is durable
    OPEN = "open"
    INSTALLING = "installing"
    REMOVING = "removing"


@dataclass(slots=True)
class Build:
    """A snapshot being written. `wanted` false: its result is of no use any more."""

    index: int
    wanted: bool = True


@dataclass(slots=True)
class Group:
    """State of one replica between turns."""

    number: int
    machine: StateMachine
    reads: GroupReads
    phase: Phase = Phase.OPEN
    role: RoleChange | None = None
    deferred: list[HostApply] = field(default_factory=list)
    install: InstallSnapshot | None = None
    install_handed_out: bool = False
    flushing: bool = False
    build: Build | None = None
    built: Manifest | None = None  # the newest snapshot file of this group
    snapshot_minimum: int | None = None  # the host waits for a snapshot at or above
    removed: bool = False  # the host forgot it, durably
    created_done: Callable[[], None] | None = None
    removed_done: Callable[[], None] | None = None
    # The log's growth since somebody last looked; a replica is looked at once after its start.
    bytes_unchecked: int = 0
    entries_unchecked: int = 0
    check_due: bool = True
    checking: bool = False
    pinned: int = 0  # `compactions_wanted` of the host

    def ready(self) -> None:
        """The host has it durably: a replica that is new, or one that goes on as another."""
        if self.phase is Phase.CREATING:
            self.phase = Phase.OPEN
        done, self.created_done = self.created_done, None
        if done is not None:
            done()

    def seize(self, done: Callable[[], None]) -> None:
        """It goes on as another replica. Snapshots of before name members that are gone."""
        self.created_done = done
        self.role = None
        self.built = None
        if self.build is not None:
            self.build.wanted = False

    def quiet(self) -> bool:
        """Nothing runs beside the machine."""
        return not self.flushing and self.build is None and not self.install_handed_out

    def begin_install(self, index: int, term: int, members: Members, manifest_bytes: bytes) -> None:
        manifest = Manifest.decode(manifest_bytes)
        if manifest.index != index:
            raise InvariantError(f"group {self.number}: snapshot {index} has the manifest of {manifest.index}")
        self.phase = Phase.INSTALLING
        self.install = InstallSnapshot(self.number, index, term, members, manifest, self.machine)
        if self.build is not None:
            self.build.wanted = False
        self.built = None


class Applier:
    """Applies what the host delivered for one group."""

    def __init__(self, codes: HostCodes, waiters: Waiters, failpoints: Failpoints, entries_max: int) -> None:
        self._codes = codes
        self._waiters = waiters
        self._failpoints = failpoints
        self._entries_max = entries_max

    def apply(self, group: Group, items: Sequence[HostApply]) -> None:
        """Apply in order, up to a snapshot: an install begins, and from there on the items wait in `deferred`."""
        if group.phase is Phase.INSTALLING:
            group.deferred.extend(items)
            return
        entries: list[Entry] = []
        requests: list[int] = []
        next_index = group.machine.applied_index() + 1
        size = 0
        normal, codes = self._codes.apply_normal, self._codes
        for position, (_, index, term, request_id, kind, payload) in enumerate(items):
            if index < next_index:
                continue  # delivered again after a restart: the machine had it
            if kind == codes.apply_snapshot:
                self._run(group, entries, requests)
                membership, manifest = payload
                group.begin_install(index, term, members_of(membership), manifest)
                group.deferred = list(items[position + 1 :])
                return
            if index != next_index:
                raise InvariantError(f"group {group.number}: entry {index} delivered, {next_index} expected")
            if kind == normal:
                entries.append(Entry(index, term, _NORMAL, payload))
                size += len(payload)
            elif kind == codes.apply_conf:
                entries.append(Entry(index, term, EntryKind.CONF, b"", members_of(payload)))
            else:
                entries.append(Entry(index, term, EntryKind.EMPTY, b""))
            requests.append(request_id)
            next_index += 1
        group.bytes_unchecked += size
        self._run(group, entries, requests)

    def _run(self, group: Group, entries: list[Entry], requests: list[int]) -> None:
        """The state first, the answers after: a waiter never hears of what is not applied."""
        for start in range(0, len(entries), self._entries_max):
            batch = entries[start : start + self._entries_max]
            self._failpoints.reach("consensus.before_apply")
            results = group.machine.apply_many(batch)
            self._failpoints.reach("consensus.after_apply")
            if len(results) != len(batch) or group.machine.applied_index() != batch[-1].index:
                raise InvariantError(
                    f"group {group.number}: the state machine answered {len(results)} of {len(batch)} entries and is "
                    f"at {group.machine.applied_index()}, not at {batch[-1].index}"
                )
            self._waiters.committed(requests[start : start + len(batch)], batch, results)
        group.entries_unchecked += len(entries)
