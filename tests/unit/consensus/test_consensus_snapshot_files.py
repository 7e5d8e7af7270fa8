"""Snapshot files: a final name means whole and durable; a received file stays until it was taken over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from consensus_fakes import ListMachine, ListSource
from flotta_consensus.api import NoFailpoints
from flotta_consensus.core.manifest import Manifest, incoming_name
from flotta_consensus.failpoints import ArmedFailpoints, FailpointError
from flotta_consensus.snapshot_files import SnapshotDamaged, SnapshotFiles

DATA = b"one\ntwo\n"


def files(tmp_path: Path) -> SnapshotFiles:
    made = SnapshotFiles(tmp_path / "snapshots", tmp_path / "incoming", NoFailpoints())
    made.prepare([])
    return made


def received(each: SnapshotFiles, group: int, index: int, data: bytes = DATA) -> Manifest:
    manifest = Manifest(group, index, len(data), hashlib.sha256(data).digest(), "whatever.snap")
    (each.incoming_dir / incoming_name(group, index, manifest.sha256)).write_bytes(data)
    return manifest


def test_a_snapshot_is_built_and_named_by_its_content(tmp_path: Path) -> None:
    each = files(tmp_path)
    source = ListSource(9, [b"one", b"two"])
    manifest = each.build(7, source)
    assert manifest == Manifest(7, 9, len(DATA), hashlib.sha256(DATA).digest(), "7-9.snap")
    assert each.path_of(manifest).read_bytes() == DATA
    assert source.closed
    each.build(7, ListSource(12, []))
    each.build(77, ListSource(9, []))
    each.delete_built(7, 12)
    assert sorted(path.name for path in each.built_dir.iterdir()) == ["7-12.snap", "77-9.snap"]
    each.delete_built(7, 0)
    assert sorted(path.name for path in each.built_dir.iterdir()) == ["77-9.snap"]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    class Full(ListSource):
        def chunks(self, bytes_max: int) -> Iterator[bytes]:
            yield b"x"
            raise OSError(28, "No space left on device")

    each = files(tmp_path)
    source = Full(9, [])
    with pytest.raises(OSError, match="No space"):
        each.build(7, source)
    assert list(each.built_dir.iterdir()) == []
    assert source.closed


def test_a_build_that_dies_before_its_sync_is_cleaned_at_the_next_start(tmp_path: Path) -> None:
    points = ArmedFailpoints("consensus.before_snapshot_sync=error", ["consensus.before_snapshot_sync"])
    each = SnapshotFiles(tmp_path / "snapshots", tmp_path / "incoming", points)
    each.prepare([])
    with pytest.raises(FailpointError):
        each.build(7, ListSource(9, [b"x"]))
    assert [path.name for path in each.built_dir.iterdir()] == ["7-9.snap.part"]
    files(tmp_path)
    assert list(each.built_dir.iterdir()) == []


def test_a_received_file_is_fed_whole_or_not_at_all(tmp_path: Path) -> None:
    each = files(tmp_path)
    manifest = received(each, 7, 9)
    machine = ListMachine()
    sink = machine.restore()
    each.feed(manifest, sink)
    sink.commit(9, 1, machine.members())
    assert machine.rows == [b"one", b"two"]
    for data in (DATA[:-1], DATA + b"x", b"oNe\ntwo\n"):
        (each.incoming_dir / incoming_name(7, 9, manifest.sha256)).write_bytes(data)
        sink = machine.restore()
        with pytest.raises(SnapshotDamaged, match="is not what the log took over"):
            each.feed(manifest, sink)
        assert sink.aborted


def test_only_pending_files_survive_a_start_and_must_be_there(tmp_path: Path) -> None:
    each = files(tmp_path)
    keep = received(each, 7, 9)
    received(each, 7, 5)
    received(each, 8, 9)
    (each.incoming_dir / "7-9-x.snap.1.part").write_bytes(b"")
    (each.built_dir / "7-9.snap").write_bytes(b"")
    each.prepare([keep])
    assert [path.name for path in each.incoming_dir.iterdir()] == [incoming_name(7, 9, keep.sha256)]
    assert list(each.built_dir.iterdir()) == []
    each.delete_incoming(7, 8)
    each.delete_incoming(70, 9)
    assert len(list(each.incoming_dir.iterdir())) == 1
    each.delete_incoming(7, 9)
    assert list(each.incoming_dir.iterdir()) == []
    with pytest.raises(SnapshotDamaged, match=r"its file .* is gone"):
        each.prepare([keep])
    with pytest.raises(SnapshotDamaged, match="cannot be read"):
        each.feed(keep, ListMachine().restore())
