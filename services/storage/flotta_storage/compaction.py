"""Compacts replicas on an operator's order, one at a time, beside everything else.

RocksDB compacts by itself; an order is for room that is wanted now, after much was deleted. Invariants: a replica waits
at most once; a full disk ends the order with a line in the log, any other failure of the disk ends the process.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Collection

from flotta_runtime.logging import get_logger

from flotta_storage.replica_table import ReplicaTable


class Compactor:
    """`run()` is its one task."""

    def __init__(self, replicas: ReplicaTable) -> None:
        self._replicas = replicas
        self._waiting: dict[int, None] = {}  # groups, in order
        self._current = 0  # the group that is at it
        self._news = asyncio.Event()
        self._log = get_logger("storage.compaction")
        self.done = 0

    @property
    def waiting(self) -> int:
        """Replicas that are to be compacted, or are just now."""
        return len(self._waiting)

    def order(self, shard_ids: Collection[str]) -> int:
        """Queue those replicas, or all for none; how many that are."""
        chosen = self._of(shard_ids)
        self._waiting |= dict.fromkeys(sorted(chosen))
        self._news.set()
        return len(chosen)

    def left(self, shard_ids: Collection[str]) -> int:
        """How many of those replicas wait, or are at it."""
        return len(self._of(shard_ids) & self._waiting.keys())

    def drop(self, shard_ids: Collection[str]) -> int:
        """Let those that wait be; how many are at it."""
        for group in self._of(shard_ids) - {self._current}:
            self._current = 0
            self._waiting.pop(group, None)
        return self.left(shard_ids)

    def _of(self, shard_ids: Collection[str]) -> set[int]:
        return {replica.group for replica in self._replicas if not shard_ids or replica.shard_id in shard_ids}

    async def run(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                await self._next()

    async def _next(self) -> None:
        group = self._current = next(iter(self._waiting))
        replica = self._replicas.of_group(group)
        try:
            if replica is not None:
                await asyncio.to_thread(replica.machine.compact())
                self.done += 1
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._log.warning("the disk is full; replicas are left as they are", left=len(self._waiting))
            self._waiting.clear()
        finally:
            self._waiting.pop(group, None)
