"""What a snapshot is, in the words that travel inside the Raft message and the log: exact, canonical bytes.

A manifest names content, not a place: the receiver stores the file under a name of its own making
(`incoming_name`), so nothing a peer sends ever becomes a path.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_MAGIC = b"FSM1"
_HEAD = struct.Struct(">4sQQQ32sH")
_NAME_BYTES_MAX = 255


class ManifestError(ValueError):
    """The bytes are not a manifest."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One snapshot file: the state of `group` at exactly `index`."""

    group: int
    index: int
    size_bytes: int
    sha256: bytes
    name: str  # in the builder's own snapshot directory

    def encode(self) -> bytes:
        name = self.name.encode()
        if len(self.sha256) != 32 or not 0 < len(name) <= _NAME_BYTES_MAX:
            raise ManifestError("a manifest needs a SHA-256 digest and a file name of 1 to 255 bytes")
        return _HEAD.pack(_MAGIC, self.group, self.index, self.size_bytes, self.sha256, len(name)) + name

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        if len(data) < _HEAD.size:
            raise ManifestError(f"a snapshot manifest of {len(data)} bytes is too short")
        magic, group, index, size, sha256, name_bytes = _HEAD.unpack_from(data)
        if magic != _MAGIC or len(data) != _HEAD.size + name_bytes:
            raise ManifestError("not a snapshot manifest")
        try:
            name = data[_HEAD.size :].decode()
        except UnicodeDecodeError as error:
            raise ManifestError("the snapshot manifest's file name is not UTF-8") from error
        return cls(group, index, size, sha256, name)


def built_name(group: int, index: int) -> str:
    """File name of a snapshot in its builder's directory."""
    return f"{group}-{index}.snap"


def incoming_name(group: int, index: int, sha256: bytes) -> str:
    """File name of a received snapshot: says what is inside, so a repeated delivery meets itself."""
    return f"{group}-{index}-{sha256.hex()[:32]}.snap"
