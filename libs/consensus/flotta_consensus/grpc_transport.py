"""The peer transport over gRPC: `flotta.raft.v1.RaftTransport`, both ends of it.

Frames to a peer travel on one stream; snapshots on a connection of their own, a few at a time. `Identify` is served
from the first moment, everything else only between `attach` and `detach`. Server options (TLS, message limits of at
least 4 MiB, the token check of all internal services) are the server's; the token is checked here as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from flotta_proto.flotta import raft_pb2, raft_pb2_grpc

from flotta_consensus.api import Failpoints, NoFailpoints
from flotta_consensus.core.clock_bounds import PeerClocks
from flotta_consensus.core.effects import SendSnapshot
from flotta_consensus.core.manifest import Manifest
from flotta_consensus.frame_stream import (
    CHANNEL_OPTIONS,
    CREDIT_BYTES,
    CREDIT_SECONDS,
    ChannelFactory,
    FrameStream,
    payload_bytes,
)
from flotta_consensus.identity import DataDirectory, IdentityError
from flotta_consensus.peer_identity import PeerGuard, readable, stream_metadata, to_message
from flotta_consensus.peer_link import LinkOptions, Outgoing, PeerLink, SessionFactory
from flotta_consensus.snapshot_stream import SnapshotReceiver, header_of, slices
from flotta_consensus.transport import AddressBook, Receiver

STOPPING = "this process is stopping"
NOT_READY = "this process is not ready for Raft messages"
WRONG_TOKEN = "missing or wrong internal token"
_FRAME_BYTES_MAX = 512 << 20
_SNAPSHOT_SECONDS_MIN = 60
_SLOT_PROGRESS_SECONDS = 1.0
_WRITE_SECONDS_MAX = 1.0
_SNAPSHOT_BYTES_PER_SECOND_MIN = 1 << 20


def system_wall_ms() -> int:
    return time.time_ns() // 1_000_000


def system_monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def insecure_channel(address: str, options: tuple[tuple[str, int], ...]) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=options)


class GrpcTransport:
    """Implements `transport.Transport`. Make it, `add_to` a server, hand it to `GroupHost.open`.

    `report` gets one line for each new problem with a peer (refused identities among them). `wall_ms` is told to peers
    with every message; what they tell is in `peer_clocks`, on `monotonic_ms`.
    """

    def __init__(
        self,
        directory: DataDirectory,
        addresses: AddressBook,
        *,
        token: str = "",
        options: LinkOptions | None = None,
        channels: ChannelFactory = insecure_channel,
        failpoints: Failpoints | None = None,
        snapshot_streams_max: int = 2,
        report: Callable[[str], None] = lambda text: None,
        wall_ms: Callable[[], int] = system_wall_ms,
        monotonic_ms: Callable[[], int] = system_monotonic_ms,
    ) -> None:
        self._directory = directory
        self._addresses = addresses
        self._token = token
        self._options = options or LinkOptions()
        self._channels = channels
        self._guard = PeerGuard(directory, token)
        self._links: dict[int, PeerLink] = {}
        self._new_links: asyncio.Queue[PeerLink] = asyncio.Queue()
        self._snapshot_slots = asyncio.Semaphore(snapshot_streams_max)
        self._receiver: Receiver | None = None
        self._report = report
        self._wall_ms = wall_ms
        self._ways: tuple[SessionFactory, ...] = (self._new_stream,)
        self.peer_clocks = PeerClocks()
        self._servicer = _Servicer(
            directory,
            self._guard,
            SnapshotReceiver(failpoints or NoFailpoints(), streams_max=snapshot_streams_max),
            lambda node_num, peer_wall_ms: self.peer_clocks.heard(node_num, peer_wall_ms, monotonic_ms()),
        )

    def add_to(self, server: grpc.aio.Server) -> None:
        raft_pb2_grpc.add_RaftTransportServicer_to_server(self._servicer, server)

    def attach(self, receiver: Receiver, incoming_dir: Path) -> None:
        self._receiver = receiver
        self._servicer.attach(receiver, incoming_dir)

    def detach(self) -> None:
        self._receiver = None
        self._servicer.detach()

    def end_streams(self) -> None:
        """End what peers have open here, and tell them to come back later. Frames have no end of their own: a server
        that stops gracefully would wait for them as long as it may."""
        self._servicer.end_streams()

    def send(self, node_num: int, frame: bytes) -> None:
        link = self._links.get(node_num)
        if link is None:
            link = PeerLink(
                node_num,
                self._addresses,
                self._ways,
                self._options,
                unreachable=self._unreachable,
                report=self._report,
            )
            self._links[node_num] = link
            self._new_links.put_nowait(link)
        link.send(frame)

    async def send_snapshot(self, offer: SendSnapshot, path: Path, progress: Callable[[], None]) -> bool:
        async with self._slot(progress):
            try:
                problem = await self._stream_snapshot(offer, path, progress)
            except grpc.aio.AioRpcError as error:
                problem = f"{error.code().name} {error.details()}"
            except (OSError, asyncio.InvalidStateError) as error:
                problem = str(error)
        if problem:
            self._report(f"snapshot of group {offer.group} to node number {offer.node_num}: {problem}")
        return not problem

    async def run(self) -> None:
        """One task for each peer ever sent to."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                link = await self._new_links.get()
                tasks.create_task(link.run())

    def _new_stream(self, outgoing: Outgoing) -> FrameStream:
        return FrameStream(
            outgoing, self._directory, self._guard, self._channels, self._token, self._options, self._wall_ms
        )

    @asynccontextmanager
    async def _slot(self, progress: Callable[[], None]) -> AsyncIterator[None]:
        """Wait for a turn. Meanwhile the host is kept from giving this one up and asking for another."""
        acquiring = asyncio.ensure_future(self._snapshot_slots.acquire())
        try:
            while not acquiring.done():
                await asyncio.wait({acquiring}, timeout=_SLOT_PROGRESS_SECONDS)
                progress()
            yield
        finally:
            if not acquiring.cancel() and not acquiring.cancelled():
                self._snapshot_slots.release()

    def _unreachable(self, node_num: int) -> None:
        if self._receiver is not None:
            self._receiver.unreachable(node_num)

    async def _stream_snapshot(self, offer: SendSnapshot, path: Path, progress: Callable[[], None]) -> str:
        """Empty if the peer has it."""
        address = self._addresses(offer.node_num)
        if address is None:
            return "it has no known address"
        size_bytes = Manifest.decode(offer.manifest).size_bytes
        async with self._channels(address, CHANNEL_OPTIONS) as channel:
            call = raft_pb2_grpc.RaftTransportStub(channel).SendSnapshot(
                metadata=stream_metadata(self._directory.identity, offer.node_num, self._token),
                timeout=_SNAPSHOT_SECONDS_MIN + size_bytes / _SNAPSHOT_BYTES_PER_SECOND_MIN,
            )
            try:
                await call.write(header_of(offer))
                receipt = await call.read()
                if isinstance(receipt, raft_pb2.SnapshotReceipt) and receipt.send_data:
                    async for chunk in slices(path, size_bytes):
                        await call.write(chunk)
                        progress()
                    await call.done_writing()
                    receipt = await call.read()
            finally:
                call.cancel()
        if not isinstance(receipt, raft_pb2.SnapshotReceipt):
            return "it ended the stream without a receipt"
        return "" if receipt.accepted else receipt.reason or "it was refused"


