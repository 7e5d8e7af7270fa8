"""/admin/backups and /admin/restores: the rows of the whole cluster to a directory of this machine, and back."""

from __future__ import annotations

from fastapi import APIRouter

from flotta_admin.core import convert, models
from flotta_admin.routes import BAD_REQUEST, CONFLICT, COORDINATOR, UNKNOWN, Context


def router(context: Context) -> APIRouter:
    """The routes over `context`."""
    routes = APIRouter(prefix="/admin", tags=["backups"], responses=COORDINATOR)

    @routes.post("/backups", responses={**BAD_REQUEST, **CONFLICT})
    async def backup(body: models.BackupRequest) -> models.Order:
        """Begin to save all rows, each shard as of one moment. `GET /admin/ops/{id}` says how far it is."""
        return convert.order(await context.copier.begin_backup(body.directory))

    @routes.post("/restores", responses={**BAD_REQUEST, **UNKNOWN, **CONFLICT})
    async def restore(body: models.RestoreRequest) -> models.Order:
        """Begin to restore a backup into this cluster, which must have nodes and no shards yet: they are made as
        asked for, once the whole backup has been found to be undamaged."""
        reply = await context.copier.begin_restore(body.directory, body.num_shards or 0, body.replication_factor or 0)
        return convert.order(reply)

    return routes
