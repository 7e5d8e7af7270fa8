"""The gateway's view of the cluster: an immutable map, and how a delta or a full state makes the next one.

Invariants:
- The version only moves forward; an older or equal state leaves the view as it is (the same object).
- A delta is taken only when it covers everything between the view's version and its own; otherwise it is a `Gap`,
  and the caller fetches the full state.
- Routes that did not change keep their identity across views, so "has this shard's route changed" is an `is`.
- A state of another cluster is refused: its versions and epochs mean nothing here.
- A key goes by its shard's own modulus: while the shards of a table divide, each of them leads to its children from the
  report of its division on, and no sooner; while they grow together, to those it takes over until it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flotta_proto.flotta.storage_pb2 import Operation
from flotta_proto.kvdb.coordinator_pb2 import (
    DEAD,
    ClusterState,
    NodeRecord,
    ShardMapDelta,
    ShardRecord,
)
from flotta_runtime.hashing import home_count, key_hash, key_hashes


class ForeignClusterError(Exception):
    """A coordinator of another cluster answered."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where the requests of one shard go. Addresses are host:port."""

    shard_id: str
    epoch: int
    leader: str  # empty: not known, or its node is dead
    replicas: tuple[str, ...]  # in map order, living nodes before dead ones
    shard_count: int = 0  # the modulus by which its keys are found
    # The part of an operation that is the same for all of the shard, serialised: its id and epoch.
    operation_head: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        head = Operation(shard_id=self.shard_id, epoch=self.epoch).SerializeToString()
        object.__setattr__(self, "operation_head", head)

    def candidates(self) -> tuple[str, ...]:
        """Every address worth asking, the leader's first."""
        if not self.leader:
            return self.replicas
        return (self.leader, *(address for address in self.replicas if address != self.leader))


@dataclass(frozen=True, slots=True)
class Gap:
    """A delta that does not join on to the view."""

    have_version: int
    delta_version: int


