"""Requests whose bytes are no message: found where they are parsed, told apart, and named.

The parser of the protobuf library only says that something is wrong. `explain` walks the bytes once more, only then,
and names the field. A unary request that cannot be parsed becomes a `Malformed`, so that the token is checked before
anything is said of it; on a stream the error is raised where the handler reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from flotta_runtime.errors import InvalidArgument

_VARINT_BYTES_MAX = 10
_DEPTH_MAX = 100  # protobuf's own limit of nesting
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands in for a request that could not be parsed."""

    error: InvalidArgument


def tolerant(parse: Callable[[bytes], Any], *, streaming: bool) -> Callable[[bytes], Any]:
    """`parse` (a message class's FromString), but garbage is an InvalidArgument: raised, or returned as `Malformed`."""

    def parsing(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            error = InvalidArgument(explain(getattr(parse, "__self__", None), data))
            if streaming:
                raise error from None
            return Malformed(error)

    return parsing


def explain(message: Any, data: bytes) -> str:
    """What is wrong with `data` as a message of this class, in one sentence."""
    descriptor = getattr(message, "DESCRIPTOR", None)
    if descriptor is None:
        return "the request's bytes are not a valid message"
    try:
        _walk(descriptor, data, "", _DEPTH_MAX)
    except _Fault as fault:
        where = fault.field or "the request"
        return f"{where} {fault.problem}; it must be a valid {descriptor.full_name}"
    return f"the request's bytes are not a valid {descriptor.full_name}"


class _Fault(Exception):
    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field
        self.problem = problem


def _walk(descriptor: Descriptor, data: bytes, path: str, depth: int) -> None:
    place = 0
    while place < len(data):
        tag, place = _varint(data, place, path)
        number, wire_type = tag >> 3, tag & 7
        field = descriptor.fields_by_number.get(number)
        name = f"{path}{field.name}" if field is not None else f"{path}{number}"
        if number == 0 or number >= 1 << 29:
            raise _Fault(path.rstrip("."), f"holds the impossible field number {number}")
        if wire_type == _VARINT:
            _, place = _varint(data, place, name)
        elif wire_type in (_FIXED64, _FIXED32):
            place = _skip(data, place, 8 if wire_type == _FIXED64 else 4, name)
        elif wire_type == _BYTES:
            size, start = _varint(data, place, name)
            place = _skip(data, start, size, name)
            if field is not None:
                _inside(field, data[start:place], name, depth)
        else:
            raise _Fault(name, f"has the unusable wire type {wire_type}")


def _inside(field: FieldDescriptor, content: bytes, name: str, depth: int) -> None:
    if field.type == FieldDescriptor.TYPE_STRING:
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:
            raise _Fault(name, "is not UTF-8 text") from None
    elif field.message_type is not None:
        if depth == 0:
            raise _Fault(name, f"is nested more than {_DEPTH_MAX} deep")
        _walk(field.message_type, content, name + ".", depth - 1)


def _varint(data: bytes, place: int, name: str) -> tuple[int, int]:
    value = 0
    for position in range(_VARINT_BYTES_MAX):
        if place + position >= len(data):
            raise _Fault(name.rstrip("."), "is cut short")
        byte = data[place + position]
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, place + position + 1
    raise _Fault(name.rstrip("."), f"holds a number of more than {_VARINT_BYTES_MAX} bytes")


def _skip(data: bytes, place: int, size: int, name: str) -> int:
    if size > len(data) - place:
        raise _Fault(name, f"is cut short: it says {size} bytes, {len(data) - place} are there")
    return place + size
