"""Raft frames to one peer over a gRPC stream, `RaftTransport.Frames`.

Who answers at the address is asked and checked first. The peer acknowledges what it takes; what is unacknowledged is
bounded, and a peer that takes nothing for `stalled_ms` is as good as dead: half-open connections are given up, not
waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
from flotta_proto.flotta import raft_pb2, raft_pb2_grpc

from flotta_consensus.identity import DataDirectory, IdentityError
from flotta_consensus.peer_identity import Answer, PeerGuard, stream_metadata, to_message, token_metadata
from flotta_consensus.peer_link import LinkOptions, Outgoing, SessionEnded

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


def payload_bytes(frame: raft_pb2.Frame) -> int:
    """What counts against the window."""
    return len(frame.messages) + sum(len(more) for more in frame.more)


class FrameStream:
    """Implements `peer_link.PeerSession`."""

    def __init__(
        self,
        outgoing: Outgoing,
        directory: DataDirectory,
        guard: PeerGuard,
        channels: ChannelFactory,
        token: str,
        options: LinkOptions,
        wall_ms: Callable[[], int],
    ) -> None:
        self._outgoing = outgoing
        self._directory = directory
        self._guard = guard
        self._channels = channels
        self._token = token
        self._options = options
        self._wall_ms = wall_ms
        self._filled = asyncio.Event()
        self._credit = asyncio.Event()
        self._sent_bytes = 0
        self._taken_bytes = 0
        self._credited_at = 0.0
        self._answer_due_at: float | None = None

    def wake(self) -> None:
        self._filled.set()

    async def run(self) -> None:
        try:
            async with self._channels(self._outgoing.address, CHANNEL_OPTIONS) as channel:
                stub = raft_pb2_grpc.RaftTransportStub(channel)
                await self._introduce(stub)
                await self._stream(stub)
        except IdentityError as error:
            raise SessionEnded(str(error)) from error
        except grpc.aio.AioRpcError as error:
            raise SessionEnded(f"{self._outgoing}: {error.code().name} {error.details()}") from error
        except TimeoutError as error:
            raise SessionEnded(f"{self._outgoing} took nothing for {self._options.stalled_ms} ms") from error
        raise SessionEnded(f"{self._outgoing} ended the stream")

    async def _introduce(self, stub: raft_pb2_grpc.RaftTransportAsyncStub) -> None:
        mine = self._directory.identity
        message = await stub.Identify(
            raft_pb2.IdentifyRequest(**{"from": to_message(mine)}),
            metadata=token_metadata(self._token),
            timeout=self._options.connect_timeout_ms / 1000,
        )
        await self._guard.admit_answer(Answer.of(message), self._outgoing.node_num)

    async def _stream(self, stub: raft_pb2_grpc.RaftTransportAsyncStub) -> None:
        metadata = stream_metadata(self._directory.identity, self._outgoing.node_num, self._token)
        call = stub.Frames(self._frames(), metadata=metadata)
        try:
            while True:
                credit = await self._next_credit(call)
                if credit is None:
                    return
                self._taken_bytes = credit.received_bytes
                self._credited_at = asyncio.get_running_loop().time()
                self._answer_due_at = None
                self._outgoing.worked()
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

    async def _frames(self) -> AsyncIterator[raft_pb2.Frame]:
        queue = self._outgoing.queue
        while True:
            for frame in queue.take(self._options.piece_bytes):
                while self._sent_bytes - self._taken_bytes > self._options.window_bytes:
                    self._expect_answer()
                    self._credit.clear()
                    await self._credit.wait()
                self._sent_bytes += payload_bytes(frame)
                frame.sender_wall_ms = self._wall_ms()
                yield frame
                if asyncio.get_running_loop().time() - self._credited_at > 2 * CREDIT_SECONDS:
                    self._expect_answer()
            if not queue.bytes:
                self._filled.clear()
                await self._filled.wait()

    def _expect_answer(self) -> None:
        """The peer answers what comes `CREDIT_SECONDS` after its last answer, so this one it has to answer."""
        if self._answer_due_at is None:
            self._answer_due_at = asyncio.get_running_loop().time() + self._options.stalled_ms / 1000
