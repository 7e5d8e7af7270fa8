"""What changed from one version of the shard map to the next, a sentence for each node and shard."""

from __future__ import annotations

from dataclasses import dataclass

from flotta_proto.kvdb.coordinator_pb2 import NodeRecord, NodeStatus, ShardConfigState, ShardRecord

from flotta.shard_map import ShardMap


@dataclass(frozen=True, slots=True)
class Change:
    """`subject` is a node or a shard."""

    kind: str
    subject: str
    text: str


def changes(before: ShardMap, after: ShardMap) -> list[Change]:
    """Nodes first, each in the order of its id."""
    found = [
        Change("node", node_id, text)
        for node_id in sorted({*before.nodes, *after.nodes})
        for text in _node(before.nodes.get(node_id), after.nodes.get(node_id))
    ]
    found += [
        Change("shard", shard_id, text)
        for shard_id in sorted({*before.shards, *after.shards}, key=lambda one: (len(one), one))
        for text in _shard(before.shards.get(shard_id), after.shards.get(shard_id))
    ]
    if before.num_shards != after.num_shards:
        found.append(Change("cluster", "", f"shards {before.num_shards} → {after.num_shards}"))
    if before.replication_factor != after.replication_factor:
        text = f"replication factor {before.replication_factor} → {after.replication_factor}"
        found.append(Change("cluster", "", text))
    return found


def _node(before: NodeRecord | None, after: NodeRecord | None) -> list[str]:
    if after is None:
        return ["taken off the map"]
    status = NodeStatus.Name(after.status)
    if before is None:
        return [f"new, {status} at {after.address}" + (f" in zone {after.zone}" if after.zone else "")]
    found = []
    if before.status != after.status:
        found.append(f"{NodeStatus.Name(before.status)} → {status}")
    if before.address != after.address:
        found.append(f"address {before.address} → {after.address}")
    if before.zone != after.zone:
        found.append(f"zone {before.zone or 'none'} → {after.zone or 'none'}")
    return found


def _shard(before: ShardRecord | None, after: ShardRecord | None) -> list[str]:
    if after is None:
        return ["removed"]
    if before is None:
        return [f"new, on {', '.join(after.replicas)}, led by {after.leader or 'nobody yet'}"]
    found = []
    if before.config_state != after.config_state:
        state = ShardConfigState.Name
        found.append(f"{state(before.config_state)} → {state(after.config_state)}")
    if list(before.replicas) != list(after.replicas):
        found.append(f"replicas {', '.join(before.replicas)} → {', '.join(after.replicas)}")
    if before.leader != after.leader:
        found.append(f"leader {before.leader or 'nobody'} → {after.leader or 'nobody'}")
    if before.epoch != after.epoch:
        found.append(f"epoch {before.epoch} → {after.epoch}")
    return found
