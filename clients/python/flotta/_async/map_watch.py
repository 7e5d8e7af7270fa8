"""Keeps the newest shard map: follows a coordinator's watch, and fetches when asked or when the watch has a gap.

Invariants:
- `current` only moves forward, whoever answered, and `on_change` is told of every move.
- Any coordinator will do: one that redirects is followed, one that does not answer is passed by.
- Fetches are coalesced: who comes while one runs, or just after, shares its result.
- Nobody who makes a call waits for a coordinator, except for the first map.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import grpc
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb.coordinator_pb2_grpc import CoordinatorStub

from flotta._async.primitives import Background, Channel, Event, Lock, WatchCall
from flotta.patience import Patience
from flotta.rpc_failures import code_of, details_of, metadata_of
from flotta.shard_map import ForeignClusterError, ShardMap

RECORDS_METADATA = (("x-flotta-map", "records"),)
FETCH_TIMEOUT_S = 1.5
FETCH_PAUSE_S = 0.1
PATIENCE_MS = 10**12  # a watch is tried again for as long as the client lives

_LOG = logging.getLogger("flotta")


class AsyncMapWatch:
    """See the module. `channel` gives the connection to an address."""

    def __init__(
        self,
        coordinators: Sequence[str],
        channel: Callable[[str], Channel],
        on_change: Callable[[ShardMap, ShardMap], object] | None = None,
    ) -> None:
        self._coordinators = tuple(coordinators)
        self._channel = channel
        self._on_change = on_change
        self._preferred = self._coordinators[0]
        self._fetching = Lock()
        self._fetched_s = float("-inf")
        self._call: WatchCall | None = None
        self._stopping = Event()
        self._following: Background | None = None
        self._refreshing: Background | None = None
        self.known = Event()  # there is a map at all
        self.current = ShardMap()
        self.trouble = "no coordinator was asked yet"

    async def start(self) -> None:
        """Follow the watch in the background."""
        if self._following is None:
            self._following = Background(self._follow, self._interrupt)

    async def stop(self) -> None:
        """End what `start` and `fetch_soon` began."""
        self._stopping.set()
        for background in (self._following, self._refreshing):
            if background is not None:
                await background.stop()

    def _interrupt(self) -> None:
        if self._call is not None:
            self._call.cancel()

    def fetch_soon(self) -> None:
        """Fetch in the background; nothing when that is under way, or was just done."""
        waits = self._refreshing is None or self._refreshing.is_done()
        if waits and self._fetched_s < time.monotonic() - FETCH_PAUSE_S:
            self._refreshing = Background(self._refresh, _nothing)

    async def _refresh(self) -> None:
        await self.fetch()

    async def fetch(self) -> bool:
        """Get the newest map from a coordinator that answers; False when none does, and `trouble` says why."""
        came_s = time.monotonic()
        async with self._fetching:
            if self._fetched_s > came_s - FETCH_PAUSE_S:
                return True
            asked: set[str] = set()
            queue = [self._preferred, *self._coordinators]
            while queue and not self._stopping.is_set():
                address = queue.pop(0)
                if address in asked:
                    continue
                asked.add(address)
                hint = await self._ask(address)
                if hint is None:
                    self._preferred, self._fetched_s = address, time.monotonic()
                    return True
                if hint:
                    queue.insert(0, hint)
            return False

    async def _ask(self, address: str) -> str | None:
        """None: it answered. Otherwise who else to ask, if it said so."""
        request = pb.GetShardMapRequest(if_version_gt=self.current.version)
        try:
            answer = await CoordinatorStub(self._channel(address)).GetShardMap(request, timeout=FETCH_TIMEOUT_S)
            if answer.HasField("state"):
                self._take(self.current.with_state(answer.state))
            self.trouble = f"the coordinator at {address} has none yet: the cluster is empty"
        except grpc.RpcError as error:
            self.trouble = f"the coordinator at {address} says {code_of(error).name}: {details_of(error)}"
            return metadata_of(error, "x-leader-hint")
        except ForeignClusterError as error:
            self.trouble = f"{address}: {error}"
            return ""
        return None

    async def _follow(self) -> None:
        """Hold a watch open until `stop`, from one coordinator after the other."""
        address = self._coordinators[0]
        patience = Patience(PATIENCE_MS)
        while not self._stopping.is_set():
            await self.fetch()
            version = self.current.version
            hint = await self._watch(address)
            if self.current.version > version:
                patience = Patience(PATIENCE_MS)
            address = hint or self._after(address)
            await self._stopping.wait(patience.next_pause_s())

    async def _watch(self, address: str) -> str:
        """Follow one watch until it ends. Returns who to watch instead, if that was said."""
        request = pb.WatchShardMapRequest(from_version=self.current.version)
        call = CoordinatorStub(self._channel(address)).WatchShardMap(request, metadata=RECORDS_METADATA)
        self._call = call
        if self._stopping.is_set():
            call.cancel()
        try:
            async for delta in call:
                following = self.current.with_delta(delta)
                if following is None:
                    await self.fetch()
                else:
                    self._take(following)
        except grpc.RpcError as error:
            self.trouble = f"the watch of {address} ended with {code_of(error).name}: {details_of(error)}"
            return metadata_of(error, "x-leader-hint")
        except ForeignClusterError as error:
            _LOG.error("a shard map is refused: %s: %s", address, error)
        finally:
            self._call = None
            call.cancel()
        return ""

    def _take(self, following: ShardMap) -> None:
        before = self.current
        if following.version > before.version:
            self.current = following
            self.known.set()
            if self._on_change is not None:
                self._on_change(before, following)

    def _after(self, address: str) -> str:
        """The next configured coordinator, round and round; the first for one that is not configured."""
        if address not in self._coordinators:
            return self._coordinators[0]
        return self._coordinators[(self._coordinators.index(address) + 1) % len(self._coordinators)]


def _nothing() -> None:
    """A fetch ends by itself: each of its requests has a timeout."""
