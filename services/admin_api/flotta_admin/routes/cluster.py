"""/admin/cluster, /admin/config and /admin/decisions: the map as a whole."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from flotta_proto.flotta import cluster_pb2
from flotta_proto.kvdb import coordinator_pb2
from flotta_runtime.errors import PreconditionFailed

from flotta_admin import checking
from flotta_admin.core import convert, models
from flotta_admin.http_errors import NotReadyYet, check_accepted
from flotta_admin.routes import BAD_REQUEST, CONFLICT, COORDINATOR, Context

DECISIONS_MAX = 1_000


def router(context: Context) -> APIRouter:
    """The routes over `context`."""
    routes = APIRouter(prefix="/admin", responses=COORDINATOR)

    @routes.get("/cluster/summary", tags=["cluster"])
    async def cluster_summary() -> models.ClusterSummary:
        """Nodes, shards and their states at a glance."""
        return convert.summary(await context.coordinators.state())

    @routes.get("/cluster/shard-map", tags=["cluster"])
    async def shard_map() -> models.ShardMapSnapshot:
        """The whole shard map at its newest version."""
        return convert.snapshot(await context.coordinators.state())

    @routes.get("/cluster/shard-map/version", tags=["cluster"])
    async def shard_map_version() -> models.MapVersion:
        """The version of the shard map."""
        return models.MapVersion(map_version=(await context.coordinators.state()).map_version)

    @routes.get("/check", tags=["cluster"], responses={412: CONFLICT[412]})
    async def check() -> models.Check:
        """Whether the map makes sense, every node is ALIVE, and the replicas of every shard hold the same. Reads all
        rows of all replicas."""
        return await checking.check(context.coordinators, context.orders)

    @routes.get("/config", tags=["config"])
    async def read_config() -> models.ClusterConfig:
        """Shard count and replication factor; zeros before shard-init."""
        return convert.config(await context.coordinators.state())

    @routes.post("/config/shard-init", tags=["config"], responses={**BAD_REQUEST, 409: CONFLICT[409]})
    async def shard_init(body: models.ShardInitRequest) -> models.ShardInitAnswer:
        """Create the shards on the registered nodes, once. The same numbers again change nothing; others, or nodes that
        cannot take replicas yet, are a 409."""
        reply = await context.coordinators.write(
            "InitShards",
            coordinator_pb2.InitShardsRequest(num_shards=body.num_shards, replication_factor=body.replication_factor),
        )
        try:
            check_accepted(reply)
        except PreconditionFailed as error:
            raise NotReadyYet(error.message) from error
        return models.ShardInitAnswer(
            success=True, num_shards=body.num_shards, replication_factor=body.replication_factor
        )

    @routes.get("/decisions", tags=["decisions"], responses=BAD_REQUEST)
    async def decisions(
        after: Annotated[int, Query(ge=0, le=2**63 - 1, description="Only decisions with a greater number.")] = 0,
        limit: Annotated[int, Query(ge=1, le=DECISIONS_MAX, description="At most this many.")] = 100,
        subject: Annotated[str, Query(max_length=128, description="Only those about this node or shard.")] = "",
    ) -> models.Decisions:
        """What the coordinator decided and why, oldest first."""
        request = cluster_pb2.ListDecisionsRequest(after_number=after, limit=limit, subject=subject)
        return convert.decisions((await context.coordinators.decisions(request)).decisions)

    return routes
