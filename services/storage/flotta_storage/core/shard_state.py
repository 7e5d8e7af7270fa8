"""A shard's own replicated record: who it is, its epoch, and which keys it owns.

It changes only through the shard's log. Invariants: `epoch` starts at 1 and grows by one each time a change of the
voter set completes (leaving a joint configuration, not entering one); `conf_index` is the log index of the newest
applied configuration; a key is owned iff its hash is in the residue class (`shard_index`, `shard_count`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from flotta_consensus.api import Members
from flotta_runtime.hashing import shard_index as index_of_key

FORMAT = 1
_HEADER = struct.Struct(">BQIIQ")


@dataclass(frozen=True, slots=True)
class ShardState:
    shard_id: str
    epoch: int
    shard_index: int
    shard_count: int
    conf_index: int

    def owns(self, key: bytes) -> bool:
        return index_of_key(key, self.shard_count) == self.shard_index

    def admits(self, epoch: int, key: bytes) -> bool:
        """May an operation routed under `epoch` (0: its sender knows none) touch `key` here?"""
        return epoch == self.epoch if epoch else self.owns(key)


def birth_state(shard_id: str, shard_index: int, shard_count: int, conf_index: int = 1) -> ShardState:
    """The record of a shard that has just been created."""
    if not shard_id:
        raise ValueError("shard_id must not be empty")
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index {shard_index} must be at least 0 and below shard_count {shard_count}")
    return ShardState(shard_id, 1, shard_index, shard_count, conf_index)


def encode_state(state: ShardState) -> bytes:
    header = _HEADER.pack(FORMAT, state.epoch, state.shard_index, state.shard_count, state.conf_index)
    return header + state.shard_id.encode()


def decode_state(row: bytes) -> ShardState:
    if len(row) <= _HEADER.size or row[0] != FORMAT:
        raise ValueError(f"a shard record of {len(row)} bytes does not begin with format {FORMAT}")
    _, epoch, shard_index, shard_count, conf_index = _HEADER.unpack_from(row)
    return ShardState(row[_HEADER.size :].decode(), epoch, shard_index, shard_count, conf_index)


def after_conf(state: ShardState, index: int, before: Members, after: Members) -> ShardState:
    """The record once the configuration at `index` is applied."""
    settled_before = set(before.outgoing or before.voters)
    finished = not after.outgoing and set(after.voters) != settled_before
    return replace(state, conf_index=index, epoch=state.epoch + 1 if finished else state.epoch)
