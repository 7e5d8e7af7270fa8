"""The serving end of Raft streams, on a stream whose other end is the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import grpc
from fake_cluster import wait_until
from flotta_consensus.grpc_transport import STOPPING, GrpcTransport
from flotta_consensus.identity import DataDirectory, Identity
from flotta_consensus.peer_identity import stream_metadata
from flotta_proto.flotta import raft_pb2


class Aborted(Exception):
    pass


class Context:
    def __init__(self) -> None:
        self.writes = 0
        self.writing = False
        self.let_through = asyncio.Event()
        self.status: tuple[grpc.StatusCode, str] | None = None

    def invocation_metadata(self) -> Any:
        return stream_metadata(Identity("node-2", "store-2", "c", 2), 1, "t")

    async def write(self, message: object) -> None:
        self.writes += 1
        self.writing = True
        try:
            await self.let_through.wait()
        finally:
            if self.let_through.is_set():
                self.writing = False  # cancelling the caller ends no write

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        assert not self.writing, "the library refuses a status in the middle of a write"
        self.status = (code, details)
        raise Aborted


class Receiver:
    def receive(self, frame: bytes) -> None: ...

    def unreachable(self, node_num: int) -> None: ...


async def test_a_stream_that_is_being_written_to_ends_with_its_status(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path / "n1", "node-1")
    directory.adopt("c", 1)
    transport = GrpcTransport(directory, {}.get, token="t")
    transport.attach(Receiver(), tmp_path)
    context: Any = Context()

    async def frames() -> AsyncIterator[raft_pb2.Frame]:
        yield raft_pb2.Frame(messages=b"one")
        await asyncio.Event().wait()

    serving = asyncio.create_task(transport._servicer.Frames(frames(), context))
    await wait_until(lambda: context.writing)
    transport.end_streams()
    for _ in range(5):
        await asyncio.sleep(0)
    assert context.status is None
    context.let_through.set()
    await asyncio.gather(serving, return_exceptions=True)
    assert context.status == (grpc.StatusCode.UNAVAILABLE, STOPPING)
    directory.close()
