"""A replica's rows as a stream, as they are at one index: what a backup is made of.

Read from one frozen view in small slices, so that it blocks neither writes nor the loop, and no faster than the other
side takes it. Rows that group time calls expired, the rows of deduplication, and what went to children of the shard,
stay behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from flotta_embedded.api import FrozenView
from flotta_proto.flotta import storage_pb2 as pb
from flotta_runtime.errors import Unavailable
from flotta_runtime.saved_rows import SavedRow, encode_row

from flotta_storage.core import keys
from flotta_storage.core.rows import header_of, value_of
from flotta_storage.core.shard_state import ShardState
from flotta_storage.replica_table import Replica

PIECE_BYTES: Final = 256 << 10
SLICE_ROWS: Final = 256

_KEY_AT = len(keys.DATA_PREFIX)


async def dump(replica: Replica) -> AsyncIterator[pb.DumpPart]:
    """The head, the pieces, the end, of the state at the first step. Unavailable for a replica without any state."""
    head = _head(replica)
    mixed = replica.state() if replica.has_strangers() else None
    view = replica.machine.freeze()
    try:
        yield pb.DumpPart(head=head)
        end = pb.DumpEnd()
        async for piece in _pieces(view, head.group_time_ms, mixed, end):
            yield pb.DumpPart(rows=piece)
        yield pb.DumpPart(end=end)
    finally:
        view.close()


def _head(replica: Replica) -> pb.DumpHead:
    state, machine = replica.state(), replica.machine
    if state is None:
        raise Unavailable(f"the replica of {replica.shard_id} here is still empty", shard_id=replica.shard_id)
    return pb.DumpHead(
        shard_id=state.shard_id,
        table=state.table,
        shard_index=state.shard_index,
        shard_count=state.shard_count,
        epoch=state.epoch,
        applied_index=machine.applied_index(),
        revision=replica.applied_revision(),
        group_time_ms=machine.group_time_ms(),
    )


async def _pieces(view: FrozenView, now_ms: int, mixed: ShardState | None, end: pb.DumpEnd) -> AsyncIterator[bytes]:
    """Counts into `end` what it gives out. Of `mixed` rows only what the shard owns."""
    waiting = bytearray()
    for number, (row_key, stored) in enumerate(view.scan(keys.DATA_PREFIX, keys.DATA_END), start=1):
        header = header_of(stored)
        key = row_key[_KEY_AT:]
        if not header.expired(now_ms) and (mixed is None or mixed.owns(key)):
            row = SavedRow(key, value_of(stored), *header)
            waiting += encode_row(row)
            end.rows += 1
            end.row_bytes += row.size
        while len(waiting) >= PIECE_BYTES:
            yield bytes(waiting[:PIECE_BYTES])
            del waiting[:PIECE_BYTES]
        if number % SLICE_ROWS == 0:
            await asyncio.sleep(0)
    if waiting:
        yield bytes(waiting)
