"""One stream of operation frames to one storage node, and what became of every operation handed to it.

Invariants:
- An operation handed over is answered exactly once: by the node's reply, or by one `Lost` that says whether it may
  have reached the node. "Not sent" is said only when no byte of it was handed to the transport.
- What waits is bounded, in operations and in bytes; over the bound an operation is refused at once.
- While the node cannot be reached, operations are refused at once; the link keeps trying behind them.
- A connection that no longer carries bytes is noticed by keepalive pings within seconds and ends its waiters.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import grpc
import grpc.aio
from flotta_proto.flotta.storage_pb2 import Reply, ReplyFrame
from flotta_runtime.auth import token_metadata
from flotta_runtime.logging import get_logger
from flotta_runtime.server import MESSAGE_BYTES_MAX
from flotta_runtime.status import metadata_value

GREETING = "x-flotta-accepted"
_EXECUTE = "/flotta.storage.v1.Shards/Execute"


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


class _State(enum.Enum):
    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"
    CLOSED = "closed"


class StorageLink(Generic[OwnerT]):
    """The link to the node at `address`. `run()` is its one task."""

    def __init__(
        self, address: str, events: LinkEvents[OwnerT], options: LinkOptions, token: str, jitter: Callable[[], float]
    ) -> None:
        self.address = address
        self._events = events
        self._options = options
        self._metadata = token_metadata(token)
        self._jitter = jitter
        self._state = _State.CONNECTING
        self._why_down = ""
        self._queue: deque[Attempt[OwnerT]] = deque()
        self._waiting: dict[int, Attempt[OwnerT]] = {}
        self._bytes = 0
        self._wake = asyncio.Event()
        self._got_reply = False
        self._log = get_logger("gateway.link", node=address)
        self.frames_sent = 0
        self.operations_sent = 0

    @property
    def up(self) -> bool:
        """Whether the stream is open."""
        return self._state is _State.UP

    @property
    def operations_open(self) -> int:
        """Operations queued or sent, and not yet answered."""
        return len(self._queue) + len(self._waiting)

    def submit(self, attempts: Sequence[Attempt[OwnerT]]) -> Lost[OwnerT] | None:
        """Take over `attempts`; what cannot be taken is returned, and was not sent."""
        if self._state is _State.DOWN or self._state is _State.CLOSED:
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
        if taken:
            self._wake.set()
        if taken == len(attempts):
            return None
        return Lost(attempts[taken:], Reason.OVERLOAD, f"too much is waiting for storage node {self.address}")

    def forget(self, attempt: Attempt[OwnerT]) -> bool:
        """Nobody waits for this attempt any more. Returns whether it was sent; if it was not, it never will be."""
        if attempt.dropped:
            return False
        attempt.dropped = True
        self._bytes -= attempt.size
        return self._waiting.pop(attempt.number, None) is not None

    async def run(self) -> None:
        """Connect, carry frames, and connect again; until cancelled."""
        pause_ms = self._options.reconnect_ms
        try:
            while True:
                self._got_reply = False
                try:
                    await self._session()
                except _LinkDown as error:
                    self._down(error)
                if self._got_reply:
                    pause_ms = self._options.reconnect_ms
                await asyncio.sleep(pause_ms * (1 + 0.25 * self._jitter()) / 1000)
                pause_ms = min(pause_ms * 2, self._options.reconnect_ms_max)
        finally:
            self._state = _State.CLOSED
            self._why_down = "the gateway has closed this connection"
            self._fail_all()

    async def _session(self) -> None:
        """One connection, until it ends; always ends with an exception."""
        async with grpc.aio.insecure_channel(self.address, options=self._channel_options()) as channel:
            await self._connect(channel)
            method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(_EXECUTE)
            stream = method(metadata=grpc.aio.Metadata(*self._metadata), wait_for_ready=False)
            await self._greeting(stream)
            self._state = _State.UP
            self._log.info("storage node connected")
            # Whichever side notices the end first takes the other along.
            reader = asyncio.create_task(self._read(stream), name=f"link.read {self.address}")
            writer = asyncio.create_task(self._write(stream), name=f"link.write {self.address}")
            try:
                await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
                # The reader learns the status the stream ended with, the writer only that it ended.
                await asyncio.wait((reader,), timeout=1)
            finally:
                stream.cancel()
                for task in (reader, writer):
                    task.cancel()
                ended = await asyncio.gather(reader, writer, return_exceptions=True)
            for error in ended:
                if isinstance(error, _LinkDown):
                    raise error
                if isinstance(error, Exception):
                    raise _LinkDown(f"{type(error).__name__}: {error}") from error
            raise _LinkDown("the stream ended")

    async def _connect(self, channel: grpc.aio.Channel) -> None:
        try:
            async with asyncio.timeout(self._options.connect_timeout_ms / 1000):
                state = channel.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        raise _LinkDown("the connection was refused")
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError as error:
            raise _LinkDown(f"no connection within {self._options.connect_timeout_ms} ms") from error

    async def _greeting(self, stream: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        """Wait until the node has accepted the stream. Nothing was written before, so a refusal leaves no doubt."""
        try:
            async with asyncio.timeout(self._options.connect_timeout_ms / 1000):
                if metadata_value(await stream.initial_metadata(), GREETING) is None:
                    code = await stream.code()
                    raise _LinkDown(f"{code.name}: {await stream.details()}")
        except TimeoutError as error:
            raise _LinkDown(f"no greeting within {self._options.connect_timeout_ms} ms") from error

    async def _read(self, stream: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        waiting = self._waiting
        while True:
            try:
                data = await stream.read()
            except grpc.aio.AioRpcError as error:
                raise _LinkDown(f"{error.code().name}: {error.details()}") from error
            if not isinstance(data, bytes):  # grpc.aio.EOF
                raise _LinkDown("the node ended the stream")
            self._got_reply = True
            answered = []
            for reply in ReplyFrame.FromString(data).replies:
                attempt = waiting.pop(reply.call, None)
                if attempt is not None:
                    self._bytes -= attempt.size
                    answered.append((attempt, reply))
            if answered:
                self._events.replied(self.address, answered)

    async def _write(self, stream: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                frame = self._next_frame()
                if frame:
                    await stream.write(frame)

    def _next_frame(self) -> bytes:
        """Take operations off the queue; from here on they count as sent."""
        queue = self._queue
        parts: list[bytes] = []
        size = 0
        while queue and (size == 0 or size + queue[0].size <= self._options.frame_bytes):
            attempt = queue.popleft()
            if attempt.dropped:
                continue
            parts += (b"\x0a", _varint(attempt.size), attempt.payload)  # field 1 of OperationFrame
            size += attempt.size
            attempt.payload = b""
            self._waiting[attempt.number] = attempt
            self.operations_sent += 1
        self.frames_sent += bool(parts)
        return b"".join(parts)

    def _down(self, error: _LinkDown) -> None:
        why = str(error)
        if why != self._why_down or self._state is _State.UP:
            self._log.warning("storage node disconnected", reason=why)
        self._state = _State.DOWN
        self._why_down = why
        self._fail_all()

    def _fail_all(self) -> None:
        sent = list(self._waiting.values())
        unsent = [attempt for attempt in self._queue if not attempt.dropped]
        self._waiting.clear()
        self._queue.clear()
        self._bytes = 0
        why = f"storage node {self.address}: {self._why_down}"
        if sent:
            self._events.lost(self.address, Lost(sent, Reason.LOST, why))
        if unsent:
            self._events.lost(self.address, Lost(unsent, Reason.NOT_SENT, why))

    def _channel_options(self) -> list[tuple[str, int]]:
        options = self._options
        return [
            # Every attempt to connect is a fresh channel of its own, so our pauses are the only ones.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", options.reconnect_ms),
            ("grpc.min_reconnect_backoff_ms", options.connect_timeout_ms),
            ("grpc.max_reconnect_backoff_ms", options.connect_timeout_ms),
            ("grpc.keepalive_time_ms", options.keepalive_ms),
            ("grpc.keepalive_timeout_ms", options.keepalive_timeout_ms),
            # The library's own pings are waited for this long, a minute by default, and hold up the keepalive's.
            ("grpc.http2.ping_timeout_ms", options.keepalive_timeout_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.max_send_message_length", options.message_bytes_max),
            ("grpc.max_receive_message_length", options.message_bytes_max),
            ("grpc.enable_http_proxy", 0),
        ]


class _LinkDown(Exception):
    """Why a session ended."""


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
