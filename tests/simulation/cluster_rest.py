"""Is the cluster whole? What is to be true some time after the last fault, in the order in which it comes true."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flotta_coordinator.core.placement import may_take_replicas
from flotta_coordinator.core.state import ClusterState, NodeStatus, Phase, Shard

if TYPE_CHECKING:
    from cluster_storage import StorageProcess
    from cluster_world import Cluster


def unsettled(cluster: Cluster, *, idle: bool) -> str:
    """What is not at rest yet, or not whole; empty if everything is. `idle`: nobody asks anything any more."""
    leader = cluster.leader()
    if leader is None or (state := leader.state()) is None:
        return "no coordinator leads"
    others = [node.state() for node in cluster.coordinators]
    if any(other != state for other in others):
        return f"coordinators differ: {[None if other is None else other.sequence for other in others]}"
    if state.partitioning is None:
        return "the shards were never created"
    if len(state.shards) != state.partitioning.num_shards:
        return f"{len(state.shards)} shards, {state.partitioning.num_shards} in the table"
    return (
        _nodes(cluster, state)
        or next((trouble for shard in state.shards.values() if (trouble := _shard(cluster, state, shard, idle))), "")
        or _strays(cluster, state)
        or _views(cluster, state)
        or (_waiting(cluster) if idle else "")
    )


def _nodes(cluster: Cluster, state: ClusterState) -> str:
    for node in cluster.storages:
        record = state.nodes.get(node.name)
        if record is None:
            continue
        expected = NodeStatus.DEAD if node.gone else NodeStatus.ALIVE
        if record.status is not expected:
            return f"{node.name} is {record.status.name}, and should be {expected.name}"
    return ""


def _shard(cluster: Cluster, state: ClusterState, shard: Shard, idle: bool) -> str:
    """Where it is wanted, as often as it is wanted, and the same everywhere."""
    if shard.phase is not Phase.ACTIVE or shard.targets:
        return f"{shard.shard_id} is {shard.phase.name}, moving to {[one.node_id for one in shard.targets]}"
    wanted = state.tables[shard.table].replication_factor
    takers = sum(may_take_replicas(node) for node in state.nodes.values())
    by_name = {node.name: node for node in cluster.storages}
    holders = [by_name[member.node_id] for member in shard.members if not by_name[member.node_id].gone]
    if len(holders) < min(wanted, takers) or len(shard.members) > wanted:
        return (
            f"{shard.shard_id} is on {[member.node_id for member in shard.members]}, {wanted} wanted, {takers} takers"
        )
    if len(holders) < len(shard.members) and takers >= wanted:
        return f"{shard.shard_id} still names a node that is gone"
    leader = by_name.get(shard.leader)
    if leader is None or not _leads(leader, shard.group_id):
        return f"{shard.shard_id} is not led by {shard.leader or 'anybody'}"
    contents = set()
    for member in shard.members:
        node = by_name[member.node_id]
        if node.gone:
            continue
        replica = node.table.of_group(shard.group_id)
        if replica is None or replica.replica != member.replica_id:
            return f"{shard.shard_id}: {node.name} does not hold {member.replica_id:#x}"
        if shard.parent or shard.order or replica.has_strangers() or replica.is_noted():
            return f"{shard.shard_id}: its division, or what it copies, is not done with on {node.name}"
        members = replica.machine.members()
        if set(members.voters) != {one.replica_id for one in shard.members} or members.learners or members.outgoing:
            return f"{shard.shard_id}: {node.name} has {members}"
        contents.add(replica.machine.applied_index())
    return f"{shard.shard_id}: applied indexes {sorted(contents)}" if idle and len(contents) > 1 else ""


def _leads(node: StorageProcess, group: int) -> bool:
    role = node.backend.host.role(group) if node.alive and node.backend is not None else None
    return role is not None and role.is_leader


def _strays(cluster: Cluster, state: ClusterState) -> str:
    """No data where the map knows of none."""
    for node in cluster.storages:
        if node.alive and node.backend is not None:
            for group, kept in node.backend.manager.state.replicas.items():
                shard = next((one for one in state.shards.values() if one.group_id == group), None)
                if shard is None or all(member.replica_id != kept.replica for member in shard.members):
                    return f"{node.name} still has {kept.replica:#x} of {kept.shard_id}"
    return ""


def _views(cluster: Cluster, state: ClusterState) -> str:
    for gateway in cluster.gateways:
        if gateway.maps is None or gateway.maps.current.version != state.map_version:
            return f"{gateway.name} has another map than version {state.map_version}"
        for shard in state.shards.values():
            route = gateway.maps.current.routes[shard.shard_index]
            if route is None or (route.epoch, route.leader) != (shard.epoch, state.nodes[shard.leader].address):
                return f"{gateway.name} routes {shard.shard_id} by {route}"
    for node in cluster.storages:
        if node.alive and node.name in state.nodes and node.model.version != state.map_version:
            return f"{node.name} has version {node.model.version} of the map, not {state.map_version}"
    return ""


def _waiting(cluster: Cluster) -> str:
    if not all(client.idle for client in (*cluster.clients, cluster.scans)):
        return "a client still waits"
    waiting = {node.name: node.backend.host.waiting() for node in cluster.storages if node.alive and node.backend}
    return f"requests without an answer: {waiting}" if any(waiting.values()) else ""
