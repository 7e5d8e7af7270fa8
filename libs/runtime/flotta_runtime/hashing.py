"""KvDB's key hash, which gateways, nodes and the coordinator share. It is computed natively, and best for many keys at
once: on the hot path a key is hashed twice, at the gateway and at the node.

Invariant: `shard_index` is Java's floorMod: never negative.
"""

from __future__ import annotations

from flotta_native import key_hashes

__all__ = ["key_hash", "key_hashes", "shard_index"]


def key_hash(key: bytes) -> int:
    """The signed 32-bit hash of a key."""
    return key_hashes((key,))[0]


def shard_index(key: bytes, num_shards: int) -> int:
    """The residue class a key belongs to: 0 <= index < num_shards."""
    return key_hash(key) % num_shards
