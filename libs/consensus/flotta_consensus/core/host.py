"""What the driver needs of the native Raft host: the part of `flotta_native.RaftHost` it calls, as protocols.

The driver never imports the native module. Its front ends hand over a host and the `HostCodes` of the module the
host came from, so that a scripted fake, the simulator's manual host and the threaded host all drive the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from flotta_consensus.api import Members, RejectReason

MembershipChange = tuple[Literal["voter", "learner", "remove"], int]
"""What to make of a replica id."""


class HostMembership(Protocol):
    @property
    def voters(self) -> list[int]: ...
    @property
    def learners(self) -> list[int]: ...
    @property
    def voters_outgoing(self) -> list[int]: ...


class HostStatus(Protocol):
    """`flotta_native.GroupStatus`, read only."""

    @property
    def group(self) -> int: ...
    @property
    def replica(self) -> int: ...
    @property
    def role(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def leader(self) -> int: ...
    @property
    def committed(self) -> int: ...
    @property
    def delivered(self) -> int: ...
    @property
    def first_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def log_bytes(self) -> int: ...
    @property
    def membership(self) -> HostMembership: ...
    @property
    def matched(self) -> Mapping[int, int]: ...
    @property
    def pending_snapshot(self) -> Mapping[int, int]: ...
    @property
    def recent_active(self) -> Mapping[int, bool]: ...


class HostBatch(Protocol):
    """`flotta_native.Batch`, read only; see there for what each tuple means."""

    @property
    def messages(self) -> Sequence[tuple[int, bytes]]: ...
    @property
    def snapshot_messages(self) -> Sequence[tuple[int, int, int, int, int, int, bytes, bytes]]: ...
    @property
    def applies(self) -> Sequence[tuple[int, int, int, int, int, Any]]: ...
    @property
    def roles(self) -> Sequence[tuple[int, int, int, int]]: ...
    @property
    def reads(self) -> Sequence[tuple[int, int, int]]: ...
    @property
    def dropped(self) -> Sequence[tuple[int, int, int, int]]: ...
    @property
    def snapshots_wanted(self) -> Sequence[tuple[int, int, int]]: ...
    @property
    def compactions_wanted(self) -> Sequence[tuple[int, int]]: ...
    @property
    def events(self) -> Sequence[tuple[int, str, int, str]]: ...


class Host(Protocol):
    """The calls the driver makes. All of them only queue work, except `poll`, which drains what happened."""

    def groups(self) -> list[int]: ...
    def pending_install(self, group: int) -> tuple[int, int, Any, bytes] | None: ...
    def create_group(self, group: int, replica: int, voters: Sequence[int]) -> None: ...
    def remove_group(self, group: int) -> None: ...
    def seize_group(
        self, group: int, from_replica: int, replica: int, term_min: int, payloads: Sequence[bytes]
    ) -> None: ...
    def propose_many(self, proposals: Sequence[tuple[int, int, bytes]]) -> None: ...
    def read_index_many(self, reads: Sequence[tuple[int, int]]) -> None: ...
    def step(self, frame: bytes) -> None: ...
    def transfer_leader(self, group: int, to_replica: int) -> None: ...
    def campaign(self, group: int) -> None: ...
    def change_membership(self, group: int, request_id: int, changes: Sequence[MembershipChange]) -> None: ...
    def snapshot_ready(self, group: int, index: int, manifest: bytes) -> None: ...
    def snapshot_progress(self, group: int, to_replica: int) -> None: ...
    def report_snapshot(self, group: int, to_replica: int, ok: bool) -> None: ...
    def report_unreachable(self, node_num: int) -> None: ...
    def compact(self, group: int, index: int) -> None: ...
    def poll(self) -> HostBatch: ...


@dataclass(frozen=True, slots=True)
class HostCodes:
    """The numbers a host uses for kinds, reasons and roles."""

    apply_normal: int
    apply_empty: int
    apply_conf: int
    apply_snapshot: int
    drop_reasons: Mapping[int, RejectReason]
    role_leader: int

    @classmethod
    def of(cls, module: Any) -> HostCodes:
        """The codes of the native module (or of a fake with the same names)."""
        reasons = {
            module.DROP_NOT_LEADER: RejectReason.NOT_LEADER,
            module.DROP_OVERLOADED: RejectReason.OVERLOADED,
            module.DROP_UNKNOWN_GROUP: RejectReason.UNKNOWN_GROUP,
            module.DROP_CONF_PENDING: RejectReason.CONF_PENDING,
            module.DROP_LOST: RejectReason.LOST,
            module.DROP_NO_LEADER: RejectReason.NO_LEADER,
            module.DROP_INVALID: RejectReason.INVALID,
        }
        return cls(
            apply_normal=module.APPLY_NORMAL,
            apply_empty=module.APPLY_EMPTY,
            apply_conf=module.APPLY_CONF,
            apply_snapshot=module.APPLY_SNAPSHOT,
            drop_reasons=reasons,
            role_leader=module.ROLE_LEADER,
        )


def members_of(membership: HostMembership) -> Members:
    """The host's configuration as a value, in canonical (sorted) order."""
    return Members(
        voters=tuple(sorted(membership.voters)),
        learners=tuple(sorted(membership.learners)),
        outgoing=tuple(sorted(membership.voters_outgoing)),
    )
