"""The load of the path benchmark: 256-byte values under 10,000 keys in random order, over four shards."""

from __future__ import annotations

import os
import random

from flotta_runtime.hashing import shard_index

SHARDS = 4
KEYS = 10_000
VALUE = os.urandom(256)
EPOCH = 1


def random_keys(count: int, seed: int = 1) -> list[bytes]:
    chosen = random.Random(seed)
    return [b"key-%08d" % chosen.randrange(KEYS) for _ in range(count)]


def all_keys() -> list[bytes]:
    return [b"key-%08d" % number for number in range(KEYS)]


def shard_id_of(key: bytes) -> str:
    return f"shard-{shard_index(key, SHARDS)}"


def runs(items: list[bytes], size: int) -> list[list[bytes]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
