"""The little of protobuf's encoding that is written by hand: messages put together from serialised parts."""

from __future__ import annotations

from functools import lru_cache


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_SHORT = tuple(map(_encoded, range(2048)))  # the lengths of most messages


def varint(value: int) -> bytes:
    return _SHORT[value] if value < 2048 else _encoded(value)


@lru_cache(maxsize=4096)
def field_head(number: int, size: int) -> bytes:
    """What stands before the `size` bytes of a field that is a message, bytes or text."""
    return varint(number << 3 | 2) + varint(size)


@lru_cache(maxsize=4096)
def nested_head(outer: int, inner: int, size: int) -> bytes:
    """What stands before the `size` bytes of field `inner` of a message that has nothing else and is field `outer`."""
    head = field_head(inner, size)
    return field_head(outer, len(head) + size) + head
