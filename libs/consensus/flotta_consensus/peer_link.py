"""One direction of Raft frames to one peer: a bounded queue, one connection at a time, reconnects.

How frames travel is a `PeerSession`'s matter: a gRPC stream (`frame_stream.py`) or a native link (`frame_link.py`).
What does not fit into the queue pushes out the oldest, and what waited while no connection could be made is dropped
(Raft sends what still matters again); both are reported as unreachable.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from flotta_proto.flotta import raft_pb2

from flotta_consensus.transport import AddressBook


@dataclass(frozen=True, slots=True)
class LinkOptions:
    queue_bytes_max: int = 64 << 20
    window_bytes: int = 32 << 20  # sent and not yet taken by the peer
    piece_bytes: int = 1 << 20  # one gRPC message
    connect_timeout_ms: int = 2_000
    stalled_ms: int = 5_000
    backoff_first_ms: int = 50
    backoff_longest_ms: int = 2_000


class FrameQueue:
    """Frames in order, bounded in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._frames: deque[bytes] = deque()
        self.bytes = 0

    def put(self, frame: bytes) -> bool:
        """False if older frames had to go."""
        self._frames.append(frame)
        self.bytes += len(frame)
        kept_all = True
        while self.bytes > self._bytes_max and len(self._frames) > 1:
            self.bytes -= len(self._frames.popleft())
            kept_all = False
        return kept_all

    def pop(self) -> bytes:
        """The oldest frame, whole; empty if there is none."""
        if not self._frames:
            return b""
        frame = self._frames.popleft()
        self.bytes -= len(frame)
        return frame

    def clear(self) -> bool:
        """True if there was something."""
        had = bool(self._frames)
        self._frames.clear()
        self.bytes = 0
        return had

    def take(self, piece_bytes: int) -> list[raft_pb2.Frame]:
        """As many frames as fit into one message; a bigger frame alone, in pieces."""
        if not self._frames:
            return []
        first = self._frames.popleft()
        self.bytes -= len(first)
        if len(first) > piece_bytes:
            starts = range(0, len(first), piece_bytes)
            return [
                raft_pb2.Frame(messages=first[start : start + piece_bytes], continues=start + piece_bytes < len(first))
                for start in starts
            ]
        message = raft_pb2.Frame(messages=first)
        total = len(first)
        while self._frames and total + len(self._frames[0]) <= piece_bytes:
            frame = self._frames.popleft()
            total += len(frame)
            message.more.append(frame)
        self.bytes -= total - len(first)
        return [message]


class PeerSession(Protocol):
    """One connection to one peer."""

    async def run(self) -> None:
        """Until it ends; raises `SessionEnded` to say why it did."""
        ...

    def wake(self) -> None:
        """There is something in the queue."""
        ...


class SessionEnded(Exception):
    """Why a connection ended, or could not be made: a sentence for the operator."""


class NotSpoken(SessionEnded):
    """The peer does not know this kind of connection. It may know another."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What a session carries, and whom it tells that the peer takes it."""

    node_num: int
    address: str
    queue: FrameQueue
    worked: Callable[[], None]

    def __str__(self) -> str:
        return f"node number {self.node_num} at {self.address}"


SessionFactory = Callable[[Outgoing], PeerSession]


class PeerLink:
    """Sends to one node number for as long as `run` goes, in the first of `ways` that the peer speaks."""

    def __init__(
        self,
        node_num: int,
        addresses: AddressBook,
        ways: Sequence[SessionFactory],
        options: LinkOptions,
        *,
        unreachable: Callable[[int], None],
        report: Callable[[str], None],
    ) -> None:
        self.node_num = node_num
        self._addresses = addresses
        self._ways = ways
        self._options = options
        self._unreachable = unreachable
        self._report = report
        self._queue = FrameQueue(options.queue_bytes_max)
        self._filled = asyncio.Event()
        self._session: PeerSession | None = None
        self._has_worked = False
        self._last_report = ""

    def send(self, frame: bytes) -> None:
        if not self._queue.put(frame):
            self._unreachable(self.node_num)
        self._filled.set()
        if self._session is not None:
            self._session.wake()

    async def run(self) -> None:
        """Connect, carry, start over; until cancelled."""
        attempt = 0
        while True:
            await self._filled.wait()
            self._has_worked = False
            problem = await self._serve_once()
            attempt = 0 if self._has_worked else attempt + 1
            self._say(problem)
            self._queue.clear()
            self._filled.clear()
            self._unreachable(self.node_num)
            longest = min(self._options.backoff_first_ms << min(attempt, 10), self._options.backoff_longest_ms)
            await asyncio.sleep(random.uniform(0.5, 1.0) * longest / 1000)

    async def _serve_once(self) -> str:
        """One connection, to its end. Returns what ended it."""
        address = self._addresses(self.node_num)
        if address is None:
            return f"node number {self.node_num} has no known address"
        outgoing = Outgoing(self.node_num, address, self._queue, self._worked)
        problem = ""
        for way in self._ways:
            self._session = session = way(outgoing)
            try:
                await session.run()
            except NotSpoken as ended:
                problem = str(ended)
                continue
            except SessionEnded as ended:
                problem = str(ended)
            finally:
                self._session = None
            break
        return problem

    def _worked(self) -> None:
        self._has_worked = True
        self._say("")

    def _say(self, text: str) -> None:
        """Each problem once, not once for every attempt."""
        if text != self._last_report:
            self._last_report = text
            if text:
                self._report(text)
