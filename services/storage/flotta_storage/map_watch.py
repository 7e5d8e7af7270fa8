"""Keeps the shard map current: a watch for records on one coordinator, polling while there is none.

Invariants: the model only moves forward (`map_model.py`); a delta that does not fit is answered by fetching the full
map; a watch that says nothing for `idle_ms` (coordinators send heartbeats) is opened anew elsewhere; a nudge makes a
fetch at once, and any number of nudges make one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import grpc.aio
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb.coordinator_pb2_grpc import CoordinatorStub
from flotta_runtime.errors import FlottaError, NotLeader
from flotta_runtime.logging import get_logger
from flotta_runtime.status import from_rpc_error

from flotta_storage.coordinator_link import CoordinatorLink
from flotta_storage.map_model import ForeignMapError, MapModel

RECORDS_METADATA = (("x-flotta-map", "records"),)
NUDGE_PAUSE_MS = 50


@dataclass(frozen=True, slots=True)
class WatchOptions:
    poll_ms: int = 1_000
    idle_ms: int = 45_000
    retry_ms: int = 100
    retry_ms_max: int = 1_000


class MapWatch:
    """`watch()` and `refresh()` are its two tasks; `on_change` is called after every newer map."""

    def __init__(
        self, link: CoordinatorLink, model: MapModel, on_change: Callable[[], None], options: WatchOptions
    ) -> None:
        self._link = link
        self._model = model
        self._on_change = on_change
        self._options = options
        self._nudged = asyncio.Event()
        self._log = get_logger("storage.map")
        self.watching = ""  # the coordinator whose watch is open

    def nudge(self, version: int) -> None:
        """Somebody has seen this version."""
        if version > self._model.version:
            self._nudged.set()

    async def refresh(self) -> None:
        """Serve nudges, and poll while no watch is open; until cancelled."""
        while True:
            timeout = None if self.watching else self._options.poll_ms / 1000
            try:
                async with asyncio.timeout(timeout):
                    await self._nudged.wait()
            except TimeoutError:
                if self.watching:
                    continue
            self._nudged.clear()
            await self._fetch()
            await asyncio.sleep(NUDGE_PAUSE_MS / 1000)

    async def watch(self) -> None:
        """Hold a watch open; until cancelled."""
        address = self._link.preferred
        pause_ms = self._options.retry_ms
        while True:
            version = self._model.version
            hint = await self._follow(address)
            was_open, self.watching = bool(self.watching), ""
            self._nudged.set()
            if was_open or self._model.version > version:
                pause_ms = self._options.retry_ms
            address = hint or self._link.after(address)
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, self._options.retry_ms_max)

    async def _follow(self, address: str) -> str:
        """Follow one watch until it ends. Returns who to watch instead, if that was said."""
        channel = self._link.channel(address)
        request = pb.WatchShardMapRequest(from_version=self._model.version)
        call = CoordinatorStub(channel.grpc).WatchShardMap(request, metadata=(*RECORDS_METADATA, *channel.metadata))
        reading: asyncio.Future[object] | None = None
        try:
            while True:
                reading = asyncio.ensure_future(call.read())
                # Not wait_for: cancelling a read would cancel the watch.
                await asyncio.wait((reading,), timeout=self._options.idle_ms / 1000)
                if not reading.done():
                    self._log.warning("the map watch fell silent; it is opened anew", coordinator=address)
                    return ""
                delta = reading.result()
                if not isinstance(delta, pb.ShardMapDelta):  # grpc.aio.EOF
                    return ""
                self.watching = address
                if self._take(delta) is None:
                    await self._fetch()
        except grpc.aio.AioRpcError as error:
            meant = from_rpc_error(error)
            if self.watching:
                self._log.info("map watch ended", coordinator=address, reason=meant.message)
            return meant.leader_hint or "" if isinstance(meant, NotLeader) else ""
        finally:
            call.cancel()
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    def _take(self, delta: pb.ShardMapDelta) -> bool | None:
        try:
            newer = self._model.take_delta(delta)
        except ForeignMapError as error:
            self._log.error("shard map refused", reason=str(error))
            return False
        if newer:
            self._on_change()
        return newer

    async def _fetch(self) -> None:
        request = pb.GetShardMapRequest(if_version_gt=self._model.version)
        try:
            response = await self._link.call(CoordinatorStub, lambda stub: stub.GetShardMap, request)
            newer = response.HasField("state") and self._model.take_state(response.state)
        except ForeignMapError as error:
            self._log.error("shard map refused", reason=str(error))
        except FlottaError as error:
            self._log.debug("shard map not fetched", reason=error.message)
        else:
            if newer:
                self._on_change()
