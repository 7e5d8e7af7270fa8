"""Whether the replicas of every shard hold the same: digests of all of them, compared at one index of the log.

A digest is taken of a frozen view, at whatever index the replica is; only digests of one index say anything about each
other. So a shard whose replicas were at different ones is asked again, after a pause, for as long as there is patience;
one that is written to all the while stays BUSY, which is no fault.
"""

from __future__ import annotations

import asyncio
from typing import Final

from flotta_proto.flotta import storage_pb2
from flotta_proto.kvdb import coordinator_pb2
from flotta_runtime.errors import PreconditionFailed

from flotta_admin.coordinator import Coordinators
from flotta_admin.core import map_checks, models
from flotta_admin.core.convert import natural_key
from flotta_admin.probe import NodeOrders

TRIES: Final = 12
PAUSE_S: Final = 0.25
SHARDS_AT_ONCE: Final = 2


async def check(coordinators: Coordinators, orders: NodeOrders) -> models.Check:
    """The whole cluster, looked at from here."""
    state = await coordinators.state()
    if not state.shards:
        raise PreconditionFailed("there are no shards yet; send POST /admin/config/shard-init first")
    wanted = [name for name, one in state.shards.items() if one.detail.phase != coordinator_pb2.ShardDetail.AWAITED]
    slots = asyncio.Semaphore(SHARDS_AT_ONCE)

    async def look(shard_id: str) -> models.CheckedShard:
        async with slots:
            return await _check_shard(coordinators, orders, shard_id)

    shards = await asyncio.gather(*(look(shard_id) for shard_id in sorted(wanted, key=natural_key)))
    wrong = [f"{one.shard_id}: {one.text}" for one in shards if one.state in ("DIFFER", "SILENT")]
    return models.Check(
        map_version=state.map_version,
        problems=[*map_checks.broken(state), *wrong, *map_checks.troubles(state)],
        shards=shards,
    )


async def _check_shard(coordinators: Coordinators, orders: NodeOrders, shard_id: str) -> models.CheckedShard:
    found = models.CheckedShard(shard_id=shard_id, state="SILENT", text="it is gone from the map", replicas=[])
    for attempt in range(TRIES):
        if attempt:
            await asyncio.sleep(PAUSE_S)
        state = await coordinators.state()
        if shard_id not in state.shards:
            return found
        found = _judged(shard_id, await _digests(state, orders, shard_id))
        if found.state in ("AGREE", "DIFFER"):
            return found
    return found


async def _digests(
    state: coordinator_pb2.ClusterState, orders: NodeOrders, shard_id: str
) -> dict[str, storage_pb2.ReplicaDigest | str]:
    """By node; a sentence where there is none."""
    placed = [replica.node_id for replica in state.shards[shard_id].detail.members if replica.node_id in state.nodes]
    answers = await asyncio.gather(*(orders.digest(state.nodes[node_id].address, shard_id) for node_id in placed))
    return dict(zip(placed, answers, strict=True))


def _judged(shard_id: str, found: dict[str, storage_pb2.ReplicaDigest | str]) -> models.CheckedShard:
    replicas = [_replica(node_id, answer) for node_id, answer in sorted(found.items())]
    digests = [answer for answer in found.values() if not isinstance(answer, str)]
    by_index: dict[int, set[tuple[bytes, int, int]]] = {}
    for one in digests:
        by_index.setdefault(one.applied_index, set()).add((one.sha256, one.keys, one.epoch))
    silent = [one for one in replicas if one.wrong]
    state, text = "AGREE", "all replicas hold the same"
    if any(len(contents) > 1 for contents in by_index.values()):
        index = next(index for index, contents in by_index.items() if len(contents) > 1)
        state, text = "DIFFER", f"replicas that have applied the log up to {index} hold different rows"
    elif silent or not digests:
        told = ", ".join(f"{one.node_id}: {one.wrong}" for one in silent) or "there is no replica"
        state, text = "SILENT", f"not every replica could be looked at ({told})"
    elif len(by_index) > 1:
        state, text = "BUSY", "it is written to, so its replicas were never at one index"
    return models.CheckedShard(shard_id=shard_id, state=state, text=text, replicas=replicas)


def _replica(node_id: str, answer: storage_pb2.ReplicaDigest | str) -> models.CheckedReplica:
    if isinstance(answer, str):
        return models.CheckedReplica(node_id=node_id, applied_index=0, keys=0, sha256="", wrong=answer)
    return models.CheckedReplica(
        node_id=node_id,
        applied_index=answer.applied_index,
        keys=answer.keys,
        sha256=answer.sha256.hex(),
        wrong="",
    )
