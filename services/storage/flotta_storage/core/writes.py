"""The arguments of `kv.write@1`, and what it answers.

Arguments are one flat frame, read with one unpack and three slices, because apply does it for every entry:
flags, epoch, ttl_ms, if_version_equals, key length, request id length, key, request id, fingerprint, value.
Invariant: the fingerprint is there exactly when the request id is.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from flotta_embedded.codec import FORMAT_COMMAND, HEAD, command_encoder, wire_name

WRITE: Final = "kv.write"
WRITE_VERSION: Final = 1
FINGERPRINT_BYTES: Final = 16

_HEADER = struct.Struct(">BQQQHH")
_WIRE = wire_name(WRITE, WRITE_VERSION)
_BOTH_HEADS = struct.Struct(HEAD.format + f"{len(_WIRE)}s" + _HEADER.format[1:])
_DELETE = 1
_IF_NOT_EXISTS = 2
_KNOWN_FLAGS = _DELETE | _IF_NOT_EXISTS
_new = tuple.__new__  # what calling a NamedTuple comes to, at half its price

encode_payload = command_encoder(WRITE, WRITE_VERSION)
"""`encode_payload(stamp_ms, args)`: the log entry of one write."""


class Write(NamedTuple):
    """One put or delete. `epoch` 0: the sender knows none, so the key's ownership decides."""

    key: bytes
    value: bytes = b""
    delete: bool = False
    epoch: int = 0
    ttl_ms: int = 0
    if_version_equals: int = 0
    if_not_exists: bool = False
    request_id: bytes = b""
    fingerprint: bytes = b""


class WriteKind(enum.IntEnum):
    """What became of a committed write. Everything but OK changed nothing."""

    OK = 1
    NOT_FOUND = 2  # a delete of an absent key
    ALREADY_EXISTS = 3
    VERSION_MISMATCH = 4
    SHARD_MOVED = 5
    DEDUP_CONFLICT = 6  # another payload under the same request id
    DEDUP_UNTIMELY = 7  # the request id's own time is too far from the shard's for exactly-once to be certain


@dataclass(slots=True)
class WriteResult:
    """What a write came to. Never changed, and not frozen, as `Command`.

    `revision`: of the write that decided; `version`: of the row that is (OK) or stood in the way, 0 if none."""

    kind: WriteKind
    revision: int
    version: int = 0
    duplicate: bool = False


def fingerprint(write: Write) -> bytes:
    """Tells two payloads under one request id apart; routing (the epoch) is no part of the payload."""
    digest = hashlib.blake2b(digest_size=FINGERPRINT_BYTES)
    digest.update(
        _HEADER.pack(_flags(write), 0, write.ttl_ms, write.if_version_equals, len(write.key), len(write.request_id))
    )
    digest.update(write.key)
    digest.update(write.request_id)
    digest.update(write.value)
    return digest.digest()


def _flags(write: Write) -> int:
    return (_DELETE if write.delete else 0) | (_IF_NOT_EXISTS if write.if_not_exists else 0)


def encode_write(write: Write) -> bytes:
    if len(write.fingerprint) != (FINGERPRINT_BYTES if write.request_id else 0):
        raise ValueError(f"a request id takes a fingerprint of {FINGERPRINT_BYTES} bytes, and nothing else does")
    header = _HEADER.pack(
        _flags(write), write.epoch, write.ttl_ms, write.if_version_equals, len(write.key), len(write.request_id)
    )
    return b"".join((header, write.key, write.request_id, write.fingerprint, write.value))


def write_payload(
    stamp_ms: int,
    key: bytes,
    value: bytes,
    delete: bool,
    epoch: int,
    ttl_ms: int,
    if_version_equals: int,
    if_not_exists: bool,
    request_id: str,
) -> bytes:
    """The log entry of one write: `encode_payload` and `encode_write` in one go, which is most of the price."""
    if request_id:
        write = Write(key, value, delete, epoch, ttl_ms, if_version_equals, if_not_exists, request_id.encode())
        return encode_payload(stamp_ms, encode_write(write._replace(fingerprint=fingerprint(write))))
    flags = (_DELETE if delete else 0) | (_IF_NOT_EXISTS if if_not_exists else 0)
    heads = _BOTH_HEADS.pack(
        FORMAT_COMMAND, stamp_ms, len(_WIRE), _WIRE, flags, epoch, ttl_ms, if_version_equals, len(key), 0
    )
    return b"".join((heads, key, value))


def decode_write(args: bytes) -> Write:
    """ValueError if `encode_write` cannot have made these bytes."""
    if len(args) < _HEADER.size:
        raise ValueError(f"a write of {len(args)} bytes is shorter than its header")
    flags, epoch, ttl_ms, if_version, key_bytes, request_bytes = _HEADER.unpack_from(args)
    if flags & ~_KNOWN_FLAGS:
        raise ValueError(f"a write has unknown flags {flags:#x}")
    key_end = _HEADER.size + key_bytes
    request_end = key_end + request_bytes
    fingerprint_end = request_end + (FINGERPRINT_BYTES if request_bytes else 0)
    if fingerprint_end > len(args):
        raise ValueError(f"a write of {len(args)} bytes ends inside its own fields")
    return _new(
        Write,
        (
            args[_HEADER.size : key_end],
            args[fingerprint_end:],
            flags & _DELETE != 0,
            epoch,
            ttl_ms,
            if_version,
            flags & _IF_NOT_EXISTS != 0,
            args[key_end:request_end],
            args[request_end:fingerprint_end],
        ),
    )
