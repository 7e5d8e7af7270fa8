"""Command bytes and the canonical value encoding."""

from __future__ import annotations

from typing import Any

import pytest
from flotta_embedded.codec import (
    VALUE_DEPTH_MAX,
    command_encoder,
    decode_command,
    decode_value,
    encode_command,
    encode_value,
    wire_name,
)
from hypothesis import given
from hypothesis import strategies as st

KEYS = st.text(max_size=5) | st.binary(max_size=5) | st.integers(-(1 << 70), 1 << 70)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 200), 1 << 200) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)


@given(VALUES)
def test_values_come_back_with_their_types(value: Any) -> None:
    decoded = decode_value(encode_value(value))
    assert decoded == value
    assert repr(_typed(decoded)) == repr(_typed(value))


def _typed(value: Any) -> Any:
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if isinstance(value, dict):
        return sorted((encode_value(key), _typed(item)) for key, item in value.items())
    return (type(value).__name__, value)


@given(st.dictionaries(KEYS, st.integers(), min_size=2, max_size=6), st.randoms())
def test_the_order_of_insertion_does_not_show(value: dict[Any, int], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert encode_value(dict(items)) == encode_value(value)


@given(st.binary(max_size=40))
def test_whatever_decodes_is_the_canonical_encoding(encoded: bytes) -> None:
    try:
        value = decode_value(encoded)
    except ValueError:
        return
    assert encode_value(value) == encoded


@given(VALUES, st.data())
def test_damaged_encodings_are_refused_or_other_values(value: Any, data: st.DataObject) -> None:
    encoded = encode_value(value)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(ValueError):
        decode_value(encoded[:cut])
    with pytest.raises(ValueError, match="after the encoded value"):
        decode_value(encoded + b"\x00")


@pytest.mark.parametrize("value", [1.5, {1, 2}, object(), bytearray(b"x"), {None: 1}, {(1,): 1}, {True: 1}, [1.0]])
def test_what_has_no_encoding_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        encode_value(value)


def test_limits_are_named() -> None:
    deep: Any = None
    for _ in range(VALUE_DEPTH_MAX + 1):
        deep = [deep]
    with pytest.raises(ValueError, match="nested deeper than 32"):
        encode_value(deep)
    with pytest.raises(ValueError, match="nested deeper than 32"):
        decode_value(b"\x06\x00\x00\x00\x01" * 40 + b"\x00")
    with pytest.raises(ValueError, match="has 105 bytes, the limit is 100"):
        encode_value(b"x" * 100, bytes_max=100)
    with pytest.raises(ValueError, match="integer needs 256 bytes"):
        encode_value(1 << 2040)
    with pytest.raises(ValueError):
        encode_value("\ud800")


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\x08",
        b"\x03\x02\x00\x01",  # 1 in two bytes
        b"\x03\x00",
        b"\x04\x00\x00\x00\x01\xff",  # not UTF-8
        b"\x06\xff\xff\xff\xff",
        b"\x07\x00\x00\x00\x02\x03\x01\x02\x00\x03\x01\x01\x00",  # {2: None, 1: None}
        b"\x07\x00\x00\x00\x02\x03\x01\x01\x00\x03\x01\x01\x00",  # 1 twice
        b"\x07\x00\x00\x00\x01\x02\x00",  # {True: None}
    ],
)
def test_other_encodings_are_refused(encoded: bytes) -> None:
    with pytest.raises(ValueError):
        decode_value(encoded)


@given(st.integers(0, (1 << 64) - 1), st.binary(), st.integers(1, 65_535))
def test_commands_come_back(stamp_ms: int, args: bytes, version: int) -> None:
    payload = encode_command("kv.put", version, stamp_ms, args)
    assert decode_command(payload) == (b"kv.put@%d" % version, stamp_ms, args)
    assert command_encoder("kv.put", version)(stamp_ms, args) == payload


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x02" + bytes(9), bytes(20), b"\x01" + bytes(8) + b"\x05abc"])
def test_what_is_not_a_command_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):
        decode_command(payload)


@pytest.mark.parametrize(
    ("name", "version"), [("", 1), ("Put", 1), ("a@b", 1), ("a" * 65, 1), ("put", 0), ("put", 70_000)]
)
def test_bad_names_and_versions_are_refused(name: str, version: int) -> None:
    with pytest.raises(ValueError, match="command"):
        wire_name(name, version)


def test_a_stamp_that_does_not_fit_is_refused() -> None:
    for stamp_ms in (-1, 1 << 64):
        with pytest.raises(ValueError, match="stamp_ms"):
            encode_command("put", 1, stamp_ms, b"")
