"""What a turn of the driver asks its front end to do: the slow or blocking work, as values.

Every effect is answered exactly once by the driver method named in its docstring; until then the driver starts no
conflicting work on the same group. A front end that cannot answer must end (the state on disk is recoverable at
every step).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from flotta_consensus.api import Members, RoleChange, SnapshotSource, StateMachine
from flotta_consensus.core.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Flush:
    """Run `run` (slow, any thread), then `driver.flushed(group, its result)`."""

    group: int
    run: Callable[[], int]


@dataclass(frozen=True, slots=True)
class BuildSnapshot:
    """Write `source` to a durable file, close it, then `driver.snapshot_built(group, manifest)`;
    `driver.snapshot_build_failed(group)` if the disk would not take it."""

    group: int
    index: int
    source: SnapshotSource


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    """Stream the file of `manifest` to the node, then `driver.snapshot_sent(self, ok)`."""

    node_num: int
    group: int
    to_replica: int
    from_replica: int
    index: int
    term: int
    manifest: bytes
    message: bytes  # stepped by the receiver once it holds the file durably


@dataclass(frozen=True, slots=True)
class InstallSnapshot:
    """Verify the received file of `manifest`, write it to a `machine.restore()` sink, then
    `driver.install(group, sink)`, and only after that delete the file."""

    group: int
    index: int
    term: int
    members: Members
    manifest: Manifest
    machine: StateMachine


@dataclass(frozen=True, slots=True)
class HostEvent:
    """Something worth a line in the log: unknown_group, bad_message, …"""

    group: int
    name: str
    number: int
    text: str


@dataclass(slots=True)
class Effects:
    """The outputs of one turn, in no particular order between the lists."""

    flushes: list[Flush] = field(default_factory=list)
    builds: list[BuildSnapshot] = field(default_factory=list)
    sends: list[SendSnapshot] = field(default_factory=list)
    installs: list[InstallSnapshot] = field(default_factory=list)
    # Groups whose log may need compaction: `driver.checked(host.status(groups), now_ms)`.
    checks: list[int] = field(default_factory=list)
    roles: list[RoleChange] = field(default_factory=list)
    events: list[HostEvent] = field(default_factory=list)
    # Snapshot files of these groups may be deleted: (group, keep_index); 0 keeps none.
    superseded: list[tuple[int, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.flushes or self.builds or self.sends or self.installs or self.checks
            or self.roles or self.events or self.superseded
        )  # fmt: skip
