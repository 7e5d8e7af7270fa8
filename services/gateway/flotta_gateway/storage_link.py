"""What waits for one storage node, what was sent to it, and what became of every operation handed over.

How frames travel is a `Session`'s matter: one connection, over gRPC or over a native link. Everything that must hold
whichever it is stands here: bounds, who is answered and with which certainty, when to connect again.

Invariants:
- An operation handed over is answered exactly once: by the node's reply, or by one `Lost` that says whether it may
  have reached the node. "Not sent" is said only when no byte of it was handed to a connection.
- What waits is bounded, in operations and in bytes; over the bound an operation is refused at once.
- While the node cannot be reached, operations are refused at once; the link keeps trying behind them.
- A node that stops says so: nothing more is sent to it, and what it has is waited for.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from flotta_proto.flotta.storage_pb2 import Reply, ReplyFrame
from flotta_runtime.logging import get_logger
from flotta_runtime.server import MESSAGE_BYTES_MAX

from flotta_gateway.core.wire import varint

OwnerT = TypeVar("OwnerT")


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """Bounds and times of a link."""

    operations_max: int = 10_000
    bytes_max: int = 64 * 1024 * 1024
    frame_bytes: int = 512 * 1024  # a frame is closed once it has this much; one operation may be larger
    message_bytes_max: int = MESSAGE_BYTES_MAX
    connect_timeout_ms: int = 1_000
    reconnect_ms: int = 50
    reconnect_ms_max: int = 500
    keepalive_ms: int = 2_000
    keepalive_timeout_ms: int = 2_000


@dataclass(slots=True, eq=False)
class Attempt(Generic[OwnerT]):
    """One operation on its way to one node."""

    number: int  # unique on this gateway
    payload: bytes  # the serialised operation; let go once written
    owner: OwnerT
    size: int = 0
    dropped: bool = False  # nobody waits for it any more

    def __post_init__(self) -> None:
        self.size = len(self.payload)


class Reason(enum.Enum):
    """Why an attempt got no reply."""

    NOT_SENT = "not sent"
    LOST = "lost"
    OVERLOAD = "overload"


@dataclass(frozen=True, slots=True)
class Lost(Generic[OwnerT]):
    """Attempts that will get no reply."""

    attempts: Sequence[Attempt[OwnerT]]
    reason: Reason
    message: str


class LinkEvents(Protocol[OwnerT]):
    """What a link reports; both are called on the event loop, never from within `submit`."""

    def replied(self, address: str, replies: Sequence[tuple[Attempt[OwnerT], Reply]]) -> None: ...

    def lost(self, address: str, lost: Lost[OwnerT]) -> None: ...


class Carrier(Protocol):
    """What a session carries for. Event loop only."""

    def next_frame(self) -> bytes:
        """What to send next, from here on counted as sent; empty when nothing waits."""
        ...

    def received(self, frame: bytes) -> None:
        """A frame of replies."""
        ...

    def not_taken(self) -> None:
        """The frame that was given out last went nowhere after all."""
        ...


class Session(Protocol):
    """One connection to one node. `connect` sends nothing of the carrier's: when it fails, nothing is in doubt."""

    async def connect(self) -> None:
        """Return once the node has accepted. `SessionEnded` says why it did not."""
        ...

    async def carry(self) -> None:
        """Carry frames both ways until it ends, and then raise `SessionEnded`."""
        ...

    def wake(self) -> None:
        """Something waits to be sent. Only while `carry` runs."""
        ...

    def finish(self) -> None:
        """Nothing waits any more and nothing will be sent: let it end."""
        ...

    async def close(self) -> None:
        """Let go of everything, whatever happened."""
        ...


class SessionEnded(Exception):
    """Why a session ended."""


class NotSpoken(SessionEnded):
    """The node does not know this kind of session. It may know another."""


SessionFactory = Callable[[str, Carrier], Session]


class _State(enum.Enum):
    CONNECTING = "connecting"
    UP = "up"
    LEAVING = "leaving"
    DOWN = "down"
    CLOSED = "closed"


