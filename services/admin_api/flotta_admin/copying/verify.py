"""Looks a backup through without a cluster: every file, to its end, and what is there beside them. Blocking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flotta_admin.copying import files
from flotta_admin.core.manifest import MANIFEST_FILE, Manifest, ShardFile


@dataclass(frozen=True, slots=True)
class FileFound:
    """One file of a backup; `wrong` empty: it is as it was written."""

    shard: ShardFile
    rows: int
    wrong: str = ""


def manifest(directory: Path) -> Manifest:
    """NotFound or BackupDamaged without one."""
    return files.read_manifest(directory)


def look_through(directory: Path, shards: list[ShardFile]) -> Iterator[FileFound]:
    """One file after the other; a damaged one does not keep the next ones from being read."""
    for shard in shards:
        rows = 0
        try:
            for some in files.read_rows(directory, shard):
                rows += len(some)
        except files.BackupDamaged as damaged:
            yield FileFound(shard, rows, damaged.message.rpartition(f"{shard.file}: ")[2])
        else:
            yield FileFound(shard, rows)


def strangers(directory: Path, shards: list[ShardFile]) -> list[str]:
    """What is in the directory, and is not the backup's."""
    named = {MANIFEST_FILE, *(shard.file for shard in shards)}
    return sorted(path.name for path in directory.iterdir() if path.name not in named)
