"""The bytes of a log entry's command, and one canonical encoding of typed values.

A command is: format byte, stamp (u64, ms), length and bytes of its wire name (`name@version`), arguments to the end.
Its head is one fixed struct, because apply reads it once per entry.

Invariant: equal values have equal encodings, and `decode_value` refuses every other encoding, so encoded values may
be compared, hashed and replicated as bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

FORMAT_COMMAND = 1
HEAD = struct.Struct(">BQB")
"""Format, stamp and length of the name."""
NAME_AT = HEAD.size

VALUE_BYTES_MAX = 24 << 20
VALUE_DEPTH_MAX = 32
INT_BYTES_MAX = 255
VERSION_MAX = 65_535

_NAME = re.compile(r"[a-z][a-z0-9_.\-]{0,63}")
_U64_MAX = (1 << 64) - 1


class DecodedCommand(NamedTuple):
    wire: bytes
    stamp_ms: int
    args: bytes


def wire_name(name: str, version: int) -> bytes:
    """`name@version` as it stands in log entries."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"command name {name!r} must be a lower-case letter and up to 63 of a-z 0-9 _ . -")
    if not 0 < version <= VERSION_MAX:
        raise ValueError(f"command version {version} of {name!r} must be between 1 and {VERSION_MAX}")
    return f"{name}@{version}".encode()


def command_encoder(name: str, version: int) -> Callable[[int, bytes], bytes]:
    """`encode(stamp_ms, args)` for one command, with the name's part made once."""
    wire = wire_name(name, version)
    name_bytes = len(wire)

    def encode(stamp_ms: int, args: bytes) -> bytes:
        return b"".join((HEAD.pack(FORMAT_COMMAND, stamp_ms, name_bytes), wire, args))

    return encode


def encode_command(name: str, version: int, stamp_ms: int, args: bytes) -> bytes:
    if not 0 <= stamp_ms <= _U64_MAX:
        raise ValueError(f"stamp_ms {stamp_ms} must fit in 64 bits")
    return command_encoder(name, version)(stamp_ms, args)


def decode_command(payload: bytes) -> DecodedCommand:
    """ValueError if these are not the bytes of a command."""
    if len(payload) < NAME_AT or payload[0] != FORMAT_COMMAND:
        raise ValueError(f"not a command of format {FORMAT_COMMAND}: {payload[:16].hex()} ({len(payload)} bytes)")
    _, stamp_ms, name_bytes = HEAD.unpack_from(payload)
    args_at = NAME_AT + name_bytes
    if args_at > len(payload):
        raise ValueError(f"command name runs over the end of the entry ({args_at} > {len(payload)} bytes)")
    return DecodedCommand(
        wire=payload[NAME_AT:args_at],
        stamp_ms=stamp_ms,
        args=payload[args_at:],
    )


# --- values -----------------------------------------------------------------------------------------------------

_NONE, _FALSE, _TRUE, _INT, _STR, _BYTES, _LIST, _DICT = range(8)
_TAGS = tuple(bytes((tag,)) for tag in range(8))


def encode_value(value: Any, *, bytes_max: int = VALUE_BYTES_MAX) -> bytes:
    """The canonical bytes of None, bool, int, str, bytes, list (or tuple) and dict (keys: str, bytes or int).

    TypeError for anything else, floats included: they do not compare alike everywhere. ValueError over a limit.
    """
    parts: list[bytes] = []
    _encode(value, parts, 0)
    encoded = b"".join(parts)
    if len(encoded) > bytes_max:
        raise ValueError(f"encoded value has {len(encoded)} bytes, the limit is {bytes_max}")
    return encoded


