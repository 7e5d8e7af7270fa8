"""The durable half of a simulated storage node: its engine, and the real machines of its replicas in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from flotta_consensus.api import Failpoints, Members
from flotta_consensus.sim.failpoints import SimFailpoints
from flotta_consensus.sim.observed import ObservedMachine, Observer
from flotta_embedded.generations import current, machines
from flotta_embedded.machine import Machine
from flotta_embedded.simulated import SimEngine
from flotta_storage.core.commands import birth_rows
from shard_commands import simulation_registry

REVISION_BASE = 1_000
"""Of every group after the first, so that no checker confuses a revision with an index."""


def revision_base_of(group: int) -> int:
    return REVISION_BASE * (group - 1)


class ShardStore:
    """Implements `sim.world.Store`."""

    def __init__(
        self,
        node: int,
        groups: int,
        observer: Observer,
        failpoints: SimFailpoints,
        seed: int,
        background_flush_one_in: int,
    ) -> None:
        self.node = node
        self._groups = groups
        self._observer = observer
        self._registry = simulation_registry()
        self.engine = SimEngine(seed, background_flush_one_in=background_flush_one_in, failpoints=failpoints)

    @staticmethod
    def name_of(group: int, replica: int) -> str:
        return f"g{group}-r{replica:x}"

    def exists(self, group: int, replica: int) -> bool:
        return current(self.engine, self.name_of(group, replica)) is not None

    def create(self, group: int, replica: int, voters: Sequence[int], failpoints: Failpoints) -> ObservedMachine:
        name = self.name_of(group, replica)
        if not voters:
            empty = Machine.create_empty(self.engine, name, self._registry, failpoints=failpoints)
            return self._observed(group, empty)
        machine = Machine.create(
            self.engine,
            name,
            self._registry,
            members=Members(tuple(sorted(voters))),
            revision_base=revision_base_of(group),
            rows=birth_rows(f"shard-{group - 1}", "default", group - 1, self._groups),
            failpoints=failpoints,
        )
        return self._observed(group, machine)

    def open(self, group: int, replica: int, failpoints: Failpoints) -> ObservedMachine:
        machine = Machine.open(self.engine, self.name_of(group, replica), self._registry, failpoints=failpoints)
        return self._observed(group, machine)

    def drop_others(self, keep: Sequence[tuple[int, int]]) -> None:
        kept = {self.name_of(group, replica) for group, replica in keep}
        for space in self.engine.spaces():
            if space.rpartition("@")[0] not in kept:
                self.engine.drop(space)

    def crash(self) -> int:
        return self.engine.crash()["spaces"]

    def fill_up_after(self, bytes: int) -> None:
        self.engine.fill_up_after(bytes)

    def reset_faults(self) -> None:
        self.engine.reset_faults()

    def held(self) -> list[str]:
        return machines(self.engine)

    def _observed(self, group: int, machine: Machine) -> ObservedMachine:
        return ObservedMachine(self.node, group, machine, self._observer, lambda: digest_of(machine))


def digest_of(machine: Machine) -> bytes:
    """Every row of the replica, the machine's own ones included."""
    digest = hashlib.blake2b(digest_size=12)
    for key, value in machine.view().scan(b"", None):
        digest.update(len(key).to_bytes(4, "big"))
        digest.update(key)
        digest.update(len(value).to_bytes(4, "big"))
        digest.update(value)
    return digest.digest()
