"""Bytes that are no message are explained, whatever they are, and what parses is never touched."""

from __future__ import annotations

import pytest
from flotta_proto.flotta import storage_pb2
from flotta_proto.kvdb import gateway_pb2
from flotta_runtime.errors import InvalidArgument
from flotta_runtime.malformed import Malformed, explain, tolerant
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

PUT = gateway_pb2.PutRequest(
    ctx=gateway_pb2.RequestContext(request_id="r", tenant_id="t"),
    key=b"key",
    value=b"value",
    options=gateway_pb2.WriteOptions(ttl_ms=1 << 60, if_not_exists=True),
).SerializeToString()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\x12\x05ab", "key is cut short: it says 5 bytes, 2 are there"),
        (b"\x0a\x03\x0a\x01\xff", "ctx.request_id is not UTF-8 text"),
        (b"\x22\x01\x18", "options.ttl_ms is cut short"),
        (b"\x22\x0b\x18" + b"\xff" * 10, "options.ttl_ms holds a number of more than 10 bytes"),
        (b"\x0e", "ctx has the unusable wire type 6"),
        (b"\x00", "the request holds the impossible field number 0"),
        (b"\x15\x00", "key is cut short: it says 4 bytes, 1 are there"),
        (b"\xfa\x01\x05a", "31 is cut short: it says 5 bytes, 1 are there"),
    ],
)
def test_the_field_is_named(data: bytes, sentence: str) -> None:
    with pytest.raises(DecodeError):
        gateway_pb2.PutRequest.FromString(data)
    assert explain(gateway_pb2.PutRequest, data) == f"{sentence}; it must be a valid kvdb.gateway.PutRequest"


@given(st.binary(max_size=64) | st.integers(0, len(PUT)).map(lambda size: PUT[:size]))
@example(PUT)
@example(b"")
def test_all_bytes_are_a_message_or_explained(data: bytes) -> None:
    for message in (gateway_pb2.PutRequest, storage_pb2.OperationFrame):
        try:
            expected = message.FromString(data)
        except DecodeError:
            refusal = tolerant(message.FromString, streaming=False)(data)
            assert isinstance(refusal, Malformed)
            assert message.DESCRIPTOR.full_name in refusal.error.message
            with pytest.raises(InvalidArgument):
                tolerant(message.FromString, streaming=True)(data)
        else:
            assert tolerant(message.FromString, streaming=False)(data) == expected


def test_nesting_without_end_is_bounded() -> None:
    value = struct_pb2.Value(number_value=1)
    for _ in range(45):
        value = struct_pb2.Value(list_value=struct_pb2.ListValue(values=[value]))
    shallow = struct_pb2.ListValue(values=[value]).SerializeToString()
    assert struct_pb2.ListValue.FromString(shallow)
    deep = shallow
    for _ in range(40):  # each wraps twice: a list in a value
        inner = b"\x32" + _size(deep) + deep
        deep = b"\x0a" + _size(inner) + inner
    with pytest.raises(DecodeError):
        struct_pb2.ListValue.FromString(deep)
    assert "is nested more than 100 deep" in explain(struct_pb2.ListValue, deep)


def _size(data: bytes) -> bytes:
    return bytes([len(data) & 0x7F | 0x80, len(data) >> 7])
