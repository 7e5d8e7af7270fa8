"""Raft frames to one peer over a native link.

Once the link is bound, the Raft host's frames go to it without Python; what comes here is what the host gave out
before that. The peer says who it is as it accepts, and it is checked before anything is sent. Links notice by
themselves when their peer takes nothing any more.
"""

from __future__ import annotations

import asyncio

from flotta_runtime.links import LINK_NOT_SPOKEN, Links, hello_of

from flotta_consensus.identity import DataDirectory, IdentityError
from flotta_consensus.peer_identity import Answer, PeerGuard, stream_metadata
from flotta_consensus.peer_link import LinkOptions, NotSpoken, Outgoing, SessionEnded

PURPOSE = "raft"


class FrameLink:
    """Implements `peer_link.PeerSession`, and owns its link."""

    def __init__(
        self,
        outgoing: Outgoing,
        directory: DataDirectory,
        guard: PeerGuard,
        links: Links,
        token: str,
        options: LinkOptions,
    ) -> None:
        self._outgoing = outgoing
        self._guard = guard
        self._links = links
        self._options = options
        self._hello = hello_of(stream_metadata(directory.identity, outgoing.node_num, token))
        self._link: int | None = None  # while it is there
        self._bound = False
        self._greeting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[SessionEnded] = asyncio.get_running_loop().create_future()

    # The session

    def wake(self) -> None:
        if self._link is not None and self._bound:
            self._links.wake(self._link)

    async def run(self) -> None:
        outgoing = self._outgoing
        link = self._link = self._links.connect(
            outgoing.address, PURPOSE, self._hello, self, self._options.connect_timeout_ms
        )
        why = "this process ends the link"
        try:
            await asyncio.wait((self._greeting, self._ended), return_when=asyncio.FIRST_COMPLETED)
            if not self._ended.done():
                await self._guard.admit_answer(Answer.parse(self._greeting.result()), outgoing.node_num)
                self._bind(link)
            raise await self._ended
        except IdentityError as error:
            why = str(error)
            raise SessionEnded(why) from error
        finally:
            if self._link is not None:
                self._links.close(link, why)
                self._link = None

    def _bind(self, link: int) -> None:
        """What waited goes first, so that the host's next frames come after it."""
        if self._link is None:
            return
        while frame := self._outgoing.queue.pop():
            self._links.hub.send_many([(link, frame)])
        try:
            self._links.hub.bind_raft(link, self._outgoing.node_num)
        except RuntimeError as gone:  # the host has ended by itself, which is told elsewhere
            raise SessionEnded(f"{self._outgoing}: {gone}") from gone
        self._bound = True
        self._outgoing.worked()

    # The link's owner

    def up(self, greeting: bytes) -> None:
        if not self._greeting.done():
            self._greeting.set_result(greeting)

    def frame(self, data: bytes) -> None:
        raise ValueError("a peer sends its frames on a link of its own")

    def down(self, reason: str) -> None:
        self._link = None
        if not self._ended.done():
            text = f"{self._outgoing}: {reason}"
            self._ended.set_result(NotSpoken(text) if reason == LINK_NOT_SPOKEN else SessionEnded(text))

    def next_frame(self) -> bytes:
        return self._outgoing.queue.pop() if self._link is not None else b""

    def not_taken(self) -> None:
        """The link is going down, which reports the peer as unreachable; or the peer is so far behind that the frame
        is better lost."""
