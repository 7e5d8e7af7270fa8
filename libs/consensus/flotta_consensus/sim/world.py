"""What a simulated node stands on: a store that survives its process, and the world it shares with the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from flotta_consensus.api import Failpoints
from flotta_consensus.sim.clock import Scheduler
from flotta_consensus.sim.network import Network
from flotta_consensus.sim.observed import ObservedMachine, Observer
from flotta_consensus.sim.profile import RaftProfile
from flotta_consensus.sim.transcript import Transcript

if TYPE_CHECKING:
    from flotta_consensus.sim.node import SimNode

WALL_START_MS = 1_700_000_000_000


class Durable(Protocol):
    """What of a node survives its process, as far as it was flushed."""

    def crash(self) -> int:
        """Back to what was flushed; returns how many replicas lost something."""

    def fill_up_after(self, bytes: int) -> None: ...

    def reset_faults(self) -> None: ...


class Store(Durable, Protocol):
    """The state machines of a node that is told its replicas."""

    def exists(self, group: int, replica: int) -> bool: ...

    def create(self, group: int, replica: int, voters: Sequence[int], failpoints: Failpoints) -> ObservedMachine:
        """A birth replica with voters, an empty one without. Durable at return."""

    def open(self, group: int, replica: int, failpoints: Failpoints) -> ObservedMachine: ...

    def drop_others(self, keep: Sequence[tuple[int, int]]) -> None:
        """Drop what a crash left over: every machine but those of these (group, replica) pairs."""


@dataclass(slots=True)
class World:
    """What all nodes of a simulation share."""

    scheduler: Scheduler
    transcript: Transcript
    network: Network
    observer: Observer
    raft: RaftProfile
    seed: int
    nodes: dict[int, SimNode] = field(default_factory=dict)

    @property
    def wall_ms(self) -> int:
        """The true time of day."""
        return WALL_START_MS + self.scheduler.now_ms
