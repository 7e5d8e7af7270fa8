from __future__ import annotations

import pytest
from flotta_embedded.codec import decode_command
from flotta_storage.core import limits
from flotta_storage.core.rows import RowHeader, encode_row, header_of, value_of, value_view
from flotta_storage.core.shard_state import birth_state, decode_state, encode_state
from flotta_storage.core.writes import Write, decode_write, encode_payload, encode_write, fingerprint, write_payload
from hypothesis import given
from hypothesis import strategies as st

U64 = st.integers(0, 2**64 - 1)


@given(U64, U64, U64, U64, st.binary(max_size=64))
def test_a_row_comes_back_as_it_was(version: int, create: int, update: int, expire: int, value: bytes) -> None:
    header = RowHeader(version, create, update, expire)
    row = encode_row(*header, value)
    assert header_of(row) == header
    assert value_of(row) == value == bytes(value_view(row))


def test_value_view_does_not_copy() -> None:
    row = encode_row(1, 2, 3, 4, b"x" * 1000)
    assert value_view(row).obj is row


@pytest.mark.parametrize("raw", [b"", b"\x01", b"\x02" + b"\0" * 40, b"\x01" + b"\0" * 31])
def test_a_foreign_row_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="format"):
        header_of(raw)


@pytest.mark.parametrize(
    ("expire_ms", "now_ms", "expired"), [(0, 10**15, False), (10, 9, False), (10, 10, True), (10, 11, True)]
)
def test_expiry_includes_its_instant(expire_ms: int, now_ms: int, expired: bool) -> None:
    assert RowHeader(1, 1, 1, expire_ms).expired(now_ms) is expired


@given(
    st.builds(
        Write,
        key=st.binary(min_size=1, max_size=40),
        value=st.binary(max_size=40),
        delete=st.booleans(),
        epoch=U64,
        ttl_ms=U64,
        if_version_equals=U64,
        if_not_exists=st.booleans(),
        request_id=st.binary(max_size=10),
        fingerprint=st.just(b""),
    )
)
def test_write_arguments_come_back(write: Write) -> None:
    if write.request_id:
        write = write._replace(fingerprint=fingerprint(write))
    assert decode_write(encode_write(write)) == write


@given(
    st.integers(min_value=0, max_value=2**63),
    st.binary(max_size=40),
    st.binary(max_size=40),
    st.booleans(),
    U64,
    U64,
    U64,
    st.booleans(),
    st.text(max_size=10),
)
def test_an_entry_made_in_one_go_is_the_same(
    stamp_ms: int, key: bytes, value: bytes, delete: bool, epoch: int, ttl_ms: int, version: int, fresh: bool, name: str
) -> None:
    write = Write(key, value, delete, epoch, ttl_ms, version, fresh, name.encode())
    write = write._replace(fingerprint=fingerprint(write) if name else b"")
    payload = write_payload(stamp_ms, key, value, delete, epoch, ttl_ms, version, fresh, name)
    assert payload == encode_payload(stamp_ms, encode_write(write))
    assert decode_command(payload).stamp_ms == stamp_ms


@given(st.lists(st.binary(min_size=1, max_size=20)), st.integers(1, 64), st.integers(0, 63))
def test_many_keys_are_owned_as_each_alone(keys: list[bytes], count: int, index: int) -> None:
    state = birth_state("shard-0", "default", index % count, count)
    assert state.own(keys) == [state.owns(key) for key in keys]


def test_write_arguments_need_a_fingerprint_exactly_with_a_request_id() -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        encode_write(Write(b"k", request_id=b"r"))
    with pytest.raises(ValueError, match="fingerprint"):
        encode_write(Write(b"k", fingerprint=b"f" * 16))


@pytest.mark.parametrize("cut", [0, 5, 28, 30])
def test_a_short_write_is_refused(cut: int) -> None:
    with pytest.raises(ValueError):
        decode_write(encode_write(Write(b"key", b""))[:cut])


def test_an_unknown_flag_is_refused() -> None:
    args = bytearray(encode_write(Write(b"key")))
    args[0] |= 0x80
    with pytest.raises(ValueError, match="flags"):
        decode_write(bytes(args))


def test_a_fingerprint_is_of_the_payload_and_not_of_the_routing() -> None:
    write = Write(b"k", b"v", request_id=b"r")
    assert fingerprint(write) == fingerprint(write._replace(epoch=9))
    others = [
        write._replace(value=b"w"),
        write._replace(delete=True),
        write._replace(ttl_ms=1),
        write._replace(if_not_exists=True),
        write._replace(if_version_equals=3),
        write._replace(key=b"kv", value=b""),
    ]
    assert len({fingerprint(other) for other in [write, *others]}) == 7


def test_shard_state_comes_back_and_bad_ones_are_refused() -> None:
    state = birth_state("shard-3", "default", 3, 8)
    assert decode_state(encode_state(state)) == state
    assert state.epoch == 1
    for bad in ((8, 8), (-1, 8), (0, 0)):
        with pytest.raises(ValueError, match="shard_index"):
            birth_state("s", "default", *bad)
    for names in (("", "t"), ("s", ""), ("s", "t" * 256)):
        with pytest.raises(ValueError, match="needs an id"):
            birth_state(*names, 0, 1)
    with pytest.raises(ValueError, match="format"):
        decode_state(b"\x07" + encode_state(state)[1:])


def test_limits_name_the_field_and_the_limit() -> None:
    small = limits.Limits(value_bytes_max=10)
    assert limits.check_key(b"k" * 1024) is None
    assert limits.check_value(b"v" * 10, small) is None
    empty = limits.check_key(b"")
    long = limits.check_key(b"k" * 1025)
    big = limits.check_value(b"v" * 11, small)
    both = limits.check_conditions(0, 1, True, "")
    request = limits.check_conditions(0, 0, False, "é" * 129)
    ttl = limits.check_conditions(limits.TTL_MS_MAX + 1, 0, False, "")
    assert empty and empty.field == "key"
    assert long and long.message == "key has 1025 bytes, the limit is 1024"
    assert big and big.too_large and big.message == "value has 11 bytes, the limit is 10"
    assert both and both.field == "if_not_exists"
    assert request and request.message == "request_id has 258 bytes, the limit is 256"
    assert ttl and ttl.field == "ttl_ms"
    assert [
        refusal.field
        for refusal in (
            limits.check_delete(1, False, b""),
            limits.check_delete(0, True, b""),
            limits.check_delete(0, False, b"v"),
        )
        if refusal
    ] == ["ttl_ms", "if_not_exists", "value"]
    assert limits.check_delete(0, False, b"") is None
