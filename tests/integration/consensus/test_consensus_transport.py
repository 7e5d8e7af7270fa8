"""The gRPC transport alone: order, bounds, pieces, identities, reconnects, dead peers, snapshots."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from consensus_cluster import STEP_MS, until
from flotta_consensus.core.effects import SendSnapshot
from flotta_consensus.core.manifest import Manifest, incoming_name
from flotta_consensus.frame_stream import payload_bytes
from flotta_consensus.grpc_transport import GrpcTransport, insecure_channel
from flotta_consensus.handshake import grpc_probe, join_members
from flotta_consensus.identity import DataDirectory, IdentityError
from flotta_consensus.peer_identity import stream_metadata
from flotta_consensus.peer_link import FrameQueue, LinkOptions
from flotta_proto.flotta import raft_pb2, raft_pb2_grpc

# Quick to come back; only what a test cuts may be given up, however busy the machine.
FAST = LinkOptions(backoff_first_ms=5, backoff_longest_ms=50, connect_timeout_ms=5_000, stalled_ms=20_000)
IMPATIENT = replace(FAST, connect_timeout_ms=500, stalled_ms=800)


class Inbox:
    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.lost: list[int] = []

    def receive(self, frame: bytes) -> None:
        self.frames.append(frame)

    def unreachable(self, node_num: int) -> None:
        self.lost.append(node_num)


class Peer:
    """One end: a directory, a transport and a server."""

    def __init__(self, root: Path, number: int, addresses: dict[int, str], **options: Any) -> None:
        self.number = number
        self.addresses = addresses
        self.directory = DataDirectory.open(root / f"n{number}", f"node-{number}")
        self.inbox = Inbox()
        self.reports: list[str] = []
        self.incoming = root / f"n{number}" / "incoming"
        self.incoming.mkdir(exist_ok=True)
        settings: dict[str, Any] = {"token": "t", "options": FAST, **options}
        self.transport = GrpcTransport(self.directory, addresses.get, report=self.reports.append, **settings)

    async def start(self, *, cluster: str = "c", attach: bool = True) -> None:
        if cluster:
            self.directory.adopt(cluster, self.number)
        self.server = grpc.aio.server()
        self.transport.add_to(self.server)
        wanted = self.addresses.get(self.number, "127.0.0.1:0")
        self.addresses[self.number] = f"127.0.0.1:{self.server.add_insecure_port(wanted)}"
        await self.server.start()
        if attach:
            self.transport.attach(self.inbox, self.incoming)
        self.running = asyncio.create_task(self.transport.run())

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.server.stop(None)
        self.directory.close()


MakePeer = Callable[..., Awaitable[Peer]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[MakePeer]:
    addresses: dict[int, str] = {}
    peers: list[Peer] = []

    async def build(number: int, *, cluster: str = "c", attach: bool = True, **options: Any) -> Peer:
        peer = Peer(tmp_path, number, addresses, **options)
        peers.append(peer)
        await peer.start(cluster=cluster, attach=attach)
        return peer

    yield build
    for peer in peers:
        await peer.stop()


async def test_frames_arrive_in_order_small_and_big(make: MakePeer) -> None:
    one, two = await make(1), await make(2)
    frames = [b"%d" % number for number in range(500)]
    frames.insert(250, b"b" * (5 << 20))  # travels in pieces
    for frame in frames:
        one.transport.send(2, frame)
    await until(lambda: len(two.inbox.frames) == len(frames), "all frames")
    assert two.inbox.frames == frames
    assert one.inbox.lost == []
    assert two.directory.peers.store_of_node("node-1") == one.directory.identity.store_id
    assert one.directory.peers.store_of_node("node-2") == two.directory.identity.store_id


async def test_frames_tell_the_clock_of_their_sender(make: MakePeer) -> None:
    clocks = {1: 5_000_000, 2: 7_000_000}
    one = await make(1, wall_ms=lambda: clocks[1], monotonic_ms=lambda: 100)
    two = await make(2, wall_ms=lambda: clocks[2], monotonic_ms=lambda: 40)
    assert two.transport.peer_clocks.walls_ms(40) == []
    one.transport.send(2, b"frame")
    await until(lambda: bool(two.inbox.frames), "the frame")
    assert two.transport.peer_clocks.walls_ms(45) == [5_000_005]
    clocks[1] += 1_000
    one.transport.send(2, b"b" * (3 << 20))  # every piece tells
    await until(lambda: len(two.inbox.frames) == 2, "the big frame")
    assert two.transport.peer_clocks.walls_ms(45) == [5_001_005]
    assert one.transport.peer_clocks.walls_ms(100) == [], "one direction tells one clock"


async def test_the_window_holds_back_what_the_peer_has_not_taken(make: MakePeer) -> None:
    one, two = await make(1, options=LinkOptions(window_bytes=300_000, piece_bytes=100_000)), await make(2)
    frames = [bytes([number]) * 90_000 for number in range(100)]
    for frame in frames:
        one.transport.send(2, frame)
    await until(lambda: len(two.inbox.frames) == 100, "all frames, in spite of the window")
    assert two.inbox.frames == frames


async def test_streams_of_peers_are_ended_for_a_graceful_stop(make: MakePeer) -> None:
    one, two = await make(1), await make(2)
    one.transport.send(2, b"before")
    await until(lambda: bool(two.inbox.frames), "the frame")
    two.transport.end_streams()
    async with asyncio.timeout(STEP_MS / 1000):
        await two.server.stop(10 * STEP_MS / 1000)  # the grace is not needed: nothing is open any more
    await until(lambda: bool(one.reports), "the sender has noticed")
    assert one.reports[0].endswith("UNAVAILABLE this process is stopping")
    assert two.inbox.frames == [b"before"]


def test_a_queue_drops_the_oldest_and_packs_the_rest() -> None:
    queue = FrameQueue(10)
    assert queue.put(b"aaaa") and queue.put(b"bbbb")
    assert not queue.put(b"cccc")
    assert queue.bytes == 8
    (message,) = queue.take(100)
    assert (message.messages, list(message.more), message.continues) == (b"bbbb", [b"cccc"], False)
    assert payload_bytes(message) == 8 and queue.bytes == 0 and queue.take(100) == []
    assert not queue.put(b"x" * 25) or queue.bytes == 25  # one that is too big for the queue still goes
    pieces = queue.take(10)
    assert [(len(piece.messages), piece.continues) for piece in pieces] == [(10, True), (10, True), (5, False)]
    assert queue.bytes == 0
    assert queue.put(b"aaaa") and queue.put(b"bbbb")
    assert [each.messages for each in queue.take(5)] == [b"aaaa"]
    assert queue.clear() and queue.bytes == 0 and not queue.clear()


async def test_a_peer_without_address_or_server_is_unreachable_until_it_comes(make: MakePeer) -> None:
    one = await make(1)
    one.transport.send(2, b"lost")
    await until(lambda: 2 in one.inbox.lost, "told as unreachable")
    assert one.reports == ["node number 2 has no known address"]
    two = await make(2)

    def arrived() -> bool:
        one.transport.send(2, b"ping")
        return bool(two.inbox.frames)

    await until(arrived, "frames once it is there")
    assert b"lost" not in two.inbox.frames
    await two.server.stop(None)
    lost = len(one.inbox.lost)

    def noticed() -> bool:
        one.transport.send(2, b"ping")
        return len(one.inbox.lost) > lost

    await until(noticed, "the end of the stream")


async def test_a_half_open_connection_is_given_up(make: MakePeer) -> None:
    one = await make(1, options=IMPATIENT)
    two = await make(2)
    sockets: list[asyncio.StreamWriter] = []
    frozen = asyncio.Event()
    host, port = two.addresses[2].split(":")

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            if frozen.is_set():
                await asyncio.Event().wait()
            sink.write(data)

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        sockets.extend((writer, upstream_writer))
        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer), return_exceptions=True)

    middle = await asyncio.start_server(proxy, "127.0.0.1", 0)
    one.addresses[2] = f"127.0.0.1:{middle.sockets[0].getsockname()[1]}"
    one.transport.send(2, b"first")
    await until(lambda: two.inbox.frames == [b"first"], "the first frame")
    frozen.set()

    def given_up() -> bool:
        one.transport.send(2, b"into the void")
        return any("took nothing for" in report for report in one.reports)

    await until(given_up, "the frozen connection is given up")
    assert one.inbox.lost
    frozen.clear()
    one.addresses[2] = f"{host}:{port}"

    def healed() -> bool:
        one.transport.send(2, b"again")
        return b"again" in two.inbox.frames

    await until(healed, "a new connection")
    middle.close()
    for writer in sockets:
        writer.close()


async def refusal(one: Peer) -> str:
    """Send until a refusal is reported."""
    known = len(one.reports)

    def refused() -> bool:
        one.transport.send(2, b"x")
        return len(one.reports) > known

    await until(refused, "a refusal")
    return one.reports[-1]


async def test_a_peer_of_another_cluster_is_refused(make: MakePeer) -> None:
    one, two = await make(1), await make(2, cluster="other")
    assert "belongs to cluster 'other'" in await refusal(one)
    assert two.inbox.frames == [] and two.directory.peers.store_of_node("node-1") == ""


async def test_a_peer_that_lost_its_directory_is_refused_by_both_sides(make: MakePeer) -> None:
    one, two = await make(1), await make(2)
    two.directory.peers.record(1, "node-1", "another store")
    assert "knows node-1 with store another store" in await refusal(one)
    one.directory.peers.record(2, "node-2", "yet another store")
    two.transport.send(1, b"x")
    await until(lambda: bool(two.reports), "refused the other way as well")
    assert two.inbox.frames == one.inbox.frames == []


async def test_a_wrong_token_a_wrong_addressee_and_an_unready_process_are_refused(make: MakePeer) -> None:
    one, two = await make(1, token="wrong"), await make(2, attach=False)
    assert "UNAUTHENTICATED" in await refusal(one)
    right = await make(3)
    right.transport.send(2, b"x")
    await until(lambda: any("UNAVAILABLE" in report for report in right.reports), "not ready")
    right.addresses[4] = right.addresses[2]
    right.transport.send(4, b"x")
    await until(lambda: any("number 4 was expected" in report for report in right.reports), "wrong addressee")
    # A sender that does not ask first is judged by the stream's metadata.
    async with grpc.aio.insecure_channel(two.addresses[2]) as channel:
        stub = raft_pb2_grpc.RaftTransportStub(channel)
        for identity_of, to, code in (
            (right, 9, grpc.StatusCode.FAILED_PRECONDITION),
            (right, 2, grpc.StatusCode.UNAVAILABLE),
        ):
            metadata = stream_metadata(identity_of.directory.identity, to, "t")
            call: Any = stub.Frames(iter([raft_pb2.Frame(messages=b"x")]), metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is code
    assert two.inbox.frames == []


async def sending(peer: Peer, offer: SendSnapshot, path: Path) -> bool:
    progress: list[bool] = []
    ok = await peer.transport.send_snapshot(offer, path, lambda: progress.append(True))
    assert progress
    return ok


def offer_of(path: Path, data: bytes, *, group: int = 7, to_node: int = 2) -> SendSnapshot:
    path.write_bytes(data)
    manifest = Manifest(group, 9, len(data), hashlib.sha256(data).digest(), path.name)
    return SendSnapshot(2, group, to_node << 32 | 1, 1 << 32 | 1, 9, 3, manifest.encode(), b"raft message")


async def test_a_snapshot_is_durable_before_its_message_is_stepped(make: MakePeer, tmp_path: Path) -> None:
    one, two = await make(1), await make(2)
    data = bytes(range(256)) * 8_000
    offer = offer_of(tmp_path / "s", data)
    files_at_step: list[list[str]] = []
    deliver = two.inbox.receive
    two.inbox.receive = lambda frame: (  # type: ignore[method-assign]
        files_at_step.append([path.name for path in two.incoming.iterdir()]),
        deliver(frame),
    )[1]
    assert await sending(one, offer, tmp_path / "s")
    name = incoming_name(7, 9, hashlib.sha256(data).digest())
    assert files_at_step == [[name]] and two.inbox.frames == [b"raft message"]
    assert (two.incoming / name).read_bytes() == data
    assert await sending(one, offer, tmp_path / "s")  # again: it has it already
    assert two.inbox.frames == [b"raft message"] * 2
    empty = offer_of(tmp_path / "empty", b"", group=8)
    assert await sending(one, empty, tmp_path / "empty")


async def test_damaged_missing_and_misdirected_snapshots_are_refused(make: MakePeer, tmp_path: Path) -> None:
    one, two = await make(1), await make(2)
    path = tmp_path / "s"
    offer = offer_of(path, b"good" * 100_000)
    path.write_bytes(b"evil" * 100_000)
    assert not await sending(one, offer, path)
    assert "checksum" in one.reports[-1]
    path.write_bytes(b"good" * 50_000)
    assert not await sending(one, offer, path)
    assert "ends at" in one.reports[-1]
    path.unlink()
    assert not await sending(one, offer, path)
    assert not await sending(one, offer_of(path, b"x", to_node=5), path)
    assert "not on node number 2" in one.reports[-1]
    two.incoming.rmdir()
    assert not await sending(one, offer_of(path, b"x"), path)
    assert "cannot be stored" in one.reports[-1]
    two.incoming.mkdir()
    await two.server.stop(None)
    assert not await sending(one, offer_of(path, b"x"), path)
    assert two.inbox.frames == [] and list(two.incoming.iterdir()) == []


async def test_one_snapshot_of_a_group_at_a_time(make: MakePeer, tmp_path: Path) -> None:
    one, two = await make(1), await make(2)
    offer = offer_of(tmp_path / "s", b"z" * 3_000_000)
    results = await asyncio.gather(*(sending(one, offer, tmp_path / "s") for _ in range(2)))
    assert True in results
    assert len(two.inbox.frames) == results.count(True)
    assert len(list(two.incoming.iterdir())) == 1


async def test_three_empty_members_found_one_cluster_and_a_wiped_one_is_refused(tmp_path: Path) -> None:
    addresses: dict[int, str] = {}
    peers = [Peer(tmp_path, number, addresses) for number in (1, 2, 3)]
    for peer in peers:
        await peer.start(cluster="", attach=False)
    members = {f"node-{number}": addresses[number] for number in (1, 2, 3)}
    probe = grpc_probe(insecure_channel, "t", 500)
    identities = await asyncio.gather(*(join_members(peer.directory, members, probe, retry_ms=10) for peer in peers))
    assert len({identity.cluster_id for identity in identities}) == 1 and identities[0].cluster_id
    assert [identity.node_num for identity in identities] == [1, 2, 3]
    with pytest.raises(IdentityError, match="refuses this process's internal token"):
        await grpc_probe(insecure_channel, "wrong")(addresses[1], identities[0])
    await peers[2].stop()
    assert await probe(addresses[3], identities[0]) is None
    wiped = DataDirectory.open(tmp_path / "wiped", "node-3")
    with pytest.raises(IdentityError, match="knows it with store"):
        await join_members(wiped, members, probe, retry_ms=10)
    wiped.close()
    for peer in peers[:2]:
        await peer.stop()
