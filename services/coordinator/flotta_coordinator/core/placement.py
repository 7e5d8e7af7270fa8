"""Where the first replicas of a table go: KvDB's round robin, over node ids in sorted order.

Replica j of shard i is `nodes[(i + j) mod N]` for j < min(replication factor, N); replica 0 is the preferred leader,
so leaders are spread evenly too. Pure: the same nodes and numbers give the same placement on every member.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flotta_coordinator.core.state import Node, NodeStatus


def candidates(nodes: Iterable[Node]) -> list[str]:
    """Ids of the nodes that may be given replicas now, sorted."""
    return sorted(node.node_id for node in nodes if may_take_replicas(node))


def may_take_replicas(node: Node) -> bool:
    return node.placeable and node.status is NodeStatus.ALIVE and not node.draining


def awaited(nodes: Iterable[Node]) -> list[str]:
    """Ids of the nodes that were announced lately and have not sent a heartbeat yet, sorted."""
    return sorted(node.node_id for node in nodes if not node.placeable and node.status is NodeStatus.ALIVE)


def place(node_ids: Sequence[str], num_shards: int, replication_factor: int) -> list[tuple[str, ...]]:
    """For each shard the nodes of its replicas, preferred leader first."""
    count = len(node_ids)
    copies = min(replication_factor, count)
    return [tuple(node_ids[(shard + copy) % count] for copy in range(copies)) for shard in range(num_shards)]
