"""A shard that lost its quorum for good: asks whoever may have a replica, and orders the recovery from the best one.

Every node is asked, members too that the coordinators take for DEAD: one that answers is none.
"""

from __future__ import annotations

import asyncio

from flotta_proto.flotta import operator_pb2, storage_pb2
from flotta_proto.kvdb import coordinator_pb2
from flotta_runtime.errors import NotFound, PreconditionFailed

from flotta_admin.coordinator import Coordinators
from flotta_admin.core import convert, models
from flotta_admin.core.recovery import Survivor, choose
from flotta_admin.http_errors import check_accepted
from flotta_admin.probe import NodeOrders

_SEQUENCE_MASK = (1 << 32) - 1  # the part of a replica id that grows


async def recover(coordinators: Coordinators, orders: NodeOrders, shard_id: str, *, dry_run: bool) -> models.Recovery:
    """Order it, or only say what would be done. PreconditionFailed while a quorum could come back."""
    state = await coordinators.state()
    shard = state.shards.get(shard_id)
    if shard is None:
        raise NotFound(f"Shard not found: {shard_id[:64]}", shard_id=shard_id[:64])
    placed = {replica.node_id for replica in (*shard.detail.members, *shard.detail.targets)}
    dead = {node_id for node_id, node in state.nodes.items() if node.status == coordinator_pb2.DEAD}
    asked = sorted(node_id for node_id in state.nodes if node_id in placed or node_id not in dead)
    answers = await asyncio.gather(*(orders.survey(state.nodes[node_id].address, shard_id) for node_id in asked))
    survivors = [
        _survivor(node_id, answer, shard.detail)
        for node_id, answer in zip(asked, answers, strict=True)
        if answer is not None and answer.replica_id and answer.group_id == shard.detail.group_id
    ]
    choice = choose(shard_id, survivors, dead)
    if isinstance(choice, str):
        raise PreconditionFailed(f"shard_id: {choice}", shard_id=shard_id)
    best = choice.best
    request = operator_pb2.RecoverShardRequest(
        shard_id=shard_id,
        epoch=shard.epoch,
        node_id=best.node_id,
        replica_id=best.replica_id,
        last_index=best.last_index,
        seen_term=choice.seen_term,
        seen_epoch=choice.seen_epoch,
        dry_run=dry_run,
    )
    reply = await coordinators.order("RecoverShard", request)
    check_accepted(reply)
    made = convert.order(reply)
    return models.Recovery(
        message=made.message,
        map_version=made.map_version,
        operation=made.operation,
        dry_run=dry_run,
        shard_id=shard_id,
        node_id=best.node_id,
        last_index=best.last_index,
        survivors=[
            models.Survivor(node_id=one.node_id, last_index=one.last_index, applied_index=one.applied_index)
            for one in survivors
        ],
    )


def _survivor(node_id: str, answer: storage_pb2.SurveyResponse, detail: coordinator_pb2.ShardDetail) -> Survivor:
    return Survivor(
        node_id=node_id,
        replica_id=answer.replica_id,
        term=answer.term,
        last_term=answer.last_term,
        last_index=answer.last_index,
        applied_index=answer.applied_index,
        epoch=answer.epoch,
        leader_replica=answer.leader_replica,
        voters=tuple(answer.voters),
        outgoing=tuple(answer.outgoing),
        behind=(answer.shard_index, answer.shard_count) != (detail.shard_index, detail.shard_count),
        given_up=answer.replica_id & _SEQUENCE_MASK < detail.replica_floor,
    )
