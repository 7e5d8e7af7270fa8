"""The links to all storage nodes: made on first use or when the map names a node, closed when it no longer does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from flotta_runtime.tasks import Supervisor

from flotta_gateway.call import Call
from flotta_gateway.storage_link import LinkEvents, LinkOptions, SessionFactory, StorageLink


class LinkPool:
    """One link per address; their tasks belong to `supervisor`. `events` is set before the first use. A link connects
    in the first of `ways` that its node speaks."""

    def __init__(
        self,
        supervisor: Supervisor,
        options: LinkOptions,
        ways: Sequence[SessionFactory],
        jitter: Callable[[], float],
    ) -> None:
        self._supervisor = supervisor
        self._options = options
        self._ways = ways
        self._jitter = jitter
        self._links: dict[str, StorageLink[Call]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.events: LinkEvents[Call] | None = None

    def link_to(self, address: str) -> StorageLink[Call]:
        """The link to `address`."""
        link = self._links.get(address)
        if link is None:
            if self.events is None:
                raise RuntimeError("the pool has nobody to report to")
            link = StorageLink(address, self.events, self._options, self._ways, self._jitter)
            self._links[address] = link
            self._tasks[address] = self._supervisor.spawn(f"link {address}", link.run())
        return link

    def keep(self, addresses: Iterable[str]) -> None:
        """Connect to `addresses` ahead of the first request, and close what is neither among them nor in use."""
        wanted = set(addresses)
        for address in sorted(wanted):
            self.link_to(address)
        for address, link in list(self._links.items()):
            if address not in wanted and link.operations_open == 0:
                del self._links[address]
                self._tasks.pop(address).cancel()

    def links(self) -> list[StorageLink[Call]]:
        """All links, for metrics."""
        return list(self._links.values())
