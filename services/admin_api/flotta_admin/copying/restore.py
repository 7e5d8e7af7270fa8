"""A restore: every row of a backup into the shards of a cluster that has none yet, however many there are to be.

First the whole backup is read and checked; nothing is changed before that. Then the shards are created, their revisions
above all that the backup has, and every row goes to the shard that its key hashes to there. Rows and batches in memory
are bounded. From the first row on a restore that ends early leaves a part behind, and says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from flotta_proto.flotta import operator_pb2
from flotta_proto.kvdb import coordinator_pb2
from flotta_runtime.clock import Clock
from flotta_runtime.errors import FlottaError, PreconditionFailed, Timeout, Unavailable
from flotta_runtime.hashing import key_hashes
from flotta_runtime.saved_rows import SavedRow, encode_row

from flotta_admin.coordinator import Coordinators
from flotta_admin.copying import files
from flotta_admin.copying.job import Job
from flotta_admin.copying.nodes import NodeLinks
from flotta_admin.core.manifest import Manifest, ShardFile
from flotta_admin.http_errors import check_accepted

FILES_AT_ONCE: Final = 2
BATCH_BYTES: Final = 512 << 10
BATCH_ROWS: Final = 1024
HELD_BYTES_MAX: Final = 32 << 20  # of one file
AHEAD_MS_MAX: Final = 60_000
CREATE_TRIES: Final = 5
LEADERS_S: Final = 120.0
LOOK_EVERY_S: Final = 0.2


class RestoreBroken(FlottaError):
    """It ended early, with a part of the rows loaded."""


class Batches:
    """Rows by shard, until there are enough of them to be sent. Pure."""

    def __init__(self, shard_count: int) -> None:
        self._count = shard_count
        self._held: dict[int, list[SavedRow]] = {}
        self._bytes: dict[int, int] = {}

    def add(self, rows: list[SavedRow]) -> list[tuple[int, bytes]]:
        """(shard index, encoded rows) of what is to be sent now."""
        due: list[tuple[int, bytes]] = []
        for row, hashed in zip(rows, key_hashes([row.key for row in rows]), strict=True):
            index = hashed % self._count
            if self._bytes.get(index, 0) + row.size > BATCH_BYTES and index in self._held:
                due.append(self._take(index))
            self._held.setdefault(index, []).append(row)
            self._bytes[index] = self._bytes.get(index, 0) + row.size
            if len(self._held[index]) >= BATCH_ROWS:
                due.append(self._take(index))
        while sum(self._bytes.values()) > HELD_BYTES_MAX:
            due.append(self._take(max(self._bytes, key=lambda index: self._bytes[index])))
        return due

    def rest(self) -> list[tuple[int, bytes]]:
        return [self._take(index) for index in sorted(self._held)]

    def _take(self, index: int) -> tuple[int, bytes]:
        del self._bytes[index]
        return index, b"".join(map(encode_row, self._held.pop(index)))


class Restore:
    """A copy, as `copier.py` carries it out. `num_shards` and `replication_factor` 0: as many as the backup had."""

    def __init__(
        self, coordinators: Coordinators, clock: Clock, directory: Path, num_shards: int, replication_factor: int
    ) -> None:
        self._coordinators = coordinators
        self._clock = clock
        self._directory = directory
        self._sizes = num_shards, replication_factor

    async def run(self, links: NodeLinks, job: Job) -> str:
        """A sentence of what was restored."""
        return await restore(self._coordinators, links, self._clock, job, self._directory, *self._sizes)

    def commit(self) -> None:
        """Every row is where it belongs already."""

    def undo(self) -> None:
        """What has been loaded stays; the outcome says so."""


async def restore(
    coordinators: Coordinators,
    links: NodeLinks,
    clock: Clock,
    job: Job,
    directory: Path,
    num_shards: int,
    replication_factor: int,
) -> str:
    """A sentence of what was restored."""
    manifest = await asyncio.to_thread(files.read_manifest, directory)
    job.steps = 2 * manifest.num_shards
    await _verify(directory, manifest, clock, job)
    request = operator_pb2.CreateForRestoreRequest(
        number=job.number,
        num_shards=num_shards or manifest.num_shards,
        replication_factor=replication_factor or manifest.replication_factor,
        revision_base=manifest.revision,
    )
    await _create(coordinators, request)
    try:
        names = await _led_shards(coordinators, request.num_shards)
        await _load_all(links, job, directory, manifest, names)
    except (FlottaError, OSError, ExceptionGroup) as error:
        text = f"{reason(error)}; the cluster has a part of the rows now: wipe it before you restore again"
        raise RestoreBroken(text) from error
    return (
        f"{manifest.rows} keys of {manifest.num_shards} shards into {request.num_shards}, as of map version "
        f"{manifest.map_version} of cluster {manifest.cluster_id}"
    )


def reason(error: BaseException) -> str:
    """The first sentence to be found in it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, FlottaError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


