"""A simulated node of bare replicas: which ones it should have is told from outside, and kept durably as `intents`.

Invariant: a replica is recorded before it is made, and its record goes after it is gone for good.
"""

from __future__ import annotations

from collections.abc import Sequence

from flotta_consensus.sim.checkers import SafetyViolation
from flotta_consensus.sim.failpoints import SimFailpoints
from flotta_consensus.sim.node import SimNode
from flotta_consensus.sim.observed import ObservedMachine
from flotta_consensus.sim.world import Store, World


class SimProcess(SimNode):
    """A node by its number. `intents` is its durable record of the replicas that it should have."""

    def __init__(self, world: World, number: int, store: Store, failpoints: SimFailpoints) -> None:
        super().__init__(world, number, store, failpoints)
        self.replicas = store
        self.intents: dict[int, tuple[int, tuple[int, ...]]] = {}
        self.tombstones: set[int] = set()
        self._removing: set[int] = set()

    def replica_of(self, group: int) -> int:
        return self.intents[group][0]

    def peer(self, node_num: int) -> SimNode | None:
        return self.world.nodes[node_num]

    def dropped(self) -> None:
        self._removing.clear()

    def _open(self) -> None:
        keep = [(group, replica) for group, (replica, _) in sorted(self.intents.items())]
        self.replicas.drop_others(keep)
        machines = {
            group: self.replicas.open(group, replica, self.failpoints)
            for group, replica in keep
            if self.replicas.exists(group, replica)
        }
        driver = self.open_host(
            self.number,
            {group: machine.applied_index() for group, machine in machines.items()},
            apply_delay_ms=self.world.raft.apply_delay_ms,
        )
        held = set(self.host.groups())
        self._finish_removals(machines)
        for group in sorted(held):
            if group in machines:
                driver.open_group(group, machines[group])
                machines[group].report()
            elif group in self.intents:
                raise SafetyViolation(f"{self.name}: group {group} is in the log but its state is gone")
        self.shipping.opened(held)
        for group in sorted(self.intents):
            if group not in held:
                self._create(group, machines.get(group))

    def _finish_removals(self, machines: dict[int, ObservedMachine]) -> None:
        """A crash between the log's tombstone and the end of the state: the rest is done now."""
        for group, gone in sorted(self.host.tombstones().items()):
            replica = self.intents.get(group, (0, ()))[0]
            if replica in gone:
                if group in machines:
                    machines.pop(group).destroy()
                self._gone(group, replica)

    def _gone(self, group: int, replica: int) -> None:
        del self.intents[group]
        self.tombstones.add(replica)
        self.world.transcript.count("replicas_removed")
        self.note(f"removed replica {replica:#x} of group {group}")

    def _create(self, group: int, machine: ObservedMachine | None) -> None:
        replica, voters = self.intents[group]
        if machine is None:
            machine = self.replicas.create(group, replica, voters, self.failpoints)
        elif machine.applied_index() != (1 if voters else 0):
            raise SafetyViolation(f"{self.name}: replica {replica:#x} of group {group} lost its log but not its state")
        self.driver.create_group(group, replica, voters, machine, lambda: self.note(f"holds group {group}"))

    def place(self, group: int, replica: int, voters: Sequence[int]) -> None:
        """Record that a replica belongs here, and create it."""
        if group in self.intents or replica in self.tombstones:
            raise ValueError(f"{self.name} cannot take replica {replica:#x} of group {group}")
        self.intents[group] = (replica, tuple(voters))
        if self.alive:
            self.run(lambda: self._create(group, None))

    def retire(self, group: int, replica: int) -> None:
        """Remove a replica that the group's committed configuration no longer has."""
        if self.intents.get(group, (0, ()))[0] != replica or group in self._removing or not self.alive:
            return
        incarnation = self.incarnation

        def removed() -> None:
            if self.incarnation == incarnation:
                self._removing.discard(group)
                self._gone(group, replica)

        def remove() -> None:
            if group in self.driver.groups():
                self._removing.add(group)
                self.driver.remove_group(group, removed)

        self.run(remove)
