"""KvDB's key hash: the one implementation that gateways, nodes and the coordinator share.

The hash is Java's `Arrays.hashCode(byte[])`: h = 1, then h = 31*h + b for each signed byte, in a wrapping int32.
Long keys are not walked byte by byte: a key is read as one big integer and neighbouring lanes are folded into one,
pairwise, so that n bytes cost log2(n) operations on big integers instead of n on small ones.

Invariants:
- `key_hash` lies in [-2**31, 2**31). An empty key hashes to 0, as in KvDB, though no face accepts one.
- `shard_index` is Java's floorMod: never negative.
"""

from __future__ import annotations

_UINT32 = 0xFFFFFFFF
_LOOP_BYTES_MAX = 11  # below, a plain loop is the faster of the two
_BLOCK_BYTES = 1024  # folded at once; longer keys go block by block


def _lanes(lane_bits: int, value: int) -> int:
    """`value` in every lane of `lane_bits` bits of a block."""
    return sum(value << shift for shift in range(0, _BLOCK_BYTES * 8, lane_bits))


def _fold_steps() -> tuple[tuple[int, int, int, int], ...]:
    """(lane_bits, mask of the low halves, factor, bytes a merged lane stands for) for each halving of the lane count.

    A lane of k bytes holds the hash of its k bytes: merged = high * 31**k + low. Up to 4 bytes that cannot outgrow
    the merged lane; from there on both halves are cut to 32 bits first, the hash being modulo 2**32.
    """
    steps = []
    lane_bits = 8
    while lane_bits < _BLOCK_BYTES * 8:
        mask = _lanes(2 * lane_bits, (1 << min(lane_bits, 32)) - 1)
        steps.append((lane_bits, mask, pow(31, lane_bits // 8, 1 << 32), lane_bits // 4))
        lane_bits *= 2
    return tuple(steps)


# Signed bytes without a branch: b = (b ^ 0x80) - 128. All the -128s of a block add up to a constant per length.
_SIGNS = _lanes(8, 0x80)
_POWERS = tuple(pow(31, n, 1 << 32) for n in range(_BLOCK_BYTES + 1))
_OFFSETS = tuple((-128 * ((pow(31, n, 30 << 32) - 1) // 30)) & _UINT32 for n in range(_BLOCK_BYTES + 1))
_STEPS = _fold_steps()


def _fold(block: bytes) -> int:
    """Sum of b[i] * 31**(n-1-i) over the signed bytes of one block, modulo 2**32."""
    n = len(block)
    lanes = int.from_bytes(block, "big") ^ (_SIGNS & ((1 << (8 * n)) - 1))
    for lane_bits, mask, factor, folded_bytes in _STEPS:
        lanes = ((lanes >> lane_bits) & mask) * factor + (lanes & mask)
        if folded_bytes >= n:
            break
    return (lanes + _OFFSETS[n]) & _UINT32


def key_hash(key: bytes) -> int:
    """The signed 32-bit hash of a key."""
    n = len(key)
    if n == 0:
        return 0
    h = 1
    if n <= _LOOP_BYTES_MAX:
        for b in key:
            h = 31 * h + (b if b < 128 else b - 256)
        h &= _UINT32
    elif n <= _BLOCK_BYTES:
        h = (_POWERS[n] + _fold(key)) & _UINT32
    else:
        for start in range(0, n, _BLOCK_BYTES):
            block = key[start : start + _BLOCK_BYTES]
            h = (h * _POWERS[len(block)] + _fold(block)) & _UINT32
    return h - (1 << 32) if h >> 31 else h


def shard_index(key: bytes, num_shards: int) -> int:
    """The residue class a key belongs to: 0 <= index < num_shards."""
    return key_hash(key) % num_shards
