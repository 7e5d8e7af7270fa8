"""Frozen dataclasses to canonical bytes and back, read strictly.

Used for log entries and for rows. An unknown or mistyped field is a ValueError: it means that a later version wrote the
bytes, and guessing would let replicas differ. So is a missing one, unless it has a default: that is how a field is
added, and its default has to mean "as it was before the field".
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from typing import Any, TypeVar

from flotta_embedded.codec import decode_value, encode_value

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """The value as dicts, lists, numbers and strings."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, str | int | bool) or value is None:
        return value
    raise ValueError(f"cannot encode a {type(value).__name__}")


def from_plain(kind: type[T], plain: Any) -> T:
    """The inverse of `to_plain` for a dataclass type."""
    return typing.cast(T, _decode(kind, plain, kind.__name__))


def encode(value: Any) -> bytes:
    """Canonical bytes of a value."""
    return encode_value(to_plain(value))


def decode(kind: type[T], data: bytes) -> T:
    """The inverse of `encode`."""
    return from_plain(kind, decode_value(data))


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind)}


def _decode(kind: Any, plain: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, plain, where)
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(plain, list):
            raise ValueError(f"{where}: expected a list, found {type(plain).__name__}")
        item_kind = typing.get_args(kind)[0]
        return tuple(_decode(item_kind, item, where) for item in plain)
    if origin in (types.UnionType, typing.Union):
        if plain is None:
            return None
        inner = next(option for option in typing.get_args(kind) if option is not type(None))
        return _decode(inner, plain, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(plain)
    # bool is an int to isinstance, so compare exact types.
    if type(plain) is not kind:
        raise ValueError(f"{where}: expected {kind.__name__}, found {type(plain).__name__}")
    return plain


@functools.cache
def _required(kind: Any) -> frozenset[str]:
    missing = dataclasses.MISSING
    return frozenset(
        item.name for item in dataclasses.fields(kind) if item.default is missing and item.default_factory is missing
    )


def _decode_dataclass(kind: Any, plain: Any, where: str) -> Any:
    fields = _fields(kind)
    if not isinstance(plain, dict) or not _required(kind) <= plain.keys() <= fields.keys():
        found = sorted(plain) if isinstance(plain, dict) else type(plain).__name__
        raise ValueError(f"{where}: expected the fields {sorted(fields)}, found {found}")
    return kind(**{name: _decode(fields[name], value, f"{where}.{name}") for name, value in plain.items()})
