"""Snapshot files: built beside, fsynced, renamed; verified byte for byte before they replace anything.

A file that has its final name is whole and durable. Built ones are only a cache (deleted at start); received ones
are kept until the state machine has durably taken them over, because the log already counts on them. All functions
block, and run in a worker thread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from flotta_consensus.api import Failpoints, SnapshotSink, SnapshotSource
from flotta_consensus.core.manifest import Manifest, built_name, incoming_name
from flotta_consensus.durable import make_directory, sync_directory

SLICE_BYTES = 256 << 10
_PART = ".part"


class SnapshotDamaged(RuntimeError):
    """A snapshot the log counts on is missing or not what it should be. The text says what to do."""


class SnapshotFiles:
    """The two directories of one process."""

    def __init__(self, built_dir: Path, incoming_dir: Path, failpoints: Failpoints) -> None:
        self.built_dir = built_dir
        self.incoming_dir = incoming_dir
        self._failpoints = failpoints

    def prepare(self, pending: Iterable[Manifest]) -> None:
        """At start: only the received files that are still to be installed stay. Those must be there."""
        make_directory(self.built_dir)
        make_directory(self.incoming_dir)
        keep = {incoming_name(item.group, item.index, item.sha256): item for item in pending}
        for name, manifest in keep.items():
            if not (self.incoming_dir / name).is_file():
                raise SnapshotDamaged(
                    f"group {manifest.group}: the log took over a snapshot at index {manifest.index} but its file "
                    f"{self.incoming_dir / name} is gone; replace this node's replica from another node"
                )
        for directory in (self.built_dir, self.incoming_dir):
            for entry in directory.iterdir():
                if directory is self.built_dir or entry.name not in keep:
                    entry.unlink()

    def path_of(self, manifest: Manifest) -> Path:
        """Where this process built it."""
        return self.built_dir / built_name(manifest.group, manifest.index)

    def build(self, group: int, source: SnapshotSource) -> Manifest:
        """Write the frozen state to a durable file, and close it. OSError leaves nothing behind."""
        path = self.built_dir / built_name(group, source.index)
        part = path.with_name(path.name + _PART)
        digest = hashlib.sha256()
        size = 0
        try:
            with part.open("wb", buffering=0) as file:
                for chunk in source.chunks(SLICE_BYTES):
                    write_all(file.fileno(), chunk)
                    digest.update(chunk)
                    size += len(chunk)
                self._failpoints.reach("consensus.before_snapshot_sync")
                os.fsync(file.fileno())
            os.replace(part, path)
            sync_directory(self.built_dir)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        finally:
            source.close()
        self._failpoints.reach("consensus.after_snapshot_build")
        return Manifest(group, source.index, size, digest.digest(), path.name)

    def delete_built(self, group: int, keep_index: int) -> None:
        """Streams that are under way keep reading what they opened."""
        _delete_of_group(self.built_dir, group, {built_name(group, keep_index)})

    def feed(self, manifest: Manifest, sink: SnapshotSink) -> None:
        """Hand the received file to the sink, which is aborted if a single bit differs."""
        path = self.incoming_dir / incoming_name(manifest.group, manifest.index, manifest.sha256)
        digest = hashlib.sha256()
        size = 0
        try:
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(SLICE_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
                    sink.write(chunk)
        except OSError as error:
            sink.abort()
            raise SnapshotDamaged(f"snapshot file {path} cannot be read: {error.strerror}") from error
        if size != manifest.size_bytes or digest.digest() != manifest.sha256:
            sink.abort()
            raise SnapshotDamaged(
                f"snapshot file {path} is not what the log took over: {size} of {manifest.size_bytes} bytes, or "
                "another checksum; replace this node's replica from another node"
            )

    def delete_incoming(self, group: int, up_to_index: int) -> None:
        """The state machine holds this state or a newer one, durably."""
        for entry in self.incoming_dir.iterdir():
            parts = entry.name.split("-")
            if len(parts) == 3 and parts[0] == str(group) and parts[1].isdigit() and int(parts[1]) <= up_to_index:
                entry.unlink(missing_ok=True)


def write_all(descriptor: int, data: bytes) -> None:
    """`os.write` may write less than it was given."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _delete_of_group(directory: Path, group: int, keep: set[str]) -> None:
    for entry in directory.iterdir():
        if entry.name.split("-")[0] == str(group) and entry.name not in keep and not entry.name.endswith(_PART):
            entry.unlink(missing_ok=True)
