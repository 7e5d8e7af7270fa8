"""A session over a native link.

Frames go from the carrier to the link and back without a task in between: what is submitted in a turn of the event
loop leaves when that turn is over, and replies are handed on as they are polled. The session's task only waits for the
connection to come and to go. A link that no longer carries bytes is noticed by the links' own pings.
"""

from __future__ import annotations

import asyncio

from flotta_runtime.auth import token_metadata
from flotta_runtime.links import LINK_NOT_SPOKEN, Links, hello_of

from flotta_gateway.storage_link import Carrier, LinkOptions, NotSpoken, SessionEnded, SessionFactory

PURPOSE = "requests"


def link_sessions(links: Links, options: LinkOptions, token: str) -> SessionFactory:
    """Sessions over native links."""
    hello = hello_of(token_metadata(token))
    return lambda address, carrier: LinkSession(address, carrier, links, hello, options.connect_timeout_ms)


class LinkSession:
    """Implements `storage_link.Session`, and owns its link."""

    def __init__(self, address: str, carrier: Carrier, links: Links, hello: bytes, timeout_ms: int) -> None:
        self._address = address
        self._carrier = carrier
        self._links = links
        self._hello = hello
        self._timeout_ms = timeout_ms
        self._link: int | None = None  # while it is there and in use
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[SessionEnded] = asyncio.get_running_loop().create_future()

    # The session

    async def connect(self) -> None:
        self._link = self._links.connect(self._address, PURPOSE, self._hello, self, self._timeout_ms)
        await asyncio.wait((self._accepted, self._ended), return_when=asyncio.FIRST_COMPLETED)
        if self._ended.done():
            raise self._ended.result()

    async def carry(self) -> None:
        self.wake()  # what came before the connection was there
        raise await self._ended

    def wake(self) -> None:
        if self._link is not None:
            self._links.wake(self._link)

    def finish(self) -> None:
        self._close("every operation is answered")

    async def close(self) -> None:
        self._close("the gateway closes this connection")

    # The link's owner

    def up(self, greeting: bytes) -> None:
        if not self._accepted.done():
            self._accepted.set_result(None)

    def frame(self, data: bytes) -> None:
        if self._link is not None:
            self._carrier.received(data)

    def down(self, reason: str) -> None:
        self._link = None
        if not self._ended.done():
            self._ended.set_result(NotSpoken(reason) if reason == LINK_NOT_SPOKEN else SessionEnded(reason))

    def next_frame(self) -> bytes:
        return self._carrier.next_frame() if self._link is not None else b""

    def not_taken(self) -> None:
        self._carrier.not_taken()

    def _close(self, reason: str) -> None:
        """From here on nothing is taken from the carrier any more, and nothing given to it."""
        link, self._link = self._link, None
        if link is not None:
            self._links.close(link, reason)
