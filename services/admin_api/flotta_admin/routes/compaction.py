"""The order to compact, handed to the nodes that hold what is meant.

Nodes are asked beside one another, and queue the work; how much of it is left is in their metrics
(`flotta_storage_compactions_waiting`). A DEAD node is asked only when it is named: it has nothing to serve from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from flotta_proto.kvdb.coordinator_pb2 import DEAD, ClusterState
from flotta_runtime.errors import NotFound, PreconditionFailed, Unavailable

from flotta_admin.routes import Context


async def order(context: Context, shard_ids: Collection[str], node_ids: Collection[str]) -> int:
    """How many replicas are now to be compacted. Unavailable when a node did not take the order: others may have, and
    repeating it does no harm."""
    state = await context.coordinators.state()
    asked = _nodes(state, shard_ids, node_ids)
    answers = await asyncio.gather(
        *(context.orders.compact(state.nodes[node_id].address, sorted(shard_ids)) for node_id in asked)
    )
    failed = [f"{node_id}: {why}" for node_id, (_, why) in zip(asked, answers, strict=True) if why]
    if failed:
        raise Unavailable(
            f"{len(failed)} of {len(asked)} nodes did not take the order, repeat it later: {'; '.join(failed[:3])}"
        )
    return sum(count for count, _ in answers)


def _nodes(state: ClusterState, shard_ids: Collection[str], node_ids: Collection[str]) -> list[str]:
    """Whom to ask."""
    if not state.shards:
        raise PreconditionFailed("there are no shards yet; send POST /admin/config/shard-init first")
    for shard_id in shard_ids:
        if shard_id not in state.shards:
            raise NotFound(f"target_shards: shard not found: {shard_id[:64]}")
    for node_id in node_ids:
        if node_id not in state.nodes:
            raise NotFound(f"target_nodes: node not found: {node_id[:64]}")
    chosen = set(node_ids) or {node_id for node_id, node in state.nodes.items() if node.status != DEAD}
    if shard_ids:
        chosen &= {node_id for shard_id in shard_ids for node_id in state.shards[shard_id].replicas}
    return sorted(chosen)
