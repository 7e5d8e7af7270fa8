"""KvDB's key hash, which gateways, nodes and the coordinator share. It is computed natively, and best for many keys at
once: on the hot path a key is hashed twice, at the gateway and at the node.

Invariant: `shard_index` is Java's floorMod: never negative.
"""

from __future__ import annotations

from flotta_native import key_hashes

__all__ = ["home_count", "key_hash", "key_hashes", "shard_index"]


def key_hash(key: bytes) -> int:
    """The signed 32-bit hash of a key."""
    return key_hashes((key,))[0]


def shard_index(key: bytes, num_shards: int) -> int:
    """The residue class a key belongs to: 0 <= index < num_shards."""
    return key_hash(key) % num_shards


def home_count(num_shards: int, own_count: int) -> int:
    """The modulus by which the keys of a shard's class go. `num_shards` is that of its table, `own_count` that of the
    shard: once it has divided further than the whole table has, its own one counts."""
    return own_count if own_count > num_shards and own_count % num_shards == 0 else num_shards
