"""What one operation may ask for. Each refusal names the field and the limit, and happens before anything is logged."""

from __future__ import annotations

from dataclasses import dataclass

from flotta_proto.kvdb.gateway_pb2 import Consistency, ReadMode

KEY_BYTES_MAX = 1024
VALUE_BYTES_MAX_DEFAULT = 16 << 20
REQUEST_ID_BYTES_MAX = 256
CONSISTENCIES = frozenset(Consistency.values())
READ_MODES = frozenset(ReadMode.values())
TTL_MS_MAX = 1 << 42  # 139 years: far, and no sum of group time and TTL overflows


@dataclass(frozen=True, slots=True)
class Limits:
    value_bytes_max: int = VALUE_BYTES_MAX_DEFAULT


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an operation cannot be taken. `too_large`: the value is over its limit; otherwise an argument is bad."""

    field: str
    message: str
    too_large: bool = False


def check_key(key: bytes) -> Refusal | None:
    if not key:
        return Refusal("key", "key must not be empty")
    if len(key) > KEY_BYTES_MAX:
        return Refusal("key", f"key has {len(key)} bytes, the limit is {KEY_BYTES_MAX}")
    return None


def check_value(value: bytes, limits: Limits) -> Refusal | None:
    if len(value) > limits.value_bytes_max:
        text = f"value has {len(value)} bytes, the limit is {limits.value_bytes_max}"
        return Refusal("value", text, too_large=True)
    return None


def check_shard_id(shard_id: str) -> Refusal | None:
    return None if shard_id else Refusal("shard_id", "shard_id must not be empty")


def check_read(consistency: int, read_mode: int) -> Refusal | None:
    if consistency not in CONSISTENCIES:
        return Refusal("consistency", f"consistency has the unknown value {consistency}")
    if read_mode not in READ_MODES:
        return Refusal("read_mode", f"read_mode has the unknown value {read_mode}")
    return None


def check_conditions(ttl_ms: int, if_version_equals: int, if_not_exists: bool, request_id: str) -> Refusal | None:
    if ttl_ms > TTL_MS_MAX:
        return Refusal("ttl_ms", f"ttl_ms is {ttl_ms}, the limit is {TTL_MS_MAX}")
    if if_version_equals and if_not_exists:
        return Refusal("if_not_exists", "if_not_exists and if_version_equals exclude each other")
    if len(request_id.encode()) > REQUEST_ID_BYTES_MAX:
        size = len(request_id.encode())
        return Refusal("request_id", f"request_id has {size} bytes, the limit is {REQUEST_ID_BYTES_MAX}")
    return None


def check_delete(ttl_ms: int, if_not_exists: bool, value: bytes) -> Refusal | None:
    if ttl_ms:
        return Refusal("ttl_ms", "ttl_ms has no meaning for a delete; leave it 0")
    if if_not_exists:
        return Refusal("if_not_exists", "if_not_exists has no meaning for a delete; leave it unset")
    if value:
        return Refusal("value", "a delete takes no value; leave it empty")
    return None
