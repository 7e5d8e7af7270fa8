"""Keeps the newest shard map: watches a coordinator, polls when the watch is down, and refreshes on request.

Invariants:
- `current` only moves forward, whoever answered, and `on_change` follows every move.
- Any coordinator will do: one that redirects is followed, one that does not answer is passed by within
  `hedge_ms`, so that a dead leader holds up neither the start nor a refresh.
- Refreshes are coalesced, and at least `refresh_ms_min` apart, however many requests ask for one.
- A watch that has gone quiet is not trusted: another coordinator is asked whether there is something newer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc.aio
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb.coordinator_pb2_grpc import CoordinatorStub
from flotta_runtime.errors import NotLeader
from flotta_runtime.logging import get_logger
from flotta_runtime.server import Channel, Dial
from flotta_runtime.status import from_rpc_error

from flotta_gateway.core.shard_map import ForeignClusterError, Gap, ShardMap

RECORDS_METADATA = (("x-flotta-map", "records"),)


@dataclass(frozen=True, slots=True)
class MapOptions:
    """Times of the map cache."""

    rpc_timeout_ms: int = 1_500
    hedge_ms: int = 150  # how long one coordinator may take before the next is asked as well
    refresh_ms_min: int = 100
    retry_ms: int = 50
    retry_ms_max: int = 1_000
    idle_ms: int = 5_000  # a watch this quiet is checked against another coordinator


@dataclass(frozen=True, slots=True)
class _Told:
    """What one coordinator said: a state, nothing new, or who else to ask."""

    address: str
    answered: bool = False
    state: pb.ClusterState | None = None
    hint: str = ""


class MapCache:
    """See the module. `watch()` and `refresh()` are its two tasks."""

    def __init__(
        self,
        coordinators: Sequence[str],
        dial: Dial,
        on_change: Callable[[ShardMap], None],
        jitter: Callable[[], float],
        options: MapOptions,
    ) -> None:
        self._coordinators = tuple(coordinators)
        self._dial = dial
        self._on_change = on_change
        self._jitter = jitter
        self._options = options
        self._current = ShardMap()
        self._answered = False
        self._channels: dict[str, Channel] = {}
        self._preferred = self._coordinators[0]
        self._wanted = asyncio.Event()
        self._log = get_logger("gateway.map")
        self.watching = ""  # the coordinator whose watch is open
        self.refreshes = 0

    @property
    def current(self) -> ShardMap:
        """The newest map; version 0 and empty before the first."""
        return self._current

    @property
    def answered(self) -> bool:
        """Whether a coordinator has been heard."""
        return self._answered

    def refresh_soon(self) -> None:
        """Ask for a newer map. Cheap; any number of requests make one refresh."""
        if self._answered:  # before that, `watch` is asking as fast as is good
            self._wanted.set()

    async def refresh(self) -> None:
        """Serve `refresh_soon`, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self.refreshes += 1
            version = self._current.version
            await self.fetch()
            if self._current.version == version:
                # Whoever answered may lag behind; ask someone else next time.
                self._preferred = self._after(self._preferred)
            await asyncio.sleep(self._options.refresh_ms_min / 1000)

    async def watch(self) -> None:
        """Hold a watch open, until cancelled; poll while there is none."""
        options = self._options
        address = self._coordinators[0]
        pause_ms = options.retry_ms
        redirected = False
        try:
            while True:
                await self.fetch()
                version = self._current.version
                hint = await self._watch(address) if self._answered else ""
                self.watching = ""
                if self._current.version > version:
                    pause_ms = options.retry_ms
                if hint and not redirected:
                    address, redirected = hint, True
                    continue
                address, redirected = hint or self._after(address), False
                await asyncio.sleep(pause_ms * (1 + 0.25 * self._jitter()) / 1000)
                pause_ms = min(pause_ms * 2, options.retry_ms_max)
        finally:
            await asyncio.gather(*(one.close() for one in self._channels.values()))

    async def fetch(self, avoid: str = "") -> bool:
        """Get the map from whichever coordinator answers first, `avoid` asked last. False: none answered."""
        queue = deque(dict.fromkeys((self._preferred, *self._coordinators)))
        if avoid in queue:
            queue.remove(avoid)
            queue.append(avoid)
        asked: set[str] = set()
        running: set[asyncio.Task[_Told]] = set()
        try:
            while queue or running:
                if queue:
                    address = queue.popleft()
                    asked.add(address)
                    running.add(asyncio.create_task(self._ask(address), name=f"map.ask {address}"))
                timeout = self._options.hedge_ms / 1000 if queue else None
                done, running = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                for told in (task.result() for task in done):
                    if told.answered and self._adopt(told):
                        return True
                    if told.hint and told.hint not in asked and told.hint not in queue:
                        queue.appendleft(told.hint)
            return False
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _ask(self, address: str) -> _Told:
        stub = CoordinatorStub(self._channel(address).grpc)
        request = pb.GetShardMapRequest(if_version_gt=self._current.version)
        try:
            response = await stub.GetShardMap(request, timeout=self._options.rpc_timeout_ms / 1000)
        except grpc.aio.AioRpcError as error:
            return _Told(address, hint=_leader_hint(error))
        return _Told(address, True, response.state if response.HasField("state") else None)

    async def _watch(self, address: str) -> str:
        """Follow one watch until it ends. Returns who to watch instead, if that was said."""
        stub = CoordinatorStub(self._channel(address).grpc)
        request = pb.WatchShardMapRequest(from_version=self._current.version)
        call = stub.WatchShardMap(request, metadata=RECORDS_METADATA)
        reading: asyncio.Future[object] | None = None
        try:
            while True:
                if reading is None:
                    reading = asyncio.ensure_future(call.read())
                # Not wait_for: cancelling a read would cancel the watch.
                await asyncio.wait((reading,), timeout=self._options.idle_ms / 1000)
                if not reading.done():
                    version = self._current.version
                    await self.fetch(avoid=address)
                    if self._current.version > version:
                        self._log.warning("the watch fell silent; it is opened anew", coordinator=address)
                        return ""
                    continue
                delta, reading = reading.result(), None
                if not isinstance(delta, pb.ShardMapDelta):  # grpc.aio.EOF
                    return ""
                self.watching = address
                if not await self._take(delta):
                    return ""
        except grpc.aio.AioRpcError as error:
            hint = _leader_hint(error)
            if self.watching or not hint:
                self._log.info("watch ended", coordinator=address, code=error.code().name, reason=error.details())
            return hint
        finally:
            call.cancel()
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _take(self, delta: pb.ShardMapDelta) -> bool:
        """Apply one delta; False when this coordinator is not to be listened to."""
        self._answered = True
        try:
            following = self._current.with_delta(delta)
        except ForeignClusterError as error:
            self._log.error("shard map refused", reason=str(error))
            return False
        if isinstance(following, Gap):
            await self.fetch()
        else:
            self._set(following)
        return True

    def _adopt(self, told: _Told) -> bool:
        if told.state is not None:
            try:
                self._set(self._current.with_state(told.state))
            except ForeignClusterError as error:
                self._log.error("shard map refused", coordinator=told.address, reason=str(error))
                return False
        self._answered = True
        self._preferred = told.address
        return True

    def _set(self, following: ShardMap) -> None:
        if following is not self._current:
            self._current = following
            self._on_change(following)

    def _channel(self, address: str) -> Channel:
        made = self._channels.get(address)
        if made is None:
            made = self._channels[address] = self._dial(address)
        return made

    def _after(self, address: str) -> str:
        """The next configured coordinator, round and round; the first for one that is not configured."""
        if address not in self._coordinators:
            return self._coordinators[0]
        return self._coordinators[(self._coordinators.index(address) + 1) % len(self._coordinators)]


def _leader_hint(error: grpc.aio.AioRpcError) -> str:
    meant = from_rpc_error(error)
    return meant.leader_hint or "" if isinstance(meant, NotLeader) else ""
