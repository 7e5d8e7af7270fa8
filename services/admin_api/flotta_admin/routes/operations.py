"""/admin/ops and the orders that begin long work: drain, decommission, rebalance, replication factor, moves.

KvDB's orders are answered with themselves, as KvDB does; the number of the operation is in a header.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from flotta_proto.flotta import operator_pb2 as pb
from flotta_runtime.errors import InvalidArgument, NotFound, PreconditionFailed

from flotta_admin import recovering
from flotta_admin.core import convert, models
from flotta_admin.core.succession_models import (
    CoordinatorRecovery,
    CoordinatorReplacement,
    RecoverCoordinatorsRequest,
    ReplaceCoordinatorRequest,
)
from flotta_admin.http_errors import check_accepted
from flotta_admin.routes import (
    BAD_REQUEST,
    CONFLICT,
    COORDINATOR,
    OPERATION_HEADER,
    UNKNOWN,
    Context,
    NodeIdPath,
    ShardIdPath,
)

REPLICAS_HEADER = "X-Replicas"
DEFAULT_TABLE = "default"
TablePath = Annotated[str, Path(min_length=1, max_length=255, description="The table, of which there is one: default.")]
OpNumber = Annotated[int, Path(ge=1, le=2**63 - 1, description="The operation's number.")]


def router(context: Context) -> APIRouter:
    """The routes over `context`."""
    routes = APIRouter(prefix="/admin", tags=["operations"], responses=COORDINATOR)
    refusals = {**BAD_REQUEST, **UNKNOWN, **CONFLICT}

    async def order(method: str, request: Any) -> models.Order:
        reply = await context.coordinators.order(method, request)
        check_accepted(reply)
        return convert.order(reply)

    @routes.post("/nodes/{node_id}/drain", responses=refusals)
    async def drain(node_id: NodeIdPath) -> models.Order:
        """Empty a node: leaderships leave it, then replicas; it serves until the last one has gone."""
        return await order("DrainNode", pb.DrainNodeRequest(node_id=node_id))

    @routes.delete("/nodes/{node_id}/drain", responses=refusals)
    async def undrain(node_id: NodeIdPath) -> models.Order:
        """End a drain or a decommission. What has left stays away until balance asks for it."""
        return await order("DrainNode", pb.DrainNodeRequest(node_id=node_id, cancel=True))

    @routes.post("/nodes/{node_id}/decommission", responses=refusals)
    async def decommission(node_id: NodeIdPath) -> models.Order:
        """Drain a node, and take it off the map once it is empty. Its id is never used again."""
        return await order("DrainNode", pb.DrainNodeRequest(node_id=node_id, remove=True))

    @routes.delete("/nodes/{node_id}", responses=refusals)
    async def remove(node_id: NodeIdPath) -> models.Order:
        """Take a node off the map that holds nothing and is DEAD or drained. Its id is never used again."""
        return await order("RemoveNode", pb.RemoveNodeRequest(node_id=node_id))

    @routes.post("/cluster/rebalance", responses=CONFLICT)
    async def rebalance() -> models.Order:
        """Let shards that were placed by hand be moved again, and level replicas and leaderships over the nodes."""
        return await order("Rebalance", pb.RebalanceRequest())

    async def trigger_rebalance(body: models.TriggerRequest, answer: Response) -> models.TriggerRequest:
        for field, targets in (("target_shards", body.target_shards), ("target_nodes", body.target_nodes)):
            if targets:
                raise InvalidArgument(f"{field}: a rebalance is of the whole cluster, so it must be empty", field=field)
        made = (await rebalance()).operation
        if made is not None:
            answer.headers[OPERATION_HEADER] = str(made.id)
        return body

    @routes.post("/shards/rebalance", responses={**BAD_REQUEST, **CONFLICT})
    @routes.post("/ops/rebalance", responses={**BAD_REQUEST, **CONFLICT})
    async def rebalance_as_in_kvdb(body: models.TriggerRequest, answer: Response) -> models.TriggerRequest:
        """As POST /admin/cluster/rebalance, with KvDB's body and answer."""
        return await trigger_rebalance(body, answer)

    async def trigger_compaction(body: models.TriggerRequest, answer: Response) -> models.TriggerRequest:
        count, number = await context.compactions.order(body.target_shards or (), body.target_nodes or ())
        answer.headers[REPLICAS_HEADER] = str(count)
        if number:
            answer.headers[OPERATION_HEADER] = str(number)
        return body

    @routes.post("/ops/compact", responses={**BAD_REQUEST, **UNKNOWN, **CONFLICT})
    async def compact(body: models.TriggerRequest, answer: Response) -> models.TriggerRequest:
        """Rewrite the files of replicas without what was deleted, expired or replaced; answered once that is
        queued. The number of the operation is in a header."""
        return await trigger_compaction(body, answer)

    @routes.post("/ops/trigger", responses={**BAD_REQUEST, **UNKNOWN, **CONFLICT})
    async def trigger(body: models.TriggerRequest, answer: Response) -> models.TriggerRequest:
        """KvDB's order by name."""
        named = (body.operation or "").upper()
        if named == "REBALANCE":
            return await trigger_rebalance(body, answer)
        if named == "COMPACT":
            return await trigger_compaction(body, answer)
        shown = (body.operation or "")[:32]
        raise InvalidArgument(f"operation: it must be REBALANCE or COMPACT, not {shown!r}", field="operation")

    @routes.post("/config", tags=["config"], responses={**BAD_REQUEST, **CONFLICT}, response_model_exclude_unset=True)
    async def change_config(body: models.ConfigRequest, answer: Response) -> models.ConfigRequest:
        """Change the replication factor, or the number of shards: one of them at a time."""
        partitioning = (await context.coordinators.state()).partitioning
        if not partitioning.num_shards:
            raise PreconditionFailed("num_shards: there are no shards yet; send POST /admin/config/shard-init first")
        num_shards = body.num_shards or partitioning.num_shards
        factor = body.replication_factor or partitioning.replication_factor
        if num_shards != partitioning.num_shards and factor != partitioning.replication_factor:
            raise PreconditionFailed("num_shards: change it and replication_factor one after the other")
        made = None
        if num_shards != partitioning.num_shards:
            made = (await shard_count(DEFAULT_TABLE, models.ShardCountRequest(num_shards=num_shards))).operation
        elif factor != partitioning.replication_factor:
            request = pb.SetReplicationFactorRequest(replication_factor=factor)
            made = (await order("SetReplicationFactor", request)).operation
        if made is not None:
            answer.headers[OPERATION_HEADER] = str(made.id)
        return body

    @routes.post("/tables/{table}/shards", responses=refusals)
    async def shard_count(table: TablePath, body: models.ShardCountRequest) -> models.Order:
        """Let the shards of a table divide, grow together, or first one and then the other, while it serves, so that
        there are so many. It can be called off while they grow together and none of them has given up its keys."""
        return await order("SetShardCount", pb.SetShardCountRequest(table=table, num_shards=body.num_shards))

    @routes.post("/cluster/replication-factor", responses={**BAD_REQUEST, **CONFLICT})
    async def replication_factor(body: models.ReplicationFactorRequest) -> models.Order:
        """Change how many replicas each shard has, while it serves."""
        request = pb.SetReplicationFactorRequest(replication_factor=body.replication_factor)
        return await order("SetReplicationFactor", request)

    @routes.post("/shards/{shard_id}/move", responses=refusals)
    async def move(shard_id: ShardIdPath, body: models.MoveRequest) -> models.Order:
        """Move one replica of a shard from one node to another."""
        request = pb.MoveReplicaRequest(shard_id=shard_id, from_node_id=body.from_node_id, to_node_id=body.to_node_id)
        return await order("MoveReplica", request)

    @routes.post("/shards/{shard_id}/recover", responses=refusals)
    async def recover(shard_id: ShardIdPath, body: models.RecoverRequest) -> models.Recovery:
        """A shard lost its quorum for good: go on from its best surviving replica. Refused while a quorum could come
        back. What only the lost replicas had is gone, and the order cannot be called off."""
        if not body.dry_run and body.confirm != shard_id:
            raise InvalidArgument("confirm: it must be the shard's id, since writes may be lost", field="confirm")
        return await recovering.recover(context.coordinators, context.orders, shard_id, dry_run=body.dry_run)

    @routes.post("/coordinators/recover", responses={**BAD_REQUEST, 412: CONFLICT[412]})
    async def recover_coordinators(body: RecoverCoordinatorsRequest) -> CoordinatorRecovery:
        """The coordinators lost their quorum for good: let the most complete of them go on alone. Refused while a
        quorum could come back. What only the lost ones had is gone, and the order cannot be called off."""
        return await context.successions.recover(frozenset(body.gone), body.confirm, dry_run=body.dry_run)

    @routes.post("/coordinators/replace", responses={**BAD_REQUEST, 412: CONFLICT[412]})
    async def replace_coordinator(body: ReplaceCoordinatorRequest) -> CoordinatorReplacement:
        """One coordinator is lost for good: go on without its data directory, and let an empty one take its place.
        Refused unless the others are a quorum. Nothing is lost by it."""
        return await context.successions.replace(body.node_id, dry_run=body.dry_run)

    @routes.post("/shards/{shard_id}/cancel", responses=refusals)
    async def cancel_move(shard_id: ShardIdPath) -> models.Order:
        """Call off what a shard is about to become; it is left alone for a while then."""
        return await order("CancelMove", pb.CancelMoveRequest(shard_id=shard_id))

    @routes.get("/ops")
    async def operations() -> models.Operations:
        """Long work under way, and the newest that ended; newest first."""
        reply = await context.coordinators.jobs(pb.ListJobsRequest())
        return models.Operations(operations=[convert.operation(job) for job in reply.jobs])

    @routes.get("/ops/{number}", responses={**BAD_REQUEST, **UNKNOWN})
    async def operation(number: OpNumber) -> models.Operation:
        """How far one of them is."""
        reply = await context.coordinators.jobs(pb.ListJobsRequest(number=number))
        if not reply.jobs:
            raise NotFound(f"Operation not found: {number}")
        return convert.operation(reply.jobs[0])

    @routes.post("/ops/{number}/cancel", responses=refusals)
    async def cancel(number: OpNumber) -> models.Order:
        """Call it off: a drain ends, a replication factor goes back to what it was, moves end."""
        return await order("CancelJob", pb.CancelJobRequest(number=number))

    return routes
