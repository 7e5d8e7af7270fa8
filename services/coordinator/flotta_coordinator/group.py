"""The coordinators' one Raft group, as the rest of the service sees it.

Everything above this works with roles, outcomes and member numbers; a test may put a scripted group in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from flotta_consensus.api import Outcome, ReadOutcome, Rejected, RejectReason, RoleChange, node_of, replica_id
from flotta_consensus.groups import Groups

from flotta_coordinator.core.roster_transitions import place_of

GROUP = 1
MEMBER_COUNTS = (1, 3, 5)


class Group(Protocol):
    async def propose(self, payload: bytes, timeout_ms: int) -> Outcome: ...

    async def read_barrier(self, timeout_ms: int) -> ReadOutcome: ...

    def applied_index(self) -> int: ...


class HostGroup:
    """The group in this process's host. Before the host is open nobody is known to lead."""

    def __init__(self) -> None:
        self._host: Groups | None = None

    def attach(self, host: Groups) -> None:
        self._host = host

    async def propose(self, payload: bytes, timeout_ms: int) -> Outcome:
        if self._host is None:
            return Rejected(RejectReason.NO_LEADER)
        return await self._host.propose(GROUP, payload, timeout_ms)

    async def read_barrier(self, timeout_ms: int) -> ReadOutcome:
        if self._host is None:
            return Rejected(RejectReason.NO_LEADER)
        return await self._host.read_barrier(GROUP, timeout_ms)

    def applied_index(self) -> int:
        return 0 if self._host is None else self._host.machine(GROUP).applied_index()


@dataclass(frozen=True, slots=True)
class Coordinators:
    """The configured members, in an order that never changes: the first has number 1. One that was admitted in the
    place of another has a later number of the same place."""

    members: tuple[tuple[str, str], ...]  # (node id, host:port)
    node_id: str

    @property
    def node_num(self) -> int:
        return next(number for number, (name, _) in enumerate(self.members, start=1) if name == self.node_id)

    @property
    def replica(self) -> int:
        return replica_id(self.node_num, 1)

    @property
    def replicas(self) -> tuple[int, ...]:
        return tuple(replica_id(number, 1) for number in range(1, len(self.members) + 1))

    def address(self, node_num: int) -> str | None:
        return self._member(node_num)[1] or None

    def name(self, node_num: int) -> str:
        return self._member(node_num)[0]

    def _member(self, node_num: int) -> tuple[str, str]:
        place = place_of(node_num)
        return self.members[place - 1] if node_num and place <= len(self.members) else ("", "")


class Role:
    """What this member last heard about who leads."""

    def __init__(self, coordinators: Coordinators) -> None:
        self._coordinators = coordinators
        self.is_leader = False
        self.term = 0
        self.leader_num = 0  # 0: not known

    def take(self, change: RoleChange) -> None:
        self.is_leader = change.is_leader
        self.term = change.term
        self.leader_num = node_of(change.leader)

    def leads(self, term: int) -> bool:
        return self.is_leader and self.term == term

    @property
    def leader_id(self) -> str:
        return self._coordinators.name(self.leader_num)

    @property
    def leader_address(self) -> str | None:
        return self._coordinators.address(self.leader_num)
