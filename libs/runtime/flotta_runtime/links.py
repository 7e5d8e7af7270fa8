"""The native links of a process on its event loop: one reader for all of them, and one call for all that is sent.

Links come in by purpose: whoever serves a purpose answers each HELLO with `accept` or `refuse`. From then on, and from
`connect` on for links that are made here, a link has an owner, who is told everything in order.

Invariants:
- Everything that arrived is handed out within one turn (`turns.py`); what owners have to send is asked of them once
  the turn is over, and leaves in one call for each round of frames.
- An owner hears `down` exactly once, as the last of all, whatever ended the link.
- What a peer sends can end its own link and no more: an error of an owner over a frame closes that link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import flotta_native
from flotta_proto.flotta import link_pb2
from google.protobuf.message import DecodeError

from flotta_runtime.turns import Turns

LINK_NOT_SPOKEN = flotta_native.LINK_NOT_SPOKEN
"""Why a link is down that was made to something that knows no links; it may be a gRPC server."""


class LinkOwner(Protocol):
    """Whom a link belongs to. All of it is called on the event loop, inside a turn."""

    def up(self, greeting: bytes) -> None:
        """The peer has accepted. Only for links made here."""
        ...

    def frame(self, data: bytes) -> None:
        """A frame of the peer's."""
        ...

    def down(self, reason: str) -> None:
        """The link is gone, or was never had; the peer's own words if it refused."""
        ...

    def next_frame(self) -> bytes:
        """Asked after `wake`, until there is none: what to send next."""
        ...

    def not_taken(self) -> None:
        """The last frame asked for was not sent: the link is down, or too much waits on it already. It is not asked
        for more until the next `wake`."""
        ...


Acceptor = Callable[[int, bytes, Any], None]
"""(link, hello, the peer as the native side knows it): answers, at once or later, with `accept` or `refuse`."""


def hello_of(metadata: tuple[tuple[str, str], ...]) -> bytes:
    """What a process says of itself, as a call's metadata would."""
    return link_pb2.Hello(metadata=dict(metadata)).SerializeToString()


def metadata_of(hello: bytes) -> dict[str, str]:
    """The opposite of `hello_of`. ValueError if it is no such thing."""
    try:
        return dict(link_pb2.Hello.FromString(hello).metadata)
    except DecodeError as error:
        raise ValueError("the greeting cannot be read") from error


def open_links(
    turns: Turns,
    *,
    unsent_bytes_max: int,
    keepalive_ms: int,
    tls: flotta_native.ClientTls | None,
    report: Callable[[str], None],
) -> Links:
    """The links of a service: `unsent_bytes_max` of each; a peer is asked after `keepalive_ms` of silence, and given up
    after as long again."""
    hub = flotta_native.LinkHub(
        unsent_bytes_max=unsent_bytes_max, keepalive_ms=keepalive_ms, keepalive_timeout_ms=keepalive_ms
    )
    return Links(hub, turns, tls=tls, report=report)


