"""Membership changes of a simulated shard: by the storage service's own policy, and now and then without one.

Replica ids are fresh each time. A replica is created where it will live before the group hears of it, and is removed
only once a committed configuration is without it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from flotta_consensus.api import Committed, Entry, EntryKind, Members, Outcome, Rejected, node_of, replica_id
from flotta_consensus.sim.history import Verdict
from flotta_consensus.sim.process import SimProcess
from flotta_consensus.sim.world import World
from flotta_storage.core.moves import (
    CATCH_UP_ENTRIES,
    Change,
    ChangeMembers,
    Intent,
    LeaderView,
    TransferLeader,
    next_step,
)
from shard_service import Reply, ShardService

CHANGE_TIMEOUT_MS = 2_000


class Configurations:
    """What each group has committed about its members."""

    def __init__(self) -> None:
        self.newest: dict[int, tuple[int, Members]] = {}
        self.ever: dict[int, set[int]] = {}

    def born(self, group: int, voters: Sequence[int]) -> None:
        self.newest[group] = (1, Members(tuple(sorted(voters))))
        self.ever[group] = set(voters)

    def applied(self, node: int, group: int, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.kind is EntryKind.CONF and entry.members is not None:
                members = entry.members
                self.ever[group].update((*members.voters, *members.learners, *members.outgoing))
                if entry.index > self.newest[group][0]:
                    self.newest[group] = (entry.index, members)

    def members(self, group: int) -> Members:
        return self.newest[group][1]


class Admin:
    """Gives groups new targets, and takes the next step towards them."""

    def __init__(
        self,
        world: World,
        processes: dict[int, SimProcess],
        services: dict[int, ShardService],
        configurations: Configurations,
        rng: random.Random,
        next_sequence: int,
    ) -> None:
        self._world = world
        self._processes = processes
        self._services = services
        self._configurations = configurations
        self._rng = rng
        self._catch_up_entries = rng.choice((8, CATCH_UP_ENTRIES))
        self._next_sequence = next_sequence
        self._targets: dict[int, frozenset[int]] = {}
        self._condemned: set[int] = set()  # replicas that a change removes, or may yet: never asked for again

    def fresh(self, node: int) -> int:
        self._next_sequence += 1
        return replica_id(node, self._next_sequence)

    def leader_of(self, group: int) -> SimProcess | None:
        """A process that believes to lead; there may be a newer one."""
        for node in self._processes.values():
            if node.alive and not node.paused and group in node.driver.groups():
                role = node.driver.role(group)
                if role is not None and role.is_leader:
                    return node
        return None

    def retarget(self, group: int) -> None:
        """Choose where the group's voters should be."""
        if group in self._targets:
            return
        rng, world, nodes = self._rng, self._world, self._processes
        members = self._configurations.members(group)
        voters = set(members.voters)
        taken = {node_of(replica) for replica in (*members.voters, *members.learners, *members.outgoing)}
        free = [node for node in sorted(nodes) if group not in nodes[node].intents and node not in taken]
        targets = voters - self._condemned
        if not targets:
            return
        if free and rng.random() < 0.7:
            node = rng.choice(free)
            replica = self.fresh(node)
            nodes[node].place(group, replica, ())
            targets.add(replica)
        if len(targets) > 3 or (len(targets) > 1 and rng.random() < 0.4):
            targets.discard(rng.choice(sorted(voters)))
        if targets != voters:
            self._targets[group] = frozenset(targets)
            world.transcript.note(
                "admin", f"group {group} should have voters {[hex(target) for target in sorted(targets)]}"
            )

    def step(self, group: int) -> None:
        """One step towards the targets, at whoever leads."""
        leader = self.leader_of(group)
        targets = self._targets.get(group)
        if targets is not None and targets & self._condemned:
            del self._targets[group]
            return
        if leader is None or targets is None:
            return
        members = self._configurations.members(group)
        if set(members.voters) == targets and not members.learners and not members.outgoing:
            del self._targets[group]
            self._world.transcript.count("moves_done")
            return
        leader.run(lambda: self._step(leader, group, targets))

    def _step(self, leader: SimProcess, group: int, targets: frozenset[int]) -> None:
        (status,) = leader.host.status([group])
        view = LeaderView(
            group=group,
            replica=status.replica,
            members=leader.driver.machine(group).members(),
            last_index=status.last_index,
            matched=status.matched,
            active=status.recent_active,
            snapshots=frozenset(status.pending_snapshot),
        )
        step = next_step(view, Intent(targets), self._catch_up_entries)
        if isinstance(step, ChangeMembers):
            self.change(leader, group, step.changes)
        elif isinstance(step, TransferLeader):
            self._world.transcript.count("transfers_asked")
            leader.driver.transfer_leader(group, step.to_replica)

    def wild_change(self, group: int) -> None:
        """A change that no policy would make: an untried learner becomes a voter, a voter goes at once."""
        leader = self.leader_of(group)
        members = self._configurations.members(group)
        if leader is None or members.outgoing:
            return
        own = leader.intents[group][0]
        others = [voter for voter in members.voters if voter != own]
        changes: tuple[Change, ...] = ()
        # A replica that has acknowledged nothing may be blank, and a blank voter casts no vote.
        (status,) = leader.host.status([group])
        begun = [learner for learner in members.learners if status.matched.get(learner, 0)]
        if begun and self._rng.random() < 0.6:
            changes = (("voter", self._rng.choice(begun)),)
            if others and self._rng.random() < 0.5:
                changes += (("remove", self._rng.choice(others)),)
        elif others and self._rng.random() < 0.5:
            changes = (("learner", self._rng.choice(others)),)
        elif members.learners:
            changes = (("remove", self._rng.choice(members.learners)),)
        if changes:
            leader.run(lambda: self.change(leader, group, changes))

    def change(self, leader: SimProcess, group: int, changes: tuple[Change, ...]) -> None:
        world = self._world
        self._condemned.update(replica for kind, replica in changes if kind == "remove")
        told = ", ".join(f"{kind} {replica:#x}" for kind, replica in changes)

        def done(outcome: Outcome) -> None:
            world.transcript.note("admin", f"group {group}: {told}: {outcome}")
            if isinstance(outcome, Committed):
                world.transcript.count("membership_changes")
                if len(changes) > 1:
                    world.transcript.count("joint_changes")
            elif isinstance(outcome, Rejected):
                world.transcript.count("membership_changes_refused")

        leader.driver.change_membership(group, changes, done, leader.now_ms + CHANGE_TIMEOUT_MS)

    def transfer(self, group: int) -> None:
        leader = self.leader_of(group)
        voters = list(self._configurations.members(group).voters)
        if leader is not None and voters:
            heir = self._rng.choice(voters)
            self._world.transcript.count("transfers_asked")
            leader.run(lambda: leader.driver.transfer_leader(group, heir))

    def abandon(self) -> None:
        """Stop moving: targets that nobody works on any more are left as they are."""
        self._targets.clear()

    def sweep(self) -> None:
        """Replicas that the map no longer names ask a leader whether they are still members."""
        for number in sorted(self._processes):
            node = self._processes[number]
            for group, (replica, _) in sorted(node.intents.items()):
                if replica in self._configurations.ever[group] and replica not in self._configurations.members(group):
                    leader = self.leader_of(group)
                    if leader is not None and node.alive:
                        self._ask(node, leader, group, replica)

    def _ask(self, node: SimProcess, leader: SimProcess, group: int, replica: int) -> None:
        network = self._world.network
        incarnation = node.incarnation

        def told(reply: Reply) -> None:
            if reply.verdict is Verdict.OK and reply.result is False:
                network.send(leader.number, node.number, answered)

        def answered() -> None:
            if node.incarnation == incarnation:
                node.retire(group, replica)

        service = self._services[leader.number]
        network.send(node.number, leader.number, lambda: leader.run(lambda: service.is_member(group, replica, told)))
