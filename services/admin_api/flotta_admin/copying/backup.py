"""A backup: every shard as of one index of its log, all shards of one map, into a directory that is whole or not there.

Each shard is consistent in itself; between shards there is no common moment, as there is no transaction over shards
either. The map is looked at before and after: the shards, and which keys they own, must be the same.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from flotta_proto.kvdb import coordinator_pb2
from flotta_runtime.clock import Clock
from flotta_runtime.errors import Unavailable

from flotta_admin.coordinator import Coordinators
from flotta_admin.copying import files
from flotta_admin.copying.job import Job
from flotta_admin.copying.nodes import NodeLinks
from flotta_admin.core.manifest import Manifest, ShardFile

SHARDS_AT_ONCE: Final = 4


class Backup:
    """A copy, as `copier.py` carries it out."""

    def __init__(self, coordinators: Coordinators, clock: Clock, directory: Path) -> None:
        self._coordinators = coordinators
        self._clock = clock
        self._directory = directory
        self._manifest: Manifest | None = None
        self._completed = False

    async def run(self, links: NodeLinks, job: Job) -> str:
        """A sentence of what has been saved; it is not in its place yet."""
        made = self._manifest = await save(self._coordinators, links, self._clock, job, self._directory)
        return (
            f"{made.rows} keys of {made.num_shards} shards, {made.file_bytes} bytes, at map version {made.map_version}"
        )

    def commit(self) -> None:
        """Blocking. Nothing that is there already is replaced."""
        if self._manifest is not None:
            files.complete(self._directory, self._manifest)
            self._completed = True

    def undo(self) -> None:
        """Blocking."""
        files.remove(self._directory, completed=self._completed)


async def save(coordinators: Coordinators, links: NodeLinks, clock: Clock, job: Job, directory: Path) -> Manifest:
    """All rows of all shards to where the backup grows, and the manifest that belongs to them."""
    begun_ms = clock.wall_ms()
    state = await coordinators.state()
    wanted = sorted(state.shards.values(), key=lambda shard: shard.detail.shard_index)
    job.steps = len(wanted)
    growing = await asyncio.to_thread(files.begin, directory)
    slots = asyncio.Semaphore(SHARDS_AT_ONCE)
    async with asyncio.TaskGroup() as tasks:
        saving = [tasks.create_task(_save(links, slots, job, growing, shard)) for shard in wanted]
    if _owners(await coordinators.state()) != _owners(state):
        raise Unavailable("the shards of the cluster changed during the backup; begin it again")
    return Manifest(
        cluster_id=state.cluster_id,
        table=wanted[0].detail.table,
        map_version=state.map_version,
        num_shards=state.partitioning.num_shards,
        replication_factor=state.partitioning.replication_factor,
        begun_ms=begun_ms,
        ended_ms=clock.wall_ms(),
        shards=[task.result() for task in saving],
    )


def _owners(state: coordinator_pb2.ClusterState) -> dict[str, tuple[str, int, int, int]]:
    """Which keys each shard owns, and which group it is."""
    return {
        name: (shard.detail.table, shard.detail.group_id, shard.detail.shard_index, shard.detail.shard_count)
        for name, shard in state.shards.items()
    }


async def _save(
    links: NodeLinks, slots: asyncio.Semaphore, job: Job, growing: Path, shard: coordinator_pb2.ShardRecord
) -> ShardFile:
    detail = shard.detail
    async with slots:
        file = await asyncio.to_thread(files.RowFile, growing / f"shard-{detail.shard_index:05}.rows")
        try:
            head, end = await links.dump(
                shard.shard_id,
                lambda: asyncio.to_thread(file.begin_again),
                lambda piece: asyncio.to_thread(file.write, piece),
            )
            sha256 = await asyncio.to_thread(file.finish)
        finally:
            file.close()
    if (head.table, head.shard_index, head.shard_count) != (detail.table, detail.shard_index, detail.shard_count):
        raise Unavailable(f"{shard.shard_id} owns other keys than the map says; begin the backup again")
    job.done += 1
    return ShardFile(
        shard_id=head.shard_id,
        shard_index=head.shard_index,
        shard_count=head.shard_count,
        epoch=head.epoch,
        applied_index=head.applied_index,
        revision=head.revision,
        group_time_ms=head.group_time_ms,
        rows=end.rows,
        file_bytes=file.file_bytes,
        sha256=sha256,
    )
