"""The replicated cluster state of this member: rows below, one value in memory, and a history for the watchers.

The command handler here is the only writer. It runs inside the machine's apply batch, on the event loop's thread,
so nobody sees a state whose rows are not written. After a snapshot install or a restart the rows are ahead of the
value in memory; the head row's sequence number tells, and the value is loaded anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from flotta_embedded.api import Command, Overlay, View
from flotta_embedded.codec import encode_command
from flotta_embedded.registry import Registry

from flotta_coordinator import rows
from flotta_coordinator.core.commands import Command as Mutation
from flotta_coordinator.core.commands import decode_batch, encode_batch
from flotta_coordinator.core.deltas import Change, History
from flotta_coordinator.core.results import Applied, Result
from flotta_coordinator.core.state import ClusterState
from flotta_coordinator.core.transitions import apply

COMMAND = "coordinator.mutate"
VERSION = 1


def payload(mutations: Sequence[Mutation], stamp_ms: int) -> bytes:
    """The log entry that carries a batch of mutations. They are applied in order, as one entry."""
    return encode_command(COMMAND, VERSION, stamp_ms, encode_batch(mutations))


class MetadataStore:
    """Register its `registry` with the machine, then `attach` the machine's view."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.registry.vector(COMMAND, version=VERSION)(self._handle)
        self._state = ClusterState()
        self._history = History(0)
        self._view: Callable[[], View] | None = None
        self._waiting: dict[asyncio.Event, None] = {}  # in the order they came

    def attach(self, view: Callable[[], View]) -> None:
        """`view()` is the machine's live view; asked again every time, because a restore replaces it."""
        self._view = view
        self._reload(view())

    def state(self) -> ClusterState:
        """The state as of the last applied entry."""
        if self._view is not None:
            self._reload(self._view())
        return self._state

    def history(self) -> History:
        """What changed lately; goes up to exactly `state().map_version`."""
        self.state()
        return self._history

    def subscribe(self, event: asyncio.Event) -> None:
        """Have an event set after every change, until `unsubscribe`."""
        self._waiting[event] = None

    async def changed(self, timeout_ms: int) -> bool:
        """Wait for the next change; False when the time is up first."""
        event = asyncio.Event()
        self.subscribe(event)
        try:
            async with asyncio.timeout(max(0, timeout_ms) / 1000):
                await event.wait()
        except TimeoutError:
            return False
        finally:
            self.unsubscribe(event)
        return True

    def unsubscribe(self, event: asyncio.Event) -> None:
        self._waiting.pop(event, None)

    def _handle(self, overlay: Overlay, commands: Sequence[Command]) -> list[list[Result]]:
        self._reload(overlay)
        results = [
            [self._apply(overlay, mutation, entry.now_ms) for mutation in decode_batch(entry.args)]
            for entry in commands
        ]
        self._wake()
        return results

    def _apply(self, overlay: Overlay, mutation: Mutation, now_ms: int) -> Result:
        result = apply(self._state, mutation, now_ms)
        if isinstance(result, Applied) and result.changed:
            rows.write(overlay, result)
            self._state = result.state
            if result.visible:
                version = result.state.map_version
                self._history.record(Change(version, result.nodes, result.shards, bool(result.tables)))
        return result

    def _reload(self, view: View) -> None:
        if rows.read_head(view).sequence == self._state.sequence:
            return
        self._state = rows.load(view)
        self._history.reset(self._state.map_version)
        self._wake()

    def _wake(self) -> None:
        for event in self._waiting:
            event.set()
