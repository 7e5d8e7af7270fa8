"""A shard's own replicated record: who it is, its epoch, and which keys it owns.

It changes only through the shard's log. Invariants: `epoch` starts at 1 and grows by one each time a change of the
voter set completes (leaving a joint configuration, not entering one) and each time the shard divides, takes others
over, or is sealed; `conf_index` is the log index of the newest applied configuration; a key is owned iff its hash is in
the residue class (`shard_index`, `shard_count`) and the shard is not sealed, which it is for good.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from flotta_consensus.api import Members
from flotta_runtime.hashing import key_hashes
from flotta_runtime.hashing import shard_index as index_of_key

FORMAT = 1
FORMAT_STAGED = 2  # of a shard in another stage than SERVES: the stage comes before the table's name
TABLE_BYTES_MAX = 255
_HEADER = struct.Struct(">BQIIQB")


class Stage(enum.IntEnum):
    """What a shard is to another one: its keys go over to it, or the other's to this one."""

    SERVES = 0
    FOLLOWED = 1  # what changes is noted, for the shard that is to take its keys over
    SEALED = 2  # it owns nothing any more
    ABSORBS = 3  # it has rows that it does not own yet


@dataclass(frozen=True, slots=True)
class ShardState:
    shard_id: str
    table: str
    epoch: int
    shard_index: int
    shard_count: int
    conf_index: int
    stage: Stage = Stage.SERVES

    @property
    def sealed(self) -> bool:
        return self.stage is Stage.SEALED

    def owns(self, key: bytes) -> bool:
        return not self.sealed and index_of_key(key, self.shard_count) == self.shard_index

    def own(self, keys: Sequence[bytes]) -> list[bool]:
        """Which of the keys it owns, for many at once."""
        if self.sealed:
            return [False] * len(keys)
        index, count = self.shard_index, self.shard_count
        return [key_hash % count == index for key_hash in key_hashes(keys)]

    def admits(self, epoch: int, key: bytes) -> bool:
        """May an operation routed under `epoch` (0: its sender knows none) touch `key` here?"""
        if self.stage is Stage.SEALED:
            return False
        return epoch == self.epoch if epoch else self.owns(key)


def birth_state(shard_id: str, table: str, shard_index: int, shard_count: int) -> ShardState:
    """The record of a shard that has just been created; its first configuration is at log index 1."""
    if not shard_id or not 0 < len(table.encode()) <= TABLE_BYTES_MAX:
        raise ValueError(
            f"shard {shard_id!r} of table {table!r} needs an id, and a table of 1 to {TABLE_BYTES_MAX} bytes"
        )
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index {shard_index} must be at least 0 and below shard_count {shard_count}")
    return ShardState(shard_id, table, 1, shard_index, shard_count, conf_index=1)


def encode_state(state: ShardState) -> bytes:
    table = state.table.encode()
    staged = state.stage is not Stage.SERVES
    found = FORMAT_STAGED if staged else FORMAT
    header = _HEADER.pack(found, state.epoch, state.shard_index, state.shard_count, state.conf_index, len(table))
    return b"".join((header, bytes((state.stage,)) if staged else b"", table, state.shard_id.encode()))


@lru_cache(maxsize=1024)  # every batch looks at its shard's record, and it hardly ever changes
def decode_state(row: bytes) -> ShardState:
    if len(row) <= _HEADER.size or row[0] not in (FORMAT, FORMAT_STAGED):
        raise ValueError(f"a shard record of {len(row)} bytes does not begin with format {FORMAT} or {FORMAT_STAGED}")
    found, epoch, shard_index, shard_count, conf_index, table_bytes = _HEADER.unpack_from(row)
    table_at = _HEADER.size + (found == FORMAT_STAGED)
    stage = Stage(row[_HEADER.size]) if found == FORMAT_STAGED else Stage.SERVES
    id_at = table_at + table_bytes
    table = row[table_at:id_at].decode()
    return ShardState(row[id_at:].decode(), table, epoch, shard_index, shard_count, conf_index, stage)


def after_conf(state: ShardState, index: int, before: Members, after: Members) -> ShardState:
    """The record once the configuration at `index` is applied."""
    settled_before = set(before.outgoing or before.voters)
    finished = not after.outgoing and set(after.voters) != settled_before
    return replace(state, conf_index=index, epoch=state.epoch + 1 if finished else state.epoch)