class StorageLink(Generic[OwnerT]):
    """The link to the node at `address`. `run()` is its one task; it connects in the first of `ways` that is spoken."""

    def __init__(
        self,
        address: str,
        events: LinkEvents[OwnerT],
        options: LinkOptions,
        ways: Sequence[SessionFactory],
        jitter: Callable[[], float],
    ) -> None:
        self.address = address
        self._events = events
        self._options = options
        self._ways = ways
        self._jitter = jitter
        self._state = _State.CONNECTING
        self._why_down = ""
        self._session: Session | None = None  # while it carries
        self._queue: deque[Attempt[OwnerT]] = deque()
        self._waiting: dict[int, Attempt[OwnerT]] = {}
        self._newest: list[Attempt[OwnerT]] = []  # those of the last frame
        self._bytes = 0
        self._got_reply = False
        self._log = get_logger("gateway.link", node=address)
        self.frames_sent = 0
        self.operations_sent = 0

    @property
    def up(self) -> bool:
        """Whether operations can be sent."""
        return self._state is _State.UP

    @property
    def operations_open(self) -> int:
        """Operations queued or sent, and not yet answered."""
        return len(self._queue) + len(self._waiting)

    def submit(self, attempts: Sequence[Attempt[OwnerT]]) -> Lost[OwnerT] | None:
        """Take over `attempts`; what cannot be taken is returned, and was not sent."""
        if self._state not in (_State.UP, _State.CONNECTING):
            return Lost(attempts, Reason.NOT_SENT, f"storage node {self.address} cannot be reached: {self._why_down}")
        options = self._options
        room = options.operations_max - self.operations_open
        taken = 0
        for attempt in attempts:
            # One operation always fits into an empty link, however large it is.
            if taken >= room or (self._bytes and self._bytes + attempt.size > options.bytes_max):
                break
            self._queue.append(attempt)
            self._bytes += attempt.size
            taken += 1
        if taken and self._session is not None:
            self._session.wake()
        if taken == len(attempts):
            return None
        return Lost(attempts[taken:], Reason.OVERLOAD, f"too much is waiting for storage node {self.address}")

    def forget(self, attempt: Attempt[OwnerT]) -> bool:
        """Nobody waits for this attempt any more. Returns whether it was sent; if it was not, it never will be."""
        if attempt.dropped:
            return False
        attempt.dropped = True
        self._bytes -= attempt.size
        sent = self._waiting.pop(attempt.number, None) is not None
        self._finish_if_done()
        return sent

    async def run(self) -> None:
        """Connect, carry frames, and connect again; until cancelled."""
        pause_ms = self._options.reconnect_ms
        try:
            while True:
                self._got_reply = False
                self._down(await self._connect_and_carry())
                if self._got_reply:
                    pause_ms = self._options.reconnect_ms
                await asyncio.sleep(pause_ms * (1 + 0.25 * self._jitter()) / 1000)
                pause_ms = min(pause_ms * 2, self._options.reconnect_ms_max)
        finally:
            self._state = _State.CLOSED
            self._why_down = "the gateway has closed this connection"
            self._fail_all()

    async def _connect_and_carry(self) -> SessionEnded:
        """One connection, until it ends. Returns why it did."""
        ended = SessionEnded("there is no way to connect")
        for way in self._ways:
            session = way(self.address, self)
            try:
                await session.connect()
                self._state = _State.UP
                self._session = session
                self._log.info("storage node connected")
                await session.carry()
                ended = SessionEnded("the session ended")
            except NotSpoken as error:
                ended = error
                continue
            except SessionEnded as error:
                ended = error
            finally:
                self._session = None
                await session.close()
            break
        return ended

    # What a session reports

    def received(self, frame: bytes) -> None:
        """Replies, some of which nobody may be waiting for any more."""
        self._got_reply = True
        waiting = self._waiting
        message = ReplyFrame.FromString(frame)
        answered = []
        for reply in message.replies:
            attempt = waiting.pop(reply.call, None)
            if attempt is not None:
                self._bytes -= attempt.size
                answered.append((attempt, reply))
        if message.leaving and self._state is _State.UP:
            self._leave()
        if answered:
            self._events.replied(self.address, answered)
        self._finish_if_done()

    def next_frame(self) -> bytes:
        """Take operations off the queue; from here on they count as sent."""
        queue = self._queue
        self._newest = newest = []
        parts: list[bytes] = []
        size = 0
        while queue and (size == 0 or size + queue[0].size <= self._options.frame_bytes):
            attempt = queue.popleft()
            if attempt.dropped:
                continue
            parts += (b"\x0a", varint(attempt.size), attempt.payload)  # field 1 of OperationFrame
            size += attempt.size
            attempt.payload = b""
            self._waiting[attempt.number] = attempt
            newest.append(attempt)
        self.operations_sent += len(newest)
        self.frames_sent += bool(newest)
        return b"".join(parts)

    def not_taken(self) -> None:
        """Of the last frame nothing was sent, and its operations are certainly not done."""
        unsent = [attempt for attempt in self._newest if self._waiting.pop(attempt.number, None) is not None]
        self._newest = []
        self._bytes -= sum(attempt.size for attempt in unsent)
        if unsent:
            why = f"the connection to storage node {self.address} takes nothing more"
            self._events.lost(self.address, Lost(unsent, Reason.NOT_SENT, why))

    def _leave(self) -> None:
        """The node stops, and answers what it has."""
        self._log.info("storage node is stopping")
        self._state = _State.LEAVING
        self._why_down = "it is stopping"
        self._fail_unsent()

    def _finish_if_done(self) -> None:
        if self._state is _State.LEAVING and not self._waiting and self._session is not None:
            self._session.finish()

    def _down(self, ended: SessionEnded) -> None:
        why = str(ended)
        if why != self._why_down or self._state is _State.UP:
            self._log.warning("storage node disconnected", reason=why)
        self._state = _State.DOWN
        self._why_down = why
        self._fail_all()

    def _fail_all(self) -> None:
        sent = list(self._waiting.values())
        self._waiting.clear()
        self._bytes -= sum(attempt.size for attempt in sent)
        if sent:
            self._events.lost(self.address, Lost(sent, Reason.LOST, self._why()))
        self._fail_unsent()

    def _fail_unsent(self) -> None:
        unsent = [attempt for attempt in self._queue if not attempt.dropped]
        self._queue.clear()
        self._bytes -= sum(attempt.size for attempt in unsent)
        if unsent:
            self._events.lost(self.address, Lost(unsent, Reason.NOT_SENT, self._why()))

    def _why(self) -> str:
        return f"storage node {self.address}: {self._why_down}"
