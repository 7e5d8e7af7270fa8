"""Takes orders for backups and restores, and carries them out as operations of the coordinators.

The coordinators allow one at a time in the whole cluster. Whatever becomes of one is told to them: done, failed with a
sentence, or, because this service stops, failed with that. A backup that ends otherwise than done is removed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final, Protocol

from flotta_proto.flotta import operator_pb2 as pb
from flotta_runtime.clock import Clock
from flotta_runtime.errors import AlreadyExists, FlottaError, InvalidArgument, PreconditionFailed
from flotta_runtime.logging import get_logger
from flotta_runtime.server import Dial

from flotta_admin.coordinator import Coordinators
from flotta_admin.copying import files
from flotta_admin.copying.backup import Backup
from flotta_admin.copying.job import Job, JobEnded
from flotta_admin.copying.nodes import NodeLinks
from flotta_admin.copying.restore import Restore, reason
from flotta_admin.http_errors import check_accepted

STOPPED: Final = "the admin service that copied was stopped"
STOP_S: Final = 5.0


class Copy(Protocol):
    """What is carried out. `commit` and `undo` block, and run in a thread."""

    async def run(self, links: NodeLinks, job: Job) -> str:
        """All of the work; its outcome as a sentence. May be cancelled anywhere."""

    def commit(self) -> None: ...

    def undo(self) -> None: ...


class Copier:
    """`root` None: neither backups nor restores here. `close()` when done."""

    def __init__(self, coordinators: Coordinators, dial: Dial, clock: Clock, root: Path | None) -> None:
        self._coordinators = coordinators
        self._dial = dial
        self._clock = clock
        self._root = root
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = get_logger("admin.copies")

    async def begin_backup(self, directory: str) -> pb.OrderResponse:
        """The operation that has begun."""
        path = self.path(directory)
        if await asyncio.to_thread(path.exists):
            raise AlreadyExists(f"directory: {path} is there already; a backup needs a new name")
        copy = Backup(self._coordinators, self._clock, path)
        return await self._begin(pb.BeginCopyRequest(directory=str(path)), copy)

    async def begin_restore(self, directory: str, num_shards: int, replication_factor: int) -> pb.OrderResponse:
        """The same. 0: as many as the backup had."""
        path = self.path(directory)
        await asyncio.to_thread(files.read_manifest, path)
        copy = Restore(self._coordinators, self._clock, path, num_shards, replication_factor)
        return await self._begin(pb.BeginCopyRequest(restore=True, directory=str(path)), copy)

    def path(self, directory: str) -> Path:
        """Where a directory that a caller names is; never outside of the root."""
        if self._root is None:
            raise PreconditionFailed("directory: this admin service has no place for backups; set its backup_dir")
        root = self._root.resolve()
        try:
            path = (root / directory).resolve()
        except (ValueError, OSError) as error:
            raise InvalidArgument(f"directory: {directory!r:.100} is no path", field="directory") from error
        if root not in path.parents or path.name.endswith(files.PARTIAL):
            text = f"directory: it must lie in {root} and must not end in {files.PARTIAL}, not {directory!r:.100}"
            raise InvalidArgument(text, field="directory")
        return path

    async def close(self) -> None:
        """What is under way fails, and the coordinators are told if they can be reached soon."""
        tasks = list(self._tasks)
        for _ in range(2 if tasks else 0):  # the second time, it is what was to be told that is given up
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=STOP_S)

    async def _begin(self, request: pb.BeginCopyRequest, copy: Copy) -> pb.OrderResponse:
        reply: pb.OrderResponse = await self._coordinators.order("BeginCopy", request)
        check_accepted(reply)
        task = asyncio.create_task(self._carry_out(reply.job.number, copy), name=f"operation {reply.job.number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return reply

    async def _carry_out(self, number: int, copy: Copy) -> None:
        job, links = Job(self._coordinators, number), NodeLinks(self._coordinators, self._dial)
        try:
            outcome = await job.while_wanted(copy.run(links, job))
            await _finished(copy)
            await job.end(outcome, failed=False)
        except JobEnded as ended:
            self._log.info("a copy was called off", operation=number, reason=str(ended))
            await asyncio.to_thread(copy.undo)
        except asyncio.CancelledError:
            await asyncio.to_thread(copy.undo)
            await self._failed(job, STOPPED)
            raise
        except Exception as error:
            if not isinstance(error, FlottaError | OSError | ExceptionGroup):
                self._log.error("a copy broke", operation=number, exc_info=error)
            await asyncio.to_thread(copy.undo)
            await self._failed(job, reason(error))
        finally:
            await links.close()

    async def _failed(self, job: Job, why: str) -> None:
        self._log.info("a copy failed", operation=job.number, reason=why)
        try:
            await job.end(why, failed=True)
        except (JobEnded, FlottaError) as error:
            self._log.info("the failure could not be told", operation=job.number, reason=str(error))


async def _finished(copy: Copy) -> None:
    """Committed, even if this is cancelled meanwhile: what follows must know."""
    committing = asyncio.ensure_future(asyncio.to_thread(copy.commit))
    try:
        await asyncio.shield(committing)
    except asyncio.CancelledError:
        await committing
        raise
