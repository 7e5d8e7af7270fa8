"""What a backup says of itself: one JSON document beside its data files, with its own checksum.

Invariants: it is written last, so a directory with a manifest is a whole backup; every file of it is named there with
its length and hash; its shards are one table's, each once. What does not hold is a ValueError with a sentence.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FORMAT: Final = 1
MANIFEST_FILE: Final = "manifest.json"
MANIFEST_BYTES_MAX: Final = 16 << 20
SHARDS_MAX: Final = 4096
REPLICAS_MAX: Final = 16
_U62 = (1 << 62) - 1

Count = Annotated[int, Field(ge=0, le=_U62)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ShardFile(_Part):
    """One shard, as of one index of its log, and the file with its rows."""

    shard_id: str
    shard_index: Count
    shard_count: Annotated[int, Field(ge=1, le=SHARDS_MAX)]
    epoch: Count
    applied_index: Count
    revision: Count  # no row of it has a greater version
    group_time_ms: Count  # what had expired by then is not in it
    rows: Count
    file_bytes: Count
    sha256: Sha256

    @property
    def file(self) -> str:
        return f"shard-{self.shard_index:05}.rows"


class Manifest(_Part):
    """The whole backup. Times are those of whoever made it."""

    format: Literal[1] = FORMAT
    cluster_id: str
    table: str
    map_version: Count
    num_shards: Annotated[int, Field(ge=1, le=SHARDS_MAX)]
    replication_factor: Annotated[int, Field(ge=1, le=REPLICAS_MAX)]
    begun_ms: Count
    ended_ms: Count
    shards: list[ShardFile]

    @property
    def revision(self) -> int:
        """No row has a greater version."""
        return max(shard.revision for shard in self.shards)

    @property
    def group_time_ms(self) -> int:
        return max(shard.group_time_ms for shard in self.shards)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def file_bytes(self) -> int:
        return sum(shard.file_bytes for shard in self.shards)

    @model_validator(mode="after")
    def _every_shard_once(self) -> Self:
        if [shard.shard_index for shard in self.shards] != list(range(self.num_shards)):
            raise ValueError(f"it does not name each of its {self.num_shards} shards once, in order")
        if any(shard.shard_count != self.num_shards for shard in self.shards):
            raise ValueError("its shards are not all of one table")
        return self


def encode(manifest: Manifest) -> bytes:
    """The document."""
    content = manifest.model_dump()
    document = {"flotta_backup": FORMAT, "sha256": _checksum(content), "content": content}
    return json.dumps(document, indent=1).encode() + b"\n"


def decode(document: bytes) -> Manifest:
    """The inverse; ValueError says what is wrong."""
    try:
        found = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{MANIFEST_FILE} is not JSON") from error
    if not isinstance(found, dict) or "flotta_backup" not in found:
        raise ValueError(f"{MANIFEST_FILE} is not of a Flotta backup")
    if found["flotta_backup"] != FORMAT:
        raise ValueError(f"its format is {found['flotta_backup']!r:.20}; this version reads {FORMAT}")
    content = found.get("content")
    if found.get("sha256") != _checksum(content):
        raise ValueError(f"{MANIFEST_FILE} does not match its checksum")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{MANIFEST_FILE}: {where}{': ' if where else ''}{first['msg']}") from error


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