async def _verify(directory: Path, manifest: Manifest, clock: Clock, job: Job) -> None:
    ahead_ms = manifest.group_time_ms - clock.wall_ms()
    if ahead_ms > AHEAD_MS_MAX:
        text = f"the backup is from {ahead_ms} ms in the future by the clock of this machine; nothing was changed"
        raise PreconditionFailed(text)
    for shard in manifest.shards:
        try:
            async for _ in _rows(directory, shard):
                pass
        except files.BackupDamaged as error:
            raise files.BackupDamaged(f"{error.message}; nothing was changed") from error
        job.done += 1


async def _create(coordinators: Coordinators, request: operator_pb2.CreateForRestoreRequest) -> None:
    """The shards. Asked for again, with the same numbers, it is a success: so it is, until there is an answer."""
    for left in reversed(range(CREATE_TRIES)):
        try:
            check_accepted(await coordinators.order("CreateForRestore", request))
            return
        except Timeout as error:
            if not left:
                text = f"{error.message}; the shards may have been created: wipe the cluster before you restore again"
                raise RestoreBroken(text) from error


async def _rows(directory: Path, shard: ShardFile) -> AsyncIterator[list[SavedRow]]:
    reading = files.read_rows(directory, shard)
    while (rows := await asyncio.to_thread(next, reading, None)) is not None:
        yield rows


async def _led_shards(coordinators: Coordinators, num_shards: int) -> list[str]:
    """The shard ids by index, once each of them has a leader."""
    end = asyncio.get_running_loop().time() + LEADERS_S
    while True:
        state = await coordinators.state()
        shards = sorted(state.shards.values(), key=lambda shard: shard.detail.shard_index)
        waiting = [shard.shard_id for shard in shards if shard.detail.phase != coordinator_pb2.ShardDetail.ACTIVE]
        if len(shards) == num_shards and not waiting:
            return [shard.shard_id for shard in shards]
        if asyncio.get_running_loop().time() > end:
            raise Unavailable(f"{len(waiting)} shards have had no leader for {LEADERS_S:.0f} s")
        await asyncio.sleep(LOOK_EVERY_S)


async def _load_all(links: NodeLinks, job: Job, directory: Path, manifest: Manifest, names: list[str]) -> None:
    slots = asyncio.Semaphore(FILES_AT_ONCE)

    async def load(shard: ShardFile) -> None:
        async with slots:
            batches = Batches(len(names))
            async for rows in _rows(directory, shard):
                for index, encoded in batches.add(rows):
                    await links.load(names[index], encoded, manifest.group_time_ms)
            for index, encoded in batches.rest():
                await links.load(names[index], encoded, manifest.group_time_ms)
            job.done += 1

    async with asyncio.TaskGroup() as tasks:
        for shard in manifest.shards:
            tasks.create_task(load(shard))
