"""Where the first replicas of a table go: KvDB's round robin, over node ids in sorted order, unless zones forbid it.

Replica j of shard i is `nodes[(i + j) mod N]` for j < min(replication factor, N); replica 0 is the preferred leader,
so leaders are spread evenly too. KvDB knows no zones. Where some nodes share a zone and others do not, the replicas of
a shard are dealt to as many zones as there are, and within a zone in turn. Pure: the same nodes and numbers give the
same placement on every member.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

from flotta_coordinator.core.state import Node, NodeStatus


def candidates(nodes: Iterable[Node]) -> list[str]:
    """Ids of the nodes that may be given replicas now, sorted."""
    return sorted(node.node_id for node in nodes if may_take_replicas(node))


def may_take_replicas(node: Node) -> bool:
    return node.placeable and node.status is NodeStatus.ALIVE and not node.draining


def awaited(nodes: Iterable[Node]) -> list[str]:
    """Ids of the nodes that were announced lately and have not sent a heartbeat yet, sorted."""
    return sorted(node.node_id for node in nodes if not node.placeable and node.status is NodeStatus.ALIVE)


def place(
    node_ids: Sequence[str], num_shards: int, replication_factor: int, zones: Mapping[str, str]
) -> list[tuple[str, ...]]:
    """For each shard the nodes of its replicas, preferred leader first. `zones` names the zone of each node."""
    count = len(node_ids)
    copies = min(replication_factor, count)
    if not shared_zones(zones[node_id] for node_id in node_ids):
        return [tuple(node_ids[(shard + copy) % count] for copy in range(copies)) for shard in range(num_shards)]
    return _dealt_to_zones(node_ids, num_shards, copies, zones)


def shared_zones(zones: Iterable[str]) -> bool:
    """Whether some nodes share a zone and others do not: only then does it matter which ones a shard is put on."""
    sizes = Counter(zones)
    return len(sizes) > 1 and max(sizes.values()) > 1


def _dealt_to_zones(
    node_ids: Sequence[str], num_shards: int, copies: int, zones: Mapping[str, str]
) -> list[tuple[str, ...]]:
    """No zone gets its second replica of a shard before every other has one, and so on; what holds least for its
    size comes first. A shard is led where fewest are, in the round robin's order."""
    members: dict[str, list[str]] = {}
    for node_id in node_ids:
        members.setdefault(zones[node_id], []).append(node_id)
    turns = {zone: cycle(found) for zone, found in members.items()}
    index = {node_id: number for number, node_id in enumerate(node_ids)}
    queue = [(0.0, zone) for zone in sorted(members)]  # a heap: replicas for each node of the zone
    held: Counter[str] = Counter()
    leads: Counter[str] = Counter()
    placed = []
    for shard in range(num_shards):
        chosen: list[str] = []
        later: list[tuple[float, str]] = []
        full: list[tuple[float, str]] = []  # each node of the zone has a replica of this shard
        turn = 1
        while len(chosen) < copies:
            if not queue:
                heapq.heapify(later)
                queue, later, turn = later, [], turn + 1
            _, zone = heapq.heappop(queue)
            chosen.append(next(turns[zone]))
            held[zone] += 1
            (later if turn < len(members[zone]) else full).append((held[zone] / len(members[zone]), zone))
        for entry in (*later, *full):
            heapq.heappush(queue, entry)
        leader = min((leads[node_id], (index[node_id] - shard) % len(node_ids), node_id) for node_id in chosen)[2]
        leads[leader] += 1
        placed.append((leader, *(node_id for node_id in chosen if node_id != leader)))
    return placed
