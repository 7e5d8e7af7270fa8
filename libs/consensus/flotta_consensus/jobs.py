"""The slow half of a turn: carries out the driver's effects in worker threads and answers them.

Each job is one coroutine; it raises only what the process must not survive. The driver is touched in the event
loop's thread alone.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import flotta_native

from flotta_consensus.api import Failpoints
from flotta_consensus.core.effects import BuildSnapshot, Effects, Flush, HostEvent, InstallSnapshot, SendSnapshot
from flotta_consensus.core.manifest import Manifest
from flotta_consensus.opening import Opened
from flotta_consensus.transport import Transport

T = TypeVar("T")
Job = Coroutine[Any, Any, None]


class Threads:
    """Worker threads: a big snapshot must never keep a flush waiting."""

    def __init__(self) -> None:
        self.short = ThreadPoolExecutor(2, thread_name_prefix="flotta-short")
        self.bulk = ThreadPoolExecutor(2, thread_name_prefix="flotta-bulk")

    def shutdown(self) -> None:
        """Blocks until what runs has ended; what only waits is dropped."""
        self.short.shutdown(wait=True, cancel_futures=True)
        self.bulk.shutdown(wait=True, cancel_futures=True)


class Jobs:
    """Runs effects. `report` takes what an operator should know of."""

    def __init__(
        self,
        opened: Opened,
        transport: Transport,
        threads: Threads,
        failpoints: Failpoints,
        report: Callable[[HostEvent], None],
    ) -> None:
        self._host = opened.host
        self._driver = opened.driver
        self._files = opened.files
        self._transport = transport
        self._threads = threads
        self._failpoints = failpoints
        self._report = report

    def of(self, effects: Effects) -> Iterator[Job]:
        """One job for each piece of work."""
        yield from (self._flush(flush) for flush in effects.flushes)
        yield from (self._build(build) for build in effects.builds)
        yield from (self._send(offer) for offer in effects.sends)
        yield from (self._install(install) for install in effects.installs)
        if effects.checks:
            yield self._check(effects.checks)
        yield from (self._delete(group, keep_index) for group, keep_index in effects.superseded)

    async def statuses(self, groups: Sequence[int] | None) -> list[flotta_native.GroupStatus]:
        """Taken in a thread: it waits for the host's round and so for its sync. Groups that are gone are missing."""
        return await self._in_thread(self._host.status, groups)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads.short, function, *arguments)

    async def _in_bulk(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads.bulk, function, *arguments)

    async def _flush(self, flush: Flush) -> None:
        def work() -> int:
            self._failpoints.reach("consensus.before_flush")
            index = flush.run()
            self._failpoints.reach("consensus.after_flush")
            return index

        index = await self._in_thread(work)
        self._driver.flushed(flush.group, index)
        if not self._driver.installing(flush.group):
            # Received files that Raft had no use for: a state this old is never installed.
            await self._in_thread(self._files.delete_incoming, flush.group, index)

    async def _check(self, groups: list[int]) -> None:
        self._driver.checked(groups, await self.statuses(groups))

    async def _build(self, build: BuildSnapshot) -> None:
        try:
            manifest = await self._in_bulk(self._files.build, build.group, build.source)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise  # a disk that fails or lies: nothing more is trusted to it
            # A full disk: nothing is lost, and the host asks again.
            self._driver.snapshot_build_failed(build.group)
            self._report(HostEvent(build.group, "snapshot_build_failed", build.index, str(error)))
            return
        self._driver.snapshot_built(build.group, manifest)

    async def _send(self, offer: SendSnapshot) -> None:
        path = self._files.path_of(Manifest.decode(offer.manifest))
        ok = await self._transport.send_snapshot(offer, path, lambda: self._driver.snapshot_progress(offer))
        self._driver.snapshot_sent(offer, ok, file_lost=not ok and not path.exists())

    async def _install(self, install: InstallSnapshot) -> None:
        self._failpoints.reach("consensus.before_install")
        sink = install.machine.restore()
        await self._in_bulk(self._files.feed, install.manifest, sink)
        self._failpoints.reach("consensus.before_install_commit")
        self._driver.install(install.group, sink)
        self._failpoints.reach("consensus.after_install_commit")
        await self._in_thread(self._files.delete_incoming, install.group, install.index)
        self._failpoints.reach("consensus.after_install_delete")

    async def _delete(self, group: int, keep_index: int) -> None:
        await self._in_thread(self._files.delete_built, group, keep_index)
