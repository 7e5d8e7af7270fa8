"""The directory of a backup: one file of rows a shard, and the manifest.

A file is a line that says what it is, then rows (`flotta_runtime.saved_rows`) to its end. A backup grows beside its
place and is renamed into it once all of it is on disk, so a directory of that name is whole or not there. Blocking;
nothing here holds more than a piece and a row in memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from flotta_runtime.errors import NotFound, PreconditionFailed
from flotta_runtime.hashing import key_hashes
from flotta_runtime.saved_rows import RowReader, SavedRow

from flotta_admin.core.manifest import MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, ShardFile, decode, encode

FIRST_LINE: Final = b"flotta shard rows 1\n"
READ_BYTES: Final = 256 << 10
PARTIAL: Final = ".partial"


class BackupDamaged(PreconditionFailed):
    """What is in the directory is not what was written there."""


class RowFile:
    """A file of rows that is being written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._hash = hashlib.sha256()
        self.file_bytes = 0
        self.write(FIRST_LINE)

    def write(self, piece: bytes) -> None:
        self._file.write(piece)
        self._hash.update(piece)
        self.file_bytes += len(piece)

    def begin_again(self) -> None:
        """Forget all rows."""
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.file_bytes = 0
        self.write(FIRST_LINE)

    def finish(self) -> str:
        """On disk at return; the hash of all of it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        self._file.close()


def partial(directory: Path) -> Path:
    """Where a backup to `directory` grows."""
    return directory.with_name(directory.name + PARTIAL)


def begin(directory: Path) -> Path:
    """An empty directory to grow in; what an earlier attempt left there goes."""
    growing = partial(directory)
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(parents=True)
    return growing


def complete(directory: Path, manifest: Manifest) -> None:
    """The last file, and the name. Durable at return."""
    growing = partial(directory)
    with (growing / MANIFEST_FILE).open("xb") as file:
        file.write(encode(manifest))
        file.flush()
        os.fsync(file.fileno())
    _sync(growing)
    growing.rename(directory)
    _sync(directory.parent)


def remove(directory: Path, *, completed: bool) -> None:
    """A backup of ours that is not wanted after all: what has grown, and the whole one if it was completed."""
    shutil.rmtree(partial(directory), ignore_errors=True)
    if completed:
        shutil.rmtree(directory, ignore_errors=True)


def read_manifest(directory: Path) -> Manifest:
    """NotFound if there is no whole backup, BackupDamaged if its manifest is none."""
    try:
        with (directory / MANIFEST_FILE).open("rb") as file:
            document = file.read(MANIFEST_BYTES_MAX + 1)
    except OSError as error:
        text = f"directory: there is no whole backup in {directory}: {MANIFEST_FILE}: {error.strerror}"
        raise NotFound(text) from error
    try:
        if len(document) > MANIFEST_BYTES_MAX:
            raise ValueError(f"{MANIFEST_FILE} has more than {MANIFEST_BYTES_MAX} bytes")
        return decode(document)
    except ValueError as error:
        raise BackupDamaged(f"directory: the backup in {directory} is damaged: {error}") from error


def read_rows(directory: Path, shard: ShardFile) -> Iterator[list[SavedRow]]:
    """The rows of a shard, some at a time. BackupDamaged at the latest at the end, so what comes before it is not to be
    trusted until then."""
    path = directory / shard.file
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != shard.file_bytes:
                raise ValueError(f"it has {found} bytes, not {shard.file_bytes}")
            hashed = hashlib.sha256(first := file.read(len(FIRST_LINE)))
            if first != FIRST_LINE:
                raise ValueError("it does not begin as a file of rows does")
            reader, count = RowReader(), 0
            while piece := file.read(READ_BYTES):
                hashed.update(piece)
                rows = reader.feed(piece)
                _check(shard, rows)
                count += len(rows)
                yield rows
            reader.finish()
            if hashed.hexdigest() != shard.sha256:
                raise ValueError("it does not match its checksum")
            if count != shard.rows:
                raise ValueError(f"it has {count} rows, not {shard.rows}")
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BackupDamaged(f"the backup in {directory} is damaged: {shard.file}: {reason}") from error


def _check(shard: ShardFile, rows: list[SavedRow]) -> None:
    if any(hashed % shard.shard_count != shard.shard_index for hashed in key_hashes([row.key for row in rows])):
        raise ValueError("a key in it is another shard's")
    if any(row.version > shard.revision or row.update_ms > shard.group_time_ms for row in rows):
        raise ValueError("a row in it is newer than the shard was")


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
