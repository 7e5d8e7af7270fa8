"""What must hold of any shard map, and what is wrong with the cluster it describes. Pure.

`broken` sentences name what no healthy coordinator would ever write; `troubles` name what happens and passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from flotta_proto.kvdb import coordinator_pb2 as pb

PARTS_MAX = 4096  # the most shards there can be
_SEQUENCE_BITS = 32


def broken(state: pb.ClusterState) -> Iterator[str]:
    """Sentences about what cannot be."""
    born = [shard.detail for shard in state.shards.values() if shard.detail.phase != pb.ShardDetail.AWAITED]
    if not _cover_once(born):
        yield f"the map has {len(born)} shards, which do not own every key once"
    groups = [shard.detail.group_id for shard in state.shards.values()]
    if len(set(groups)) != len(groups):
        yield "two shards of the map are one Raft group"
    numbers = [node.detail.node_num for node in state.nodes.values() if node.detail.node_num]
    if len(set(numbers)) != len(numbers):
        yield "two nodes of the map have one number"
    for shard_id, shard in sorted(state.shards.items()):
        yield from _of_shard(state, shard_id, shard)


def _cover_once(shards: Sequence[pb.ShardDetail]) -> bool:
    """While a table divides some shards count fewer parts of the keys than others."""
    parts = math.lcm(*(shard.shard_count for shard in shards if shard.shard_count))
    if parts > PARTS_MAX:
        return False
    owned = [
        part for shard in shards if shard.shard_count for part in range(shard.shard_index, parts, shard.shard_count)
    ]
    return sorted(owned) == list(range(parts))


def _of_shard(state: pb.ClusterState, shard_id: str, shard: pb.ShardRecord) -> Iterator[str]:
    detail = shard.detail
    if not detail.members:
        yield f"{shard_id} has no replica"
    for what, replicas in (("replicas", detail.members), ("replicas it moves to", detail.targets)):
        names = [replica.node_id for replica in replicas]
        if len(set(names)) != len(names):
            yield f"two of the {what} of {shard_id} are on one node"
        for replica in replicas:
            node = state.nodes.get(replica.node_id)
            if node is None:
                yield f"{shard_id} has a replica on {replica.node_id}, which is not on the map"
            elif node.detail.node_num != replica.replica_id >> _SEQUENCE_BITS:
                yield f"replica {replica.replica_id} of {shard_id} is not numbered for {replica.node_id}"
    if shard.leader and shard.leader not in {replica.node_id for replica in detail.members}:
        yield f"{shard_id} is led by {shard.leader}, which has no replica of it"


def troubles(state: pb.ClusterState) -> Iterator[str]:
    """Sentences about what is not as it should be."""
    for node_id, node in sorted(state.nodes.items()):
        if node.status != pb.ALIVE:
            yield f"{node_id} is {pb.NodeStatus.Name(node.status)}"
    for shard_id, shard in sorted(state.shards.items()):
        wanted, found = state.partitioning.replication_factor, len(shard.detail.members)
        if shard.detail.HasField("heir"):
            yield f"{shard_id} is being recovered from {shard.detail.heir.node_id}"
        elif shard.detail.phase == pb.ShardDetail.AWAITED:
            continue  # it is being born
        elif not shard.leader:
            yield f"{shard_id} has no leader"
        if found != wanted and not shard.detail.targets:
            yield f"{shard_id} has {found} of {wanted} replicas"
