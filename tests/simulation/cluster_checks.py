"""What must hold of the cluster as a whole at every step: of the replicated map, of what shards commit, of every view.

It knows what no process does: which machines are gone for good, and what each entry made of the state. Broken rules
raise `SafetyViolation` at the step that broke them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flotta_consensus.api import Entry, EntryKind, Members, node_of
from flotta_consensus.sim.checkers import SafetyViolation
from flotta_coordinator.core.state import ClusterState, NodeStatus, Phase, Purpose, Shard

if TYPE_CHECKING:
    from cluster_world import Cluster


def has_quorum(there: int, size: int) -> bool:
    """The simulation's own idea of it, apart from the planner's."""
    return 2 * there > size


class MapRules:
    """Of the coordinators' state, looked at after every entry."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.newest = ClusterState()
        self.decided = 0  # moves of the planner

    def applied(self, node: int, group: int, entries: Sequence[Entry]) -> None:
        state = self._cluster.coordinators[node - 1].state()
        if state is None or state.sequence <= self.newest.sequence:
            return
        before, self.newest = self.newest, state
        if state.map_version < before.map_version:
            raise SafetyViolation(f"the map went back from version {before.map_version} to {state.map_version}")
        for shard_id, shard in state.shards.items():
            self._one_each(shard)
            known = before.shards.get(shard_id)
            if known is None or known is shard:
                continue
            if (shard.epoch, shard.leader_term) < (known.epoch, known.leader_term) or shard.epoch < known.epoch:
                raise SafetyViolation(f"{shard_id} went back from epoch {known.epoch} to {shard.epoch}")
            if {one.replica_id for one in shard.members} != {one.replica_id for one in known.members} and (
                shard.epoch <= known.epoch and known.phase is not Phase.AWAITED
            ):
                raise SafetyViolation(f"{shard_id} has other members at the same epoch {shard.epoch}")
            if shard.targets and shard.targets != known.targets and shard.purpose is not Purpose.OPERATOR:
                self._planned(state, shard)

    @staticmethod
    def _one_each(shard: Shard) -> None:
        """Never two replicas of one shard on one node."""
        on: dict[str, int] = {}
        for replica in (*shard.members, *shard.targets):
            if on.setdefault(replica.node_id, replica.replica_id) != replica.replica_id:
                raise SafetyViolation(f"{shard.shard_id} has two replicas on {replica.node_id}: {shard}")

    def _planned(self, state: ClusterState, shard: Shard) -> None:
        """The planner leaves every shard a quorum of nodes that it does not know to be dead."""
        self.decided += 1
        for name, replicas in (("members", shard.members), ("targets", shard.targets)):
            nodes = [state.nodes.get(replica.node_id) for replica in replicas]
            living = sum(node is not None and node.status is not NodeStatus.DEAD for node in nodes)
            if not has_quorum(living, len(nodes)):
                raise SafetyViolation(
                    f"the planner moves {shard.shard_id} with {living} living {name} of {len(nodes)}: {shard}"
                )


class ShardRules:
    """Of what the shards' logs commit about their members."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.newest: dict[int, tuple[int, Members]] = {}
        self.changes = 0

    def applied(self, node: int, group: int, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.kind is not EntryKind.CONF or entry.members is None:
                continue
            index, before = self.newest.get(group, (0, None))
            if entry.index <= index:
                continue
            self.newest[group] = (entry.index, entry.members)
            self.changes += 1
            self._one_each(group, entry.members)
            if before is not None:
                self._still_quorate(group, before, entry.members)

    @staticmethod
    def _one_each(group: int, members: Members) -> None:
        replicas = {*members.voters, *members.learners, *members.outgoing}
        if len({node_of(replica) for replica in replicas}) != len(replicas):
            raise SafetyViolation(f"group {group} has two replicas on one node: {members}")

    def _still_quorate(self, group: int, before: Members, after: Members) -> None:
        """No change of members takes a shard's quorum from it."""
        gone = self._cluster.gone_numbers()

        def quorate(replicas: tuple[int, ...]) -> bool:
            return has_quorum(sum(node_of(replica) not in gone for replica in replicas), len(replicas))

        if quorate(before.outgoing or before.voters) and not quorate(after.voters):
            raise SafetyViolation(
                f"group {group} lost its quorum to a change from {before} to {after}, gone {sorted(gone)}"
            )


class Views:
    """Of every process's view of the map: it only moves forward for as long as the process lives."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._seen: dict[tuple[str, int], tuple[int, dict[int, int]]] = {}
        self.looks = 0

    def look(self) -> None:
        for gateway in self._cluster.gateways:
            if gateway.alive and gateway.maps is not None:
                current = gateway.maps.current
                routes = (route for route in current.routes if route is not None)
                epochs = {current.shards[route.shard_id].detail.group_id: route.epoch for route in routes}
                self._forward(gateway.name, gateway.incarnation, current.version, epochs)
        for node in self._cluster.storages:
            if node.alive:
                epochs = {group: shard.epoch for group, shard in node.model.view.shards.items()}
                self._forward(node.name, node.incarnation, node.model.version, epochs)

    def _forward(self, name: str, incarnation: int, version: int, epochs: dict[int, int]) -> None:
        self.looks += 1
        known_version, known = self._seen.get((name, incarnation), (0, {}))
        back = [group for group, epoch in epochs.items() if epoch < known.get(group, 0)]
        if version < known_version or back:
            raise SafetyViolation(
                f"{name}'s map went back from version {known_version} to {version}, epochs of the groups {back}"
            )
        self._seen[name, incarnation] = (version, epochs)
