"""The streams of WatchShardMap: one coroutine per watcher, nothing queued.

A watcher remembers the version it was sent last. When the map moves on, it is sent one delta from there to now,
however many changes that spans; when the history does not reach back that far, the full state. So a slow watcher
costs one version number, and catches up in one message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_runtime.errors import PreconditionFailed, RateLimited, Unavailable

from flotta_coordinator import wire
from flotta_coordinator.leadership import Session
from flotta_coordinator.store import MetadataStore

STEPPED_DOWN = "Coordinator stepped down from leader"
RETRY_AFTER_MS = 1_000


class Watchers:
    def __init__(
        self, store: MetadataStore, messages: wire.StateMessages, *, heartbeat_ms: int, watchers_max: int
    ) -> None:
        self._store = store
        self._messages = messages
        self._heartbeat_ms = heartbeat_ms
        self._watchers_max = watchers_max
        self._wakers: dict[asyncio.Event, None] = {}  # in the order they came
        self._closed = False

    def __len__(self) -> int:
        return len(self._wakers)

    def close(self) -> None:
        """End every stream; the service is stopping."""
        self._closed = True
        for waker in self._wakers:
            waker.set()

    async def watch(self, session: Session, from_version: int, *, records: bool) -> AsyncIterator[pb.ShardMapDelta]:
        """Deltas as long as the session lasts; ends with PreconditionFailed when it is over."""
        if len(self._wakers) >= self._watchers_max:
            raise RateLimited(f"{self._watchers_max} watchers are connected already", retry_after_ms=RETRY_AFTER_MS)
        waker = asyncio.Event()
        self._wakers[waker] = None
        self._store.subscribe(waker)
        session.wake_on_end(waker)
        try:
            sent = from_version
            if from_version == 0:
                sent, message = self._full()
                yield message
            while True:
                waker.clear()
                self._check(session)
                message_or_none = self._next(sent, records=records)
                if message_or_none is not None:
                    sent = message_or_none.new_map_version
                    yield message_or_none
                elif not await self._woken(waker):
                    yield pb.ShardMapDelta()
        finally:
            session.forget(waker)
            self._store.unsubscribe(waker)
            self._wakers.pop(waker, None)

    async def _woken(self, waker: asyncio.Event) -> bool:
        try:
            async with asyncio.timeout(self._heartbeat_ms / 1000):
                await waker.wait()
        except TimeoutError:
            return False
        return True

    def _check(self, session: Session) -> None:
        if self._closed:
            raise Unavailable("the coordinator is stopping")
        if session.ended:
            raise PreconditionFailed(STEPPED_DOWN)

    def _next(self, sent: int, *, records: bool) -> pb.ShardMapDelta | None:
        delta = self._store.history().since(sent)
        if delta is None:
            return self._full()[1]
        if delta.version == sent:
            return None
        return wire.delta_message(self._store.state(), delta, records=records)

    def _full(self) -> tuple[int, pb.ShardMapDelta]:
        state = self._store.state()
        return state.map_version, pb.ShardMapDelta(
            new_map_version=state.map_version, full_state=self._messages.of(state)
        )
