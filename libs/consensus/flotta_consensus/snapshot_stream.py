"""One snapshot file between two processes: a header, slices, a receipt.

The receiver writes beside, checks length and SHA-256, makes the file durable under its final name and only then
steps the Raft message, so a log never counts on a file that is not there. Anything that goes wrong leaves no file
and is told to the sender, whose Raft tries again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

from flotta_proto.flotta import raft_pb2

from flotta_consensus.api import Failpoints
from flotta_consensus.core.effects import SendSnapshot
from flotta_consensus.core.manifest import Manifest, incoming_name
from flotta_consensus.durable import sync_directory
from flotta_consensus.snapshot_files import write_all

SLICE_BYTES = 512 << 10
_SLICE_BYTES_MAX = 4 << 20


class SnapshotRefused(Exception):
    """The snapshot was not taken. The text goes to the sender."""


def header_of(offer: SendSnapshot) -> raft_pb2.SnapshotChunk:
    manifest = Manifest.decode(offer.manifest)
    return raft_pb2.SnapshotChunk(
        header=raft_pb2.SnapshotChunk.Header(
            group_id=offer.group,
            to_replica=offer.to_replica,
            from_replica=offer.from_replica,
            index=offer.index,
            term=offer.term,
            total_bytes=manifest.size_bytes,
            sha256=manifest.sha256,
            message=offer.message,
        )
    )


async def slices(path: Path, size_bytes: int) -> AsyncIterator[raft_pb2.SnapshotChunk]:
    """The data of one snapshot. OSError if the file is gone or shorter than it should be."""
    descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        offset = 0
        while offset < size_bytes:
            data = await asyncio.to_thread(os.pread, descriptor, min(SLICE_BYTES, size_bytes - offset), offset)
            if not data:
                raise OSError(f"{path} ends at {offset} of {size_bytes} bytes")
            offset += len(data)
            yield raft_pb2.SnapshotChunk(data=data)
    finally:
        os.close(descriptor)


class SnapshotReceiver:
    """Takes snapshots into one directory, a few at a time and one for each group."""

    def __init__(self, failpoints: Failpoints, *, streams_max: int) -> None:
        self._failpoints = failpoints
        self._streams_max = streams_max
        self._groups: set[int] = set()

    async def take(
        self,
        chunks: AsyncIterator[raft_pb2.SnapshotChunk],
        directory: Path,
        node_num: int,
        step: Callable[[bytes], None],
    ) -> AsyncGenerator[raft_pb2.SnapshotReceipt, None]:
        """The receipts. The last one is `accepted` once the file is durable and the message stepped."""
        group = 0
        try:
            header = await _header(chunks, node_num)
            if header.group_id in self._groups:
                raise SnapshotRefused(f"a snapshot of group {header.group_id} is on its way already")
            if len(self._groups) >= self._streams_max:
                raise SnapshotRefused(f"{self._streams_max} snapshots are on their way already")
            group = header.group_id
            self._groups.add(group)
            path = directory / incoming_name(group, header.index, header.sha256)
            if not path.exists():
                part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
                descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                try:
                    yield raft_pb2.SnapshotReceipt(send_data=True)
                    await self._receive(chunks, header, descriptor)
                    os.replace(part, path)
                finally:
                    os.close(descriptor)
                    part.unlink(missing_ok=True)
                await asyncio.to_thread(sync_directory, directory)
                self._failpoints.reach("consensus.after_incoming_sync")
            step(header.message)
            yield raft_pb2.SnapshotReceipt(accepted=True)
        except SnapshotRefused as refused:
            yield raft_pb2.SnapshotReceipt(reason=str(refused))
        except OSError as error:
            yield raft_pb2.SnapshotReceipt(reason=f"the snapshot cannot be stored: {error.strerror or error}")
        finally:
            self._groups.discard(group)

    async def _receive(
        self, chunks: AsyncIterator[raft_pb2.SnapshotChunk], header: raft_pb2.SnapshotChunk.Header, descriptor: int
    ) -> None:
        digest = hashlib.sha256()
        size = 0
        async for chunk in chunks:
            size += len(chunk.data)
            if len(chunk.data) > _SLICE_BYTES_MAX or size > header.total_bytes:
                raise SnapshotRefused(f"more than the announced {header.total_bytes} bytes came")
            digest.update(chunk.data)
            await asyncio.to_thread(write_all, descriptor, chunk.data)
        if size != header.total_bytes or digest.digest() != header.sha256:
            raise SnapshotRefused(f"{size} of {header.total_bytes} bytes came, or their checksum differs")
        self._failpoints.reach("consensus.before_incoming_sync")
        await asyncio.to_thread(os.fsync, descriptor)


async def _header(chunks: AsyncIterator[raft_pb2.SnapshotChunk], node_num: int) -> raft_pb2.SnapshotChunk.Header:
    first = await anext(chunks, None)
    if first is None or not first.HasField("header"):
        raise SnapshotRefused("the stream does not begin with a header")
    header = first.header
    if header.to_replica >> 32 != node_num:
        raise SnapshotRefused(f"replica {header.to_replica} is not on node number {node_num}")
    if len(header.sha256) != 32 or not header.message or not header.group_id:
        raise SnapshotRefused("the header lacks the group, the checksum or the Raft message")
    return header
