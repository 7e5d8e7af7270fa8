"""The shard map as a storage node keeps it: full states and deltas in, a `MapView` out.

Invariants: the version only moves forward; a delta is taken only when it continues exactly what is here; the map of
another cluster is never taken. Values are replaced, not changed, so a view handed out stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence

from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_runtime.hashing import home_count, key_hash

from flotta_storage.core.replicas import EMPTY_MAP, Heir, MapView, ShardView


class ForeignMapError(Exception):
    """A map of another cluster. The text is one sentence."""


class MapModel:
    """The newest map this node has seen."""

    def __init__(self, cluster_id: str = "") -> None:
        self.cluster_id = cluster_id  # empty: not known yet, the first full state tells
        self.num_shards = 0
        self._nodes: dict[str, pb.NodeRecord] = {}
        self._shards: dict[str, ShardView] = {}
        self._children: Mapping[str, list[ShardView]] = {}
        self._sources: Mapping[str, list[ShardView]] = {}
        self._version = 0
        self._view = EMPTY_MAP
        self._known = asyncio.Event()

    @property
    def version(self) -> int:
        return self._version

    @property
    def view(self) -> MapView:
        return self._view

    async def known(self, timeout_ms: int) -> bool:
        """Wait for the first map."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000):
                await self._known.wait()
        return self._known.is_set()

    def shard(self, shard_id: str) -> ShardView | None:
        return self._shards.get(shard_id)

    def home_of(self, key: bytes) -> str:
        """The shard of a key of the default table; empty while there are no shards."""
        if not self.num_shards:
            return ""
        hashed = key_hash(key)
        first = self._shards.get(f"shard-{hashed % self.num_shards}")
        return f"shard-{hashed % home_count(self.num_shards, first.shard_count if first is not None else 0)}"

    def children(self, shard_id: str) -> Sequence[ShardView]:
        """Shards that are born of this one, until each of their voters has been heard from."""
        return self._children.get(shard_id, ())

    def sources(self, shard_id: str) -> Sequence[ShardView]:
        """Shards whose keys this one is to take over, in the order of their classes."""
        return self._sources.get(shard_id, ())

    def address(self, node_id: str) -> str:
        """host:port of a node; empty if it is not known."""
        return self._view.nodes.get(node_id, "")

    def address_of_number(self, node_num: int) -> str:
        return self.address(self._view.numbers.get(node_num, ""))

    def take_state(self, state: pb.ClusterState) -> bool:
        """A full map; False if it is not newer. ForeignMapError for another cluster's."""
        if self.cluster_id and state.cluster_id and state.cluster_id != self.cluster_id:
            raise ForeignMapError(
                f"this node belongs to cluster {self.cluster_id}, but a coordinator sent the map of cluster "
                f"{state.cluster_id}"
            )
        if state.map_version <= self._version:
            return False
        self.cluster_id = self.cluster_id or state.cluster_id
        self._nodes = dict(state.nodes)
        self._shards = {shard_id: shard_view(record) for shard_id, record in state.shards.items()}
        self.num_shards = state.partitioning.num_shards
        self._settle(state.map_version)
        return True

    def take_delta(self, delta: pb.ShardMapDelta) -> bool | None:
        """True: newer; False: nothing new (a heartbeat, or late); None: something is missing, fetch the full map."""
        if delta.HasField("full_state"):
            return self.take_state(delta.full_state)
        if delta.new_map_version <= self._version:
            return False
        changed_without_records = delta.changed_shards and not delta.shards
        if delta.previous_map_version > self._version or not self._version or changed_without_records:
            return None
        self._nodes = {**self._nodes, **{record.node_id: record for record in delta.nodes}}
        self._shards = {**self._shards, **{record.shard_id: shard_view(record) for record in delta.shards}}
        for node_id in delta.removed_nodes:
            self._nodes.pop(node_id, None)
        for shard_id in delta.removed_shards:
            self._shards.pop(shard_id, None)
        if delta.HasField("partitioning"):
            self.num_shards = delta.partitioning.num_shards
        self._settle(delta.new_map_version)
        return True

    def _settle(self, version: int) -> None:
        self._version = version
        children: dict[str, list[ShardView]] = {}
        sources: dict[str, list[ShardView]] = {}
        for shard in sorted(self._shards.values(), key=lambda one: one.shard_index):
            if shard.parent:
                children.setdefault(shard.parent, []).append(shard)
            if shard.into:
                sources.setdefault(shard.into, []).append(shard)
        self._children, self._sources = children, sources
        self._known.set()
        self._view = MapView(
            cluster_id=self.cluster_id,
            version=version,
            shards={shard.group: shard for shard in self._shards.values() if shard.group},
            nodes={node_id: record.address for node_id, record in self._nodes.items()},
            numbers={record.detail.node_num: node_id for node_id, record in self._nodes.items() if _numbered(record)},
        )


def _numbered(record: pb.NodeRecord) -> bool:
    return record.detail.node_num != 0


def _replicas(refs: Iterable[pb.ReplicaRef]) -> Mapping[int, str]:
    return {ref.replica_id: ref.node_id for ref in refs}


def _heir(heir: pb.Heir) -> Heir:
    return Heir(heir.node_id, heir.replica_id, heir.from_replica, heir.term_min, heir.epoch_min)


def shard_view(record: pb.ShardRecord) -> ShardView:
    """A shard's record, as decisions need it."""
    detail = record.detail
    return ShardView(
        shard_id=record.shard_id,
        group=detail.group_id,
        creating=detail.phase == pb.ShardDetail.CREATING,
        awaited=detail.phase == pb.ShardDetail.AWAITED,
        parent=detail.parent,
        sequence=detail.sequence,
        shard_index=detail.shard_index,
        shard_count=detail.shard_count,
        table=detail.table,
        revision_base=detail.revision_base,
        epoch=record.epoch,
        leader=record.leader,
        target_leader=detail.target_leader,
        birth=_replicas(detail.birth),
        members=_replicas(detail.members),
        targets=_replicas(detail.targets),
        replica_floor=detail.replica_floor,
        heir=_heir(detail.heir) if detail.HasField("heir") else None,
        birth_shard_count=detail.birth_shard_count,
        into=detail.into,
        order=detail.order,
        sealing=detail.sealing,
        absorbed=frozenset(detail.absorbed),
    )
