"""What a replica holds, as one hash: equal contents at equal log positions have equal digests.

Read from one frozen view in slices, so that it blocks neither writes nor the loop. A row that group time calls
expired is no content, swept or not; nor is one that the shard does not own: it went to a child and is to be pruned, or
comes of a shard that is taken over.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from itertools import islice
from typing import Final

from flotta_proto.flotta.storage_pb2 import ReplicaDigest

from flotta_storage.core import keys
from flotta_storage.core.rows import header_of
from flotta_storage.replica_table import Replica

SLICE_ROWS: Final = 256

_LENGTHS = struct.Struct(">II")


async def digest(replica: Replica) -> ReplicaDigest:
    """The digest of the state at this moment."""
    machine = replica.machine
    applied, now_ms, state = machine.applied_index(), machine.group_time_ms(), replica.state()
    mixed = replica.has_strangers()
    view = machine.freeze()
    hashed = hashlib.sha256()
    count = 0
    try:
        low = keys.DATA_PREFIX
        while True:
            rows = list(islice(view.scan(low, keys.DATA_END, limit=SLICE_ROWS), SLICE_ROWS))
            owned = [True] * len(rows)
            if state is not None and mixed:
                owned = state.own([key[len(keys.DATA_PREFIX) :] for key, _ in rows])
            for (key, row), ours in zip(rows, owned, strict=True):
                if ours and not header_of(row).expired(now_ms):
                    hashed.update(_LENGTHS.pack(len(key), len(row)))
                    hashed.update(key)
                    hashed.update(row)
                    count += 1
            if len(rows) < SLICE_ROWS:
                break
            low = rows[-1][0] + b"\x00"
            await asyncio.sleep(0)
    finally:
        view.close()
    return ReplicaDigest(
        shard_id=replica.shard_id,
        group_id=replica.group,
        replica_id=replica.replica,
        applied_index=applied,
        keys=count,
        sha256=hashed.digest(),
        epoch=state.epoch if state is not None else 0,
    )