def _encode(value: Any, parts: list[bytes], depth: int) -> None:
    if depth > VALUE_DEPTH_MAX:
        raise ValueError(f"value is nested deeper than {VALUE_DEPTH_MAX}")
    if value is None:
        parts.append(_TAGS[_NONE])
    elif value is True:
        parts.append(_TAGS[_TRUE])
    elif value is False:
        parts.append(_TAGS[_FALSE])
    elif isinstance(value, bytes):
        parts += (_TAGS[_BYTES], len(value).to_bytes(4, "big"), value)
    elif isinstance(value, str):
        text = value.encode()
        parts += (_TAGS[_STR], len(text).to_bytes(4, "big"), text)
    elif isinstance(value, int):
        parts += (_TAGS[_INT], _encode_int(value))
    elif isinstance(value, list | tuple):
        parts += (_TAGS[_LIST], len(value).to_bytes(4, "big"))
        for item in value:
            _encode(item, parts, depth + 1)
    elif isinstance(value, dict):
        parts += (_TAGS[_DICT], len(value).to_bytes(4, "big"), *_encode_items(value, depth))
    else:
        raise TypeError(f"{type(value).__name__} is not one of None, bool, int, str, bytes, list, dict")


def _encode_int(value: int) -> bytes:
    length = value.bit_length() // 8 + 1
    if length > INT_BYTES_MAX:
        raise ValueError(f"integer needs {length} bytes, the limit is {INT_BYTES_MAX}")
    return bytes((length,)) + value.to_bytes(length, "big", signed=True)


def _encode_items(value: dict[Any, Any], depth: int) -> list[bytes]:
    items: list[tuple[bytes, bytes]] = []
    for key, item in value.items():
        if isinstance(key, bool) or not isinstance(key, str | bytes | int):
            raise TypeError(f"dict key of type {type(key).__name__} has no canonical encoding (str, bytes, int have)")
        encoded_key: list[bytes] = []
        _encode(key, encoded_key, depth + 1)
        encoded_item: list[bytes] = []
        _encode(item, encoded_item, depth + 1)
        items.append((b"".join(encoded_key), b"".join(encoded_item)))
    items.sort()
    return [part for pair in items for part in pair]


def decode_value(encoded: bytes) -> Any:
    """The inverse of `encode_value`. ValueError for bytes that it would not have made."""
    value, end = _decode(encoded, 0, 0)
    if end != len(encoded):
        raise ValueError(f"{len(encoded) - end} bytes after the encoded value")
    return value


def _take(encoded: bytes, at: int, length: int) -> bytes:
    taken = encoded[at : at + length]
    if len(taken) != length:
        raise ValueError("encoded value ends early")
    return taken


def _decode(encoded: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > VALUE_DEPTH_MAX:
        raise ValueError(f"value is nested deeper than {VALUE_DEPTH_MAX}")
    tag = _take(encoded, at, 1)[0]
    at += 1
    if tag <= _TRUE:
        return (None, False, True)[tag], at
    if tag == _INT:
        length = _take(encoded, at, 1)[0]
        number = int.from_bytes(_take(encoded, at + 1, length), "big", signed=True)
        if length != number.bit_length() // 8 + 1:
            raise ValueError("integer is not in its shortest encoding")
        return number, at + 1 + length
    if tag > _DICT:
        raise ValueError(f"unknown value tag {tag}")
    count = int.from_bytes(_take(encoded, at, 4), "big")
    at += 4
    if tag == _STR:
        return _take(encoded, at, count).decode(), at + count
    if tag == _BYTES:
        return _take(encoded, at, count), at + count
    if count > len(encoded) - at:
        raise ValueError("encoded value ends early")
    if tag == _LIST:
        return _decode_list(encoded, at, count, depth)
    return _decode_dict(encoded, at, count, depth)


def _decode_list(encoded: bytes, at: int, count: int, depth: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    for _ in range(count):
        item, at = _decode(encoded, at, depth + 1)
        items.append(item)
    return items, at


def _decode_dict(encoded: bytes, at: int, count: int, depth: int) -> tuple[dict[Any, Any], int]:
    items: dict[Any, Any] = {}
    previous = b""
    for _ in range(count):
        key_at = at
        key, at = _decode(encoded, at, depth + 1)
        if isinstance(key, bool) or not isinstance(key, str | bytes | int):
            raise ValueError(f"dict key of type {type(key).__name__}")
        encoded_key = encoded[key_at:at]
        if encoded_key <= previous:
            raise ValueError("dict keys are not in their canonical order")
        previous = encoded_key
        items[key], at = _decode(encoded, at, depth + 1)
    return items, at
