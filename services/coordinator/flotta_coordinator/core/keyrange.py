"""The `key_range` of a KvDB shard record: an even cut of the positive int32 space, for display only.

Routing never uses it: keys are spread by residue of their hash (`hashing.py`).
"""

from __future__ import annotations

SPACE_END = 2_147_483_647


def key_range(index: int, count: int) -> tuple[bytes, bytes]:
    """Start (included) and end (excluded) of shard `index` of `count`, as 4-byte big-endian integers."""
    if not 0 <= index < count:
        raise ValueError(f"shard index {index} must be between 0 and {count - 1}")
    step = SPACE_END // count
    end = SPACE_END if index == count - 1 else (index + 1) * step
    return (index * step).to_bytes(4, "big"), end.to_bytes(4, "big")
