"""The client's view of the cluster: an immutable map, and how a delta or a full state makes the next one.

Invariants:
- The version only moves forward; an older or equal state leaves the view as it is (the same object).
- A delta is taken only when it tells everything between the view's version and its own.
- A state of another cluster is refused: its versions and epochs mean nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flotta_proto.kvdb.coordinator_pb2 import DEAD, ClusterState, NodeRecord, ShardMapDelta, ShardRecord


class ForeignClusterError(Exception):
    """A coordinator of another cluster answered."""


def key_hash(key: bytes) -> int:
    """The hash that says which shard a key belongs to: 31·h + b from h = 1, bytes signed, 32 bits that wrap; 0 for an
    empty key."""
    if not key:
        return 0
    found = 1
    for byte in key:
        found = (found * 31 + (byte if byte < 128 else byte - 256)) & 0xFFFFFFFF
    return found if found < 1 << 31 else found - (1 << 32)


@dataclass(frozen=True, slots=True)
class Route:
    """Where the operations of one shard go. Addresses are host:port."""

    shard_id: str
    epoch: int
    leader: str  # empty: not known, or its node is dead
    replicas: tuple[str, ...]  # in map order, living nodes before dead ones
    shard_count: int = 0  # how many there are, by which the key's was found


@dataclass(frozen=True, slots=True)
class ShardMap:
    """One version of the map."""

    version: int = 0
    cluster_id: str = ""
    num_shards: int = 0
    replication_factor: int = 0
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    shards: Mapping[str, ShardRecord] = field(default_factory=dict)

    def route_of(self, key: bytes) -> Route | None:
        """The route of a key; None when its shard is not in the map."""
        if not self.num_shards:
            return None
        hashed, count = key_hash(key), self.num_shards
        record = self.shards.get(f"shard-{hashed % self.num_shards}")
        divided = record.detail.shard_count if record is not None else 0
        if divided > self.num_shards and divided % self.num_shards == 0:  # it has, and not yet the whole table
            count = divided
            record = self.shards.get(f"shard-{hashed % divided}")
        if record is None:
            return None
        living: list[str] = []
        dead: list[str] = []
        for node_id in record.replicas:
            node = self.nodes.get(node_id)
            if node is not None and node.address:
                (dead if node.status == DEAD else living).append(node.address)
        leader = self.nodes.get(record.leader)
        address = leader.address if leader is not None and leader.status != DEAD else ""
        return Route(record.shard_id, record.epoch, address, (*living, *dead), count)

    def with_state(self, state: ClusterState) -> ShardMap:
        """The view after a full state; this very object when the state is not newer."""
        if self.cluster_id and state.cluster_id and state.cluster_id != self.cluster_id:
            raise ForeignClusterError(
                f"the coordinator belongs to cluster {state.cluster_id}, this client to {self.cluster_id}"
            )
        if state.map_version <= self.version:
            return self
        return ShardMap(
            state.map_version,
            state.cluster_id or self.cluster_id,
            state.partitioning.num_shards,
            state.partitioning.replication_factor,
            dict(state.nodes),
            dict(state.shards),
        )

    def with_delta(self, delta: ShardMapDelta) -> ShardMap | None:
        """The view after a delta of a watch; this very object for heartbeats and old news, None for a delta that does
        not join on to it: the full state must be fetched then."""
        if delta.HasField("full_state"):
            return self.with_state(delta.full_state)
        if delta.new_map_version <= self.version:
            return self
        if not self._covers(delta):
            return None
        nodes, shards = dict(self.nodes), dict(self.shards)
        for node_id in delta.removed_nodes:
            nodes.pop(node_id, None)
        for shard_id in delta.removed_shards:
            shards.pop(shard_id, None)
        nodes.update((node.node_id, node) for node in delta.nodes)
        shards.update((shard.shard_id, shard) for shard in delta.shards)
        num_shards, replication_factor = self.num_shards, self.replication_factor
        if delta.HasField("partitioning"):
            num_shards = delta.partitioning.num_shards
            replication_factor = delta.partitioning.replication_factor
        return ShardMap(delta.new_map_version, self.cluster_id, num_shards, replication_factor, nodes, shards)

    def _covers(self, delta: ShardMapDelta) -> bool:
        """A previous version of 0 is a coordinator that sends ids only."""
        if delta.previous_map_version == 0 or delta.previous_map_version > self.version:
            return False
        told_shards = {shard.shard_id for shard in delta.shards}.union(delta.removed_shards)
        told_nodes = {node.node_id for node in delta.nodes}.union(delta.removed_nodes)
        return told_shards.issuperset(delta.changed_shards) and told_nodes.issuperset(delta.changed_nodes)
