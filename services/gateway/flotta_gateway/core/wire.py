"""The little of protobuf's encoding that is written by hand: messages put together from serialised parts."""

from __future__ import annotations


def varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field_head(number: int, size: int) -> bytes:
    """What stands before the `size` bytes of a field that is a message, bytes or text."""
    return varint(number << 3 | 2) + varint(size)