@dataclass(frozen=True, slots=True)
class ShardMap:
    """One version of the map. The records are shared between versions and never written to."""

    version: int = 0
    cluster_id: str = ""
    num_shards: int = 0
    replication_factor: int = 0
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    shards: Mapping[str, ShardRecord] = field(default_factory=dict)
    routes: tuple[Route | None, ...] = ()  # by residue class of the key hash, by the largest modulus of any shard

    @property
    def initialised(self) -> bool:
        """Whether there are shards to route to."""
        return self.num_shards > 0

    def route_of(self, key: bytes) -> Route | None:
        """The route of a key; None when its shard is not in the map."""
        return self.routes[key_hash(key) % len(self.routes)] if self.routes else None

    def route_at(self, index: int) -> Route | None:
        """The route of the shard with that place among all; also of one that no key is routed to yet. One that was
        taken over leads to the shard that has its keys."""
        route = self.routes[index] if index < len(self.routes) else None
        if route is not None and route.shard_id == f"shard-{index}":
            return route
        record = self.shards.get(f"shard-{index}")
        if record is not None:
            return _route(record, self.nodes, record.detail.shard_count)
        return self.routes[index % len(self.routes)] if self.routes else None

    def routes_of(self, keys: Sequence[bytes]) -> list[Route | None]:
        """The routes of many keys, hashed in one go."""
        count, routes = len(self.routes), self.routes
        return [routes[key_hash % count] for key_hash in key_hashes(keys)] if count else [None] * len(keys)

    def addresses(self) -> frozenset[str]:
        """The addresses of all nodes that hold replicas."""
        return frozenset(address for route in self.routes if route is not None for address in route.replicas)

    def with_state(self, state: ClusterState) -> ShardMap:
        """The view after a full state; this very object when the state is not newer."""
        self._check_cluster(state.cluster_id)
        if state.map_version <= self.version:
            return self
        return self._next(
            version=state.map_version,
            cluster_id=state.cluster_id or self.cluster_id,
            num_shards=state.partitioning.num_shards,
            replication_factor=state.partitioning.replication_factor,
            nodes=dict(state.nodes),
            shards=dict(state.shards),
        )

    def with_delta(self, delta: ShardMapDelta) -> ShardMap | Gap:
        """The view after a delta of the watch; this very object for heartbeats and old news."""
        if delta.HasField("full_state"):
            return self.with_state(delta.full_state)
        if delta.new_map_version <= self.version:
            return self
        if not self._covers(delta):
            return Gap(self.version, delta.new_map_version)
        nodes = dict(self.nodes)
        shards = dict(self.shards)
        for node_id in delta.removed_nodes:
            nodes.pop(node_id, None)
        for shard_id in delta.removed_shards:
            shards.pop(shard_id, None)
        nodes.update((node.node_id, node) for node in delta.nodes)
        shards.update((shard.shard_id, shard) for shard in delta.shards)
        repartitioned = delta.HasField("partitioning")
        return self._next(
            version=delta.new_map_version,
            cluster_id=self.cluster_id,
            num_shards=delta.partitioning.num_shards if repartitioned else self.num_shards,
            replication_factor=delta.partitioning.replication_factor if repartitioned else self.replication_factor,
            nodes=nodes,
            shards=shards,
        )

    def _covers(self, delta: ShardMapDelta) -> bool:
        """Whether the delta's records tell all that changed since this view.

        A previous version of 0 is a coordinator that sends ids only, or one that has not said; both need a fetch.
        """
        if delta.previous_map_version == 0 or delta.previous_map_version > self.version:
            return False
        told_shards = {shard.shard_id for shard in delta.shards}.union(delta.removed_shards)
        told_nodes = {node.node_id for node in delta.nodes}.union(delta.removed_nodes)
        return told_shards.issuperset(delta.changed_shards) and told_nodes.issuperset(delta.changed_nodes)

    def _check_cluster(self, cluster_id: str) -> None:
        if self.cluster_id and cluster_id and cluster_id != self.cluster_id:
            raise ForeignClusterError(
                f"the coordinator belongs to cluster {cluster_id}, this gateway serves cluster {self.cluster_id}"
            )

    def _next(
        self,
        *,
        version: int,
        cluster_id: str,
        num_shards: int,
        replication_factor: int,
        nodes: Mapping[str, NodeRecord],
        shards: Mapping[str, ShardRecord],
    ) -> ShardMap:
        known = {route.shard_id: route for route in self.routes if route is not None}
        made: dict[int, Route | None] = {}
        counts = _counts(num_shards, shards)
        homes = [residue % counts[residue % num_shards] for residue in range(math.lcm(*counts) if counts else 0)]
        for index in homes:
            if index not in made:
                record = shards.get(f"shard-{index}")
                fresh = _route(record, nodes, counts[index % num_shards]) if record is not None else None
                old = known.get(f"shard-{index}")
                made[index] = old if fresh == old else fresh
        routes = tuple(made[index] for index in homes)
        return ShardMap(version, cluster_id, num_shards, replication_factor, nodes, shards, routes)


def _counts(num_shards: int, shards: Mapping[str, ShardRecord]) -> list[int]:
    """By which modulus the keys of each residue class go: the table's, or that of the shard where it has divided."""
    firsts = (shards.get(f"shard-{index}") for index in range(num_shards))
    return [home_count(num_shards, first.detail.shard_count if first is not None else 0) for first in firsts]


def _route(record: ShardRecord, nodes: Mapping[str, NodeRecord], shard_count: int) -> Route:
    living: list[str] = []
    dead: list[str] = []
    for node_id in record.replicas:
        node = nodes.get(node_id)
        if node is not None and node.address:
            (dead if node.status == DEAD else living).append(node.address)
    leader = nodes.get(record.leader)
    leader_address = leader.address if leader is not None and leader.status != DEAD else ""
    return Route(record.shard_id, record.epoch, leader_address, (*living, *dead), shard_count)
