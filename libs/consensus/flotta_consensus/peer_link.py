"""One direction of Raft frames to one peer: a bounded queue, one stream, reconnects.

What does not fit into the queue pushes out the oldest, and what waited while no connection could be made is dropped
(Raft sends what still matters again); both are reported as unreachable. A peer that takes nothing for
`stalled_ms` is as good as dead: half-open connections are given up, not waited for.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import grpc
from flotta_proto.flotta import raft_pb2, raft_pb2_grpc

from flotta_consensus.identity import DataDirectory, IdentityError
from flotta_consensus.peer_identity import Answer, PeerGuard, stream_metadata, to_message, token_metadata
from flotta_consensus.transport import AddressBook

ChannelFactory = Callable[[str, tuple[tuple[str, int], ...]], grpc.aio.Channel]
"""(address, channel options) -> channel; where TLS comes in."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own: Raft never queues behind snapshots
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


CREDIT_BYTES = 256 << 10
CREDIT_SECONDS = 0.5
"""A receiver answers after this many bytes, and anything that comes this long after its last answer."""


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


def payload_bytes(frame: raft_pb2.Frame) -> int:
    """What counts against the window."""
    return len(frame.messages) + sum(len(more) for more in frame.more)


class PeerLink:
    """Sends to one node number for as long as `run` goes."""

    def __init__(
        self,
        node_num: int,
        directory: DataDirectory,
        guard: PeerGuard,
        addresses: AddressBook,
        channels: ChannelFactory,
        token: str,
        options: LinkOptions,
        *,
        unreachable: Callable[[int], None],
        report: Callable[[str], None],
        wall_ms: Callable[[], int],
    ) -> None:
        self.node_num = node_num
        self._directory = directory
        self._guard = guard
        self._addresses = addresses
        self._channels = channels
        self._token = token
        self._options = options
        self._unreachable = unreachable
        self._report = report
        self._wall_ms = wall_ms
        self._queue = FrameQueue(options.queue_bytes_max)
        self._filled = asyncio.Event()
        self._credit = asyncio.Event()
        self._sent_bytes = 0
        self._taken_bytes = 0
        self._credited_at = 0.0
        self._answer_due_at: float | None = None
        self._last_report = ""

    def send(self, frame: bytes) -> None:
        if not self._queue.put(frame):
            self._unreachable(self.node_num)
        self._filled.set()

    async def run(self) -> None:
        """Connect, stream, start over; until cancelled."""
        attempt = 0
        while True:
            await self._filled.wait()
            problem = await self._serve_once()
            attempt = 0 if self._taken_bytes else attempt + 1
            self._say(problem)
            self._queue.clear()
            self._filled.clear()
            self._unreachable(self.node_num)
            longest = min(self._options.backoff_first_ms << min(attempt, 10), self._options.backoff_longest_ms)
            await asyncio.sleep(random.uniform(0.5, 1.0) * longest / 1000)

    async def _serve_once(self) -> str:
        """One connection, to its end. Returns what ended it."""
        self._sent_bytes = self._taken_bytes = 0
        self._credited_at, self._answer_due_at = 0.0, None
        address = self._addresses(self.node_num)
        if address is None:
            return f"node number {self.node_num} has no known address"
        try:
            async with self._channels(address, CHANNEL_OPTIONS) as channel:
                await self._introduce(raft_pb2_grpc.RaftTransportStub(channel))
                await self._stream(raft_pb2_grpc.RaftTransportStub(channel))
        except IdentityError as error:
            return str(error)
        except grpc.aio.AioRpcError as error:
            return f"node number {self.node_num} at {address}: {error.code().name} {error.details()}"
        except TimeoutError:
            return f"node number {self.node_num} at {address} took nothing for {self._options.stalled_ms} ms"
        return f"node number {self.node_num} at {address} ended the stream"

    async def _introduce(self, stub: raft_pb2_grpc.RaftTransportAsyncStub) -> None:
        mine = self._directory.identity
        message = await stub.Identify(
            raft_pb2.IdentifyRequest(**{"from": to_message(mine)}),
            metadata=token_metadata(self._token),
            timeout=self._options.connect_timeout_ms / 1000,
        )
        await self._guard.admit_answer(Answer.of(message), self.node_num)

    async def _stream(self, stub: raft_pb2_grpc.RaftTransportAsyncStub) -> None:
        metadata = stream_metadata(self._directory.identity, self.node_num, self._token)
        call = stub.Frames(self._outgoing(), metadata=metadata)
        try:
            while True:
                credit = await self._next_credit(call)
                if credit is None:
                    return
                self._taken_bytes = credit.received_bytes
                self._credited_at = asyncio.get_running_loop().time()
                self._answer_due_at = None
                self._say("")
                self._credit.set()
        finally:
            call.cancel()

    async def _next_credit(
        self, call: grpc.aio.StreamStreamCall[raft_pb2.Frame, raft_pb2.FrameCredit]
    ) -> raft_pb2.FrameCredit | None:
        """None when the peer ended the stream. TimeoutError when it owes an answer for too long."""
        loop = asyncio.get_running_loop()
        reading = asyncio.ensure_future(call.read())
        try:
            while True:
                done, _ = await asyncio.wait({reading}, timeout=self._options.stalled_ms / 4000)
                if done:
                    credit = reading.result()
                    return credit if isinstance(credit, raft_pb2.FrameCredit) else None
                if self._answer_due_at is not None and loop.time() > self._answer_due_at:
                    raise TimeoutError
        finally:
            reading.cancel()

    async def _outgoing(self) -> AsyncIterator[raft_pb2.Frame]:
        while True:
            for frame in self._queue.take(self._options.piece_bytes):
                while self._sent_bytes - self._taken_bytes > self._options.window_bytes:
                    self._expect_answer()
                    self._credit.clear()
                    await self._credit.wait()
                self._sent_bytes += payload_bytes(frame)
                frame.sender_wall_ms = self._wall_ms()
                yield frame
                if asyncio.get_running_loop().time() - self._credited_at > 2 * CREDIT_SECONDS:
                    self._expect_answer()
            if not self._queue.bytes:
                self._filled.clear()
                await self._filled.wait()

    def _expect_answer(self) -> None:
        """The peer answers what comes `CREDIT_SECONDS` after its last answer, so this one it has to answer."""
        if self._answer_due_at is None:
            self._answer_due_at = asyncio.get_running_loop().time() + self._options.stalled_ms / 1000

    def _say(self, text: str) -> None:
        """Each problem once, not once for every attempt."""
        if text != self._last_report:
            self._last_report = text
            if text:
                self._report(text)
