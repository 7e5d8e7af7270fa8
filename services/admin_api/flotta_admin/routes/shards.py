"""/admin/shards: reading shards, moving replicas, choosing leaders."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from flotta_proto.kvdb import coordinator_pb2
from flotta_runtime.errors import NotFound
from pydantic import Field, StrictStr

from flotta_admin.core import convert, models
from flotta_admin.http_errors import check_accepted
from flotta_admin.routes import BAD_REQUEST, CONFLICT, COORDINATOR, OPERATION_HEADER, UNKNOWN, Context, ShardIdPath
from flotta_admin.routes.text_body import read_text, text_body

LEADER_BODY: dict[str, Any] = text_body("Id of the node that should lead, as raw text", "node-2")
NodeIds = Annotated[
    list[Annotated[StrictStr, Field(min_length=1, max_length=models.ID_CHARS_MAX)]],
    Body(min_length=1, max_length=64, description="Ids of the nodes that should hold a replica."),
]


def router(context: Context) -> APIRouter:
    """The routes over `context`."""
    routes = APIRouter(prefix="/admin/shards", tags=["shards"], responses=COORDINATOR)

    async def find(shard_id: str) -> models.Shard:
        state = await context.coordinators.state()
        if shard_id not in state.shards:
            raise NotFound(f"Shard not found: {shard_id}", shard_id=shard_id)
        return convert.shard(state.shards[shard_id])

    async def begun(shard_id: str, reply: Any, answer: Response) -> models.Shard:
        check_accepted(reply)
        if reply.job:
            answer.headers[OPERATION_HEADER] = str(reply.job)
        return await find(shard_id)

    @routes.get("")
    async def list_shards() -> list[models.Shard]:
        """All shards, by index; empty before shard-init."""
        return convert.shards(await context.coordinators.state())

    @routes.get("/{shard_id}", responses=UNKNOWN)
    async def read_shard(shard_id: ShardIdPath) -> models.Shard:
        """One shard."""
        return await find(shard_id)

    @routes.get("/{shard_id}/explain", responses=UNKNOWN)
    async def explain(shard_id: ShardIdPath) -> models.Explanation:
        """Why the shard is as it is, and what the coordinator would do with it next."""
        return convert.explanation(await context.coordinators.explain(shard_id))

    @routes.post("/{shard_id}/replicas", responses={**BAD_REQUEST, **UNKNOWN, **CONFLICT})
    async def set_replicas(shard_id: ShardIdPath, replicas: NodeIds, answer: Response) -> models.Shard:
        """Move the shard to these nodes. It is MOVING until data has been copied, and serves all the while. The number
        of the operation is in a header."""
        request = coordinator_pb2.SetShardReplicasRequest(shard_id=shard_id, replicas=replicas)
        return await begun(shard_id, await context.coordinators.write("SetShardReplicas", request), answer)

    @routes.post("/{shard_id}/leader", responses={**BAD_REQUEST, **UNKNOWN, **CONFLICT}, openapi_extra=LEADER_BODY)
    async def set_leader(shard_id: ShardIdPath, request: Request, answer: Response) -> models.Shard:
        """Ask for another leader among the shard's replicas. The body is the bare node id; the number of the operation
        is in a header, unless that node leads already."""
        leader = await read_text(request, "leader")
        epoch = (await find(shard_id)).epoch
        message = coordinator_pb2.SetShardLeaderRequest(shard_id=shard_id, epoch=epoch, leader_node_id=leader)
        return await begun(shard_id, await context.coordinators.write("SetShardLeader", message), answer)

    return routes
