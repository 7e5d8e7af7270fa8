"""Moving Raft traffic between processes, behind one interface.

Frames may be lost, and are kept in order towards one node; snapshots travel apart from them. A transport never
blocks its caller and never holds unbounded bytes: what does not fit is dropped, oldest first, and the host is told
that the node is unreachable. Nothing of a peer is delivered before its identity was checked and put on record.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import flotta_native

from flotta_consensus.core.effects import SendSnapshot

AddressBook = Callable[[int], str | None]
"""node_num -> host:port, None while unknown. Asked again at every connection attempt, so it may change."""


class Receiver(Protocol):
    """Where a transport delivers to. Called from the event loop; none of these block."""

    def receive(self, frame: bytes) -> None:
        """A frame from an identified peer."""

    def unreachable(self, node_num: int) -> None:
        """Frames to this node were dropped."""


class Transport(Protocol):
    """What `GroupHost` needs. `run` serves until cancelled; sending before `run` only queues."""

    def attach(self, receiver: Receiver, incoming_dir: Path) -> None:
        """Before this, and after `detach`, peers are told to come back later."""

    def detach(self) -> None: ...

    def send(self, node_num: int, frame: bytes) -> None: ...

    async def send_snapshot(self, offer: SendSnapshot, path: Path, progress: Callable[[], None]) -> bool:
        """True once the peer holds the file durably and has stepped the message. `progress` is called every now
        and then while it moves or waits for its turn."""

    async def run(self) -> None: ...


@runtime_checkable
class HostTransport(Transport, Protocol):
    """A transport that carries a native host's frames without their passing through here. What the host's `poll` still
    gives out is sent as with any other. `detach` ends it."""

    def attach_host(self, host: flotta_native.RaftHost) -> None: ...
