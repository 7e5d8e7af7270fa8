"""The peer transport over native links: Raft frames travel on a link for each direction, from host to host.

Identities and snapshots are the gRPC transport's, which this one is beside that: `Identify` is served, snapshots have a
gRPC connection of their own, and a peer that does not speak links sends and gets its frames over the gRPC stream.

Invariants: a link of a peer is accepted only after its token and identity were checked, and frames of it are stepped
only between `attach` and `detach`; until a link is bound, and again when it is gone, the host's frames come out of its
`poll` and are what makes the transport connect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import flotta_native
from flotta_runtime.links import Links, metadata_of

from flotta_consensus.core.clock_bounds import PeerClocks
from flotta_consensus.frame_link import PURPOSE, FrameLink
from flotta_consensus.grpc_transport import NOT_READY, STOPPING, WRONG_TOKEN, GrpcTransport, system_monotonic_ms
from flotta_consensus.identity import DataDirectory, IdentityError
from flotta_consensus.peer_identity import NODE_KEY, to_message
from flotta_consensus.peer_link import Outgoing
from flotta_consensus.tasks import start_in
from flotta_consensus.transport import AddressBook, Receiver

LINK_KEEPALIVE_MS = 2_000  # a peer that is silent for this long is asked, and given up after as long again
_CLOCKS_SECONDS = 0.25


def make_transport(
    links: Links | None, directory: DataDirectory, addresses: AddressBook, **options: Any
) -> GrpcTransport:
    """Over `links`, or without them over gRPC alone. `options` are those of `GrpcTransport`."""
    if links is None:
        return GrpcTransport(directory, addresses, **options)
    return NativeTransport(directory, addresses, links, **options)


class NativeTransport(GrpcTransport):
    """Implements `transport.HostTransport`. `options` are those of `GrpcTransport`."""

    def __init__(self, directory: DataDirectory, addresses: AddressBook, links: Links, **options: Any) -> None:
        super().__init__(directory, addresses, **options)
        self._links_in: dict[int, _Incoming] = {}
        self._hub_links = links
        self._monotonic_ms: Callable[[], int] = options.get("monotonic_ms", system_monotonic_ms)
        self._ways = (self._new_link, *self._ways)
        self._tasks: asyncio.TaskGroup | None = None
        self._heard: dict[int, int] = {}
        self.peer_clocks = _HubClocks(self._take_clocks)
        links.serve(PURPOSE, self._hello)

    def attach_host(self, host: flotta_native.RaftHost) -> None:
        """From now on bound links carry the frames of `host`."""
        self._hub_links.hub.attach_raft(host)

    def detach(self) -> None:
        super().detach()
        self._hub_links.hub.detach_raft()
        self._close_incoming()

    def end_streams(self) -> None:
        super().end_streams()
        self._close_incoming()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(super().run())
                tasks.create_task(self._hear_clocks())
        finally:
            self._tasks = None

    def _new_link(self, outgoing: Outgoing) -> FrameLink:
        return FrameLink(outgoing, self._directory, self._guard, self._hub_links, self._token, self._options)

    def _close_incoming(self) -> None:
        for link in tuple(self._links_in):
            self._hub_links.close(link, STOPPING)

    # Links that peers make

    def _hello(self, link: int, hello: bytes, peer: Any) -> None:
        try:
            metadata = metadata_of(hello)
        except ValueError as error:
            self._hub_links.refuse(link, str(error))
            return
        if not self._guard.right_token(metadata):
            self._hub_links.refuse(link, WRONG_TOKEN)
        elif self._tasks is None or self._servicer.target is None:
            self._hub_links.refuse(link, NOT_READY)
        elif start_in(self._tasks, self._admit(link, metadata)) is None:
            self._hub_links.refuse(link, STOPPING)

    async def _admit(self, link: int, metadata: dict[str, str]) -> None:
        try:
            sender = await self._guard.admit_stream(metadata)
        except (IdentityError, OSError) as refusal:
            self._hub_links.refuse(link, str(refusal))
            return
        target = self._servicer.target
        if target is None:
            self._hub_links.refuse(link, NOT_READY)
            return
        known = self._directory.peers.store_of_node(metadata.get(NODE_KEY, ""))
        greeting = to_message(self._directory.identity, known).SerializeToString()
        owner = _Incoming(target[0], lambda: self._links_in.pop(link, None))
        try:
            accepted = self._hub_links.accept_raft(link, greeting, sender, owner)
        except RuntimeError as gone:  # the host has ended by itself, which is told elsewhere
            self._hub_links.refuse(link, str(gone))
            return
        if accepted:
            self._links_in[link] = owner

    async def _hear_clocks(self) -> None:
        while True:
            await asyncio.sleep(_CLOCKS_SECONDS)
            self._take_clocks()

    def _take_clocks(self) -> None:
        """What the peers' clocks said with their frames, on the monotonic clock of this process."""
        apart_ms = self._monotonic_ms() - system_monotonic_ms()
        for node_num, wall_ms, heard_ms in self._hub_links.hub.peer_clocks():
            if self._heard.get(node_num) != heard_ms:
                self._heard[node_num] = heard_ms
                self.peer_clocks.heard(node_num, wall_ms, heard_ms + apart_ms)


class _HubClocks(PeerClocks):
    """While nobody is known here the hub is asked at once: a leader has heard voters before it stamps anything, and its
    first stamps are to be held to their clocks already."""

    def __init__(self, take: Callable[[], None]) -> None:
        super().__init__()
        self._take = take

    def walls_ms(self, monotonic_ms: int) -> list[int]:
        if not (found := super().walls_ms(monotonic_ms)):
            self._take()
            found = super().walls_ms(monotonic_ms)
        return found


class _Incoming:
    """Owns a link that a peer made. Its Raft frames go to the host by themselves; others are what the peer's host gave
    out before its end of the link was bound."""

    def __init__(self, receiver: Receiver, gone: Callable[[], object]) -> None:
        self._receiver = receiver
        self._gone = gone

    def up(self, greeting: bytes) -> None:
        raise RuntimeError("this link came in, it was not made here")

    def frame(self, data: bytes) -> None:
        self._receiver.receive(data)

    def down(self, reason: str) -> None:
        self._gone()

    def next_frame(self) -> bytes:
        return b""

    def not_taken(self) -> None:
        raise RuntimeError("nothing is sent on this link")
