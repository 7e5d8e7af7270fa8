"""The replicas of a simulated process, as its services see them: `Groups` without a thread or a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import flotta_native

from flotta_consensus.api import StateMachine
from flotta_consensus.groups import Groups, HostClosed
from flotta_consensus.sim.node import SimNode


class SimGroups(Groups):
    """Made by each incarnation, once its host is open. The node turns the driver; `observe` wraps a new machine."""

    def __init__(self, node: SimNode, observe: Callable[[int, StateMachine], StateMachine]) -> None:
        super().__init__(node.host, node.driver)
        self._node = node
        self._observe = observe
        self._closing = asyncio.Event()
        node.on_effects = self._tell

    def now_ms(self) -> int:
        return self._node.now_ms

    async def run(self) -> None:
        await self._closing.wait()

    async def close(self) -> None:
        self._closed_because = "closed"
        self._driver.close("closed")
        self._end_lifecycle("closed")
        self._closing.set()

    async def create_group(self, group: int, replica: int, voters: Sequence[int], machine: StateMachine) -> None:
        await super().create_group(group, replica, voters, self._observe(group, machine))

    async def statuses(self, groups: Sequence[int] | None = None) -> list[flotta_native.GroupStatus]:
        await asyncio.sleep(0)  # in production a thread takes them
        if self._closed_because is not None:
            raise HostClosed(self._closed_because)
        return self._host.status(groups)

    def _ask(self) -> None:
        self._node.wake()

    def _wake(self) -> None:
        self._node.wake()