Context = grpc.aio.ServicerContext[Any, Any]


class _Servicer(raft_pb2_grpc.RaftTransportServicer):
    def __init__(
        self,
        directory: DataDirectory,
        guard: PeerGuard,
        snapshots: SnapshotReceiver,
        heard_clock: Callable[[int, int], None],
    ) -> None:
        self._directory = directory
        self._guard = guard
        self._snapshots = snapshots
        self._heard_clock = heard_clock
        self._streams: set[asyncio.Task[None]] = set()
        self.target: tuple[Receiver, Path] | None = None

    def attach(self, receiver: Receiver, incoming_dir: Path) -> None:
        self.target = (receiver, incoming_dir)

    def detach(self) -> None:
        self.target = None

    def end_streams(self) -> None:
        self.detach()
        for stream in self._streams:
            stream.cancel()

    async def Identify(
        self,
        request: raft_pb2.IdentifyRequest,
        context: Context,
    ) -> raft_pb2.Identity:
        await self._check_token(context)
        asker = getattr(request, "from")
        return to_message(self._directory.identity, self._directory.peers.store_of_node(asker.node_id, asker.node_num))

    async def Frames(  # type: ignore[override]  # the reader-writer form that grpc.aio also takes
        self, request_iterator: AsyncIterator[raft_pb2.Frame], context: Context
    ) -> None:
        sender, *_ = await self._admit(context)
        await self._serve(self._take_frames(sender, request_iterator, context), context)

    async def _take_frames(
        self, sender: int, request_iterator: AsyncIterator[raft_pb2.Frame], context: Context
    ) -> None:
        loop = asyncio.get_running_loop()
        received = credited = 0
        credited_at = -CREDIT_SECONDS
        pieces: list[bytes] = []
        pieces_bytes = 0
        async for frame in request_iterator:
            if frame.sender_wall_ms:
                self._heard_clock(sender, frame.sender_wall_ms)
            received += payload_bytes(frame)
            pieces.append(frame.messages)
            pieces_bytes += len(frame.messages)
            if pieces_bytes > _FRAME_BYTES_MAX:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "a frame in pieces is too big")
            if not frame.continues:
                whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                pieces, pieces_bytes = [], 0
                await self._deliver(context, [whole, *frame.more])
            if received - credited >= CREDIT_BYTES or loop.time() - credited_at >= CREDIT_SECONDS:
                credited, credited_at = received, loop.time()
                await _write(context, raft_pb2.FrameCredit(received_bytes=received))

    async def SendSnapshot(  # type: ignore[override]  # as above
        self, request_iterator: AsyncIterator[raft_pb2.SnapshotChunk], context: Context
    ) -> None:
        _, receiver, directory = await self._admit(context)
        await self._serve(self._take_snapshot(receiver, directory, request_iterator, context), context)

    async def _take_snapshot(
        self,
        receiver: Receiver,
        directory: Path,
        request_iterator: AsyncIterator[raft_pb2.SnapshotChunk],
        context: Context,
    ) -> None:
        number = self._directory.identity.node_num
        receipts = self._snapshots.take(aiter(request_iterator), directory, number, receiver.receive)
        async with aclosing(receipts):
            async for receipt in receipts:
                await _write(context, receipt)

    async def _serve(self, work: Coroutine[Any, Any, None], context: Context) -> None:
        """Until the peer ends it, or `end_streams`."""
        stream = asyncio.create_task(work, name="raft.stream")
        self._streams.add(stream)
        try:
            await asyncio.wait({stream})
        finally:
            self._streams.discard(stream)
            stream.cancel()
            await asyncio.gather(stream, return_exceptions=True)
        if stream.cancelled():
            await context.abort(grpc.StatusCode.UNAVAILABLE, STOPPING)
        stream.result()

    async def _deliver(self, context: Context, frames: list[bytes]) -> None:
        if self.target is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, NOT_READY)
        for frame in frames:
            self.target[0].receive(frame)

    async def _admit(self, context: Context) -> tuple[int, Receiver, Path]:
        """(the sender's node number, where to deliver, where to put files)"""
        await self._check_token(context)
        try:
            sender = await self._guard.admit_stream(readable(context.invocation_metadata()))
        except IdentityError as refusal:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(refusal))
        target = self.target
        if target is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, NOT_READY)
        return (sender, *target)

    async def _check_token(self, context: Context) -> None:
        if not self._guard.right_token(readable(context.invocation_metadata())):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, WRONG_TOKEN)


async def _write(context: Context, message: object) -> None:
    """To its end even when cancelled: a stream that is being written to cannot be given its status."""
    writing = asyncio.ensure_future(context.write(message))
    writing.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever is gone is not asked
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait({writing}, timeout=_WRITE_SECONDS_MAX)
        raise