class Links:
    """See the module. `run` is its one task. `tls` is for the links made here."""

    def __init__(
        self,
        hub: flotta_native.LinkHub,
        turns: Turns,
        *,
        tls: flotta_native.ClientTls | None = None,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.hub = hub
        self._tls = tls
        self._turns = turns
        self._report = report
        self._acceptors: dict[str, Acceptor] = {}
        self._owners: dict[int, LinkOwner] = {}
        self._refusals: dict[int, str] = {}
        self._pending: set[int] = set()  # links whose HELLO is not answered yet
        self._awake: dict[int, None] = {}
        self._failure: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Hand out events until cancelled. Raises if the native side fails."""
        loop = asyncio.get_running_loop()
        self._failure = failure = loop.create_future()
        descriptor = self.hub.notify_fd()
        loop.add_reader(descriptor, self._poll)
        try:
            self._poll()
            await failure
        finally:
            loop.remove_reader(descriptor)
            self._failure = None

    def serve(self, purpose: str, acceptor: Acceptor) -> None:
        """Take links of this purpose."""
        self._acceptors[purpose] = acceptor

    def connect(self, address: str, purpose: str, hello: bytes, owner: LinkOwner, timeout_ms: int) -> int:
        """A new link; the owner hears `up` or `down` later."""
        link = self.hub.connect(address, purpose, hello, timeout_ms=timeout_ms, tls=self._tls)
        self._owners[link] = owner
        return link

    def accept(self, link: int, greeting: bytes, owner: LinkOwner) -> bool:
        """False if the link has gone meanwhile: then there is nothing to own."""
        if link not in self._pending:
            return False
        self.hub.accept(link, greeting)
        self._adopt(link, owner)
        return True

    def accept_raft(self, link: int, greeting: bytes, node_num: int, owner: LinkOwner) -> bool:
        """As `accept`; Raft frames of the link go to the attached host. RuntimeError if there is none."""
        if link not in self._pending:
            return False
        self.hub.accept_raft(link, greeting, node_num)
        self._adopt(link, owner)
        return True

    def _adopt(self, link: int, owner: LinkOwner) -> None:
        self._pending.discard(link)
        self._owners[link] = owner

    def refuse(self, link: int, reason: str) -> None:
        if link in self._pending:
            self._pending.discard(link)
            self.hub.refuse(link, reason)

    def wake(self, link: int) -> None:
        """The owner of this link has something to send."""
        if not self._awake:
            self._turns.at_end(self._flush)
        self._awake[link] = None

    def close(self, link: int, reason: str) -> None:
        """Send what was taken, then end it; its owner hears `down` when that is done."""
        self.hub.close(link, reason)

    def close_all(self, reason: str) -> None:
        for link in (*self._owners, *self._pending):
            self.hub.close(link, reason)

    def shut_down(self) -> None:
        """The end, at once: nothing is heard of any link any more."""
        self.hub.shut_down()

    def __len__(self) -> int:
        return len(self._owners)

    def _poll(self) -> None:
        try:
            with self._turns:
                for kind, link, data in self.hub.poll():
                    self._take(kind, link, data)
        except BaseException as error:
            if self._failure is None or self._failure.done():
                raise
            self._failure.set_exception(error)

    def _take(self, kind: int, link: int, data: Any) -> None:
        if kind == flotta_native.LINK_FRAME:
            if (owner := self._owners.get(link)) is not None:
                self._guard(link, owner.frame, data)
        elif kind == flotta_native.LINK_HELLO:
            self._hello(link, *data)
        elif kind == flotta_native.LINK_UP:
            if (owner := self._owners.get(link)) is not None:
                self._guard(link, owner.up, data)
        elif kind == flotta_native.LINK_REFUSED:
            self._refusals[link] = data
        elif kind == flotta_native.LINK_DOWN:
            self._pending.discard(link)
            self._awake.pop(link, None)
            reason = self._refusals.pop(link, data)
            if (owner := self._owners.pop(link, None)) is not None:
                owner.down(reason)

    def _hello(self, link: int, purpose: str, hello: bytes, peer: Any) -> None:
        self._pending.add(link)
        acceptor = self._acceptors.get(purpose)
        if acceptor is None:
            self.refuse(link, f"this process takes no links for {purpose[:40]!r}")
        else:
            self._guard(link, acceptor, link, hello, peer)

    def _guard(self, link: int, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self._report(f"a link was closed over what came from it: {reason}")
            self.hub.close(link, reason)

    def _flush(self) -> None:
        awake, self._awake = self._awake, {}
        while awake:
            frames = []
            for link in awake:
                owner = self._owners.get(link)
                frame = owner.next_frame() if owner is not None else b""
                if frame:
                    frames.append((link, frame))
            awake = dict.fromkeys(link for link, _ in frames)
            if not frames:
                return
            for link in self.hub.send_many(frames):
                awake.pop(link, None)
                owner = self._owners.get(link)
                if owner is not None:
                    owner.not_taken()
