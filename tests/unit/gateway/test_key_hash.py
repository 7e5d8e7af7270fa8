"""The key hash against KvDB's vectors and against its definition."""

from __future__ import annotations

import pytest
from flotta_runtime.hashing import key_hash, shard_index
from hypothesis import given
from hypothesis import strategies as st


def by_definition(key: bytes) -> int:
    h = 1
    for byte in key:
        h = (31 * h + (byte if byte < 128 else byte - 256)) & 0xFFFFFFFF
    return h - (1 << 32) if h >> 31 else h


@pytest.mark.parametrize(
    ("key", "value", "index"),
    [
        (b"a", 128, 0),
        (b"k-0", 134061, 5),
        (b"hello", 127791473, 1),
        (b"bench-key", 469728865, 1),
        (b"smoke-key10", -735052737, 7),
        (b"\xff", 30, 6),
    ],
)
def test_known_vectors(key: bytes, value: int, index: int) -> None:
    assert key_hash(key) == value
    assert shard_index(key, 8) == index


@pytest.mark.parametrize("byte", [0x00, 0x01, 0x7F, 0x80, 0xFF])
def test_every_length_up_to_the_limit_with_extreme_bytes(byte: int) -> None:
    for length in [*range(1, 70), 255, 256, 257, 1023, 1024, 1025, 2048, 2049]:
        key = bytes([byte]) * length
        assert key_hash(key) == by_definition(key)


@given(st.binary(min_size=1, max_size=1100))
def test_any_key(key: bytes) -> None:
    assert key_hash(key) == by_definition(key)


@given(st.binary(max_size=64), st.integers(min_value=1, max_value=4096))
def test_index_is_a_residue(key: bytes, num_shards: int) -> None:
    assert 0 <= shard_index(key, num_shards) < num_shards
