"""A backup on disk: what was written comes back, and whatever was done to it since is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from flotta_admin.copying import files
from flotta_admin.copying.files import BackupDamaged
from flotta_admin.core.manifest import MANIFEST_FILE, Manifest, ShardFile, decode, encode
from flotta_runtime.errors import NotFound
from flotta_runtime.hashing import shard_index
from flotta_runtime.saved_rows import SavedRow, encode_row

SHARDS = 3
ROWS = [SavedRow(b"key-%d" % n, b"v" * (n * 31 % 5_000), n + 1, 5, 10 + n, 0) for n in range(200)]


def of_shard(index: int) -> list[SavedRow]:
    return [row for row in ROWS if shard_index(row.key, SHARDS) == index]


def write(directory: Path) -> Manifest:
    growing = files.begin(directory)
    shards = []
    for index in range(SHARDS):
        rows = of_shard(index)
        file = files.RowFile(growing / f"shard-{index:05}.rows")
        file.write(b"thrown away")
        file.begin_again()
        for row in rows:
            file.write(encode_row(row))
        shards.append(
            ShardFile(
                shard_id=f"shard-{index}",
                shard_index=index,
                shard_count=SHARDS,
                epoch=1,
                applied_index=500,
                revision=500,
                group_time_ms=1_000,
                rows=len(rows),
                sha256=file.finish(),
                file_bytes=file.file_bytes,
            )
        )
    manifest = Manifest(
        cluster_id="c",
        table="default",
        map_version=9,
        num_shards=SHARDS,
        replication_factor=3,
        begun_ms=1,
        ended_ms=2,
        shards=shards,
    )
    files.complete(directory, manifest)
    return manifest


def read(directory: Path) -> list[SavedRow]:
    manifest = files.read_manifest(directory)
    return [row for shard in manifest.shards for rows in files.read_rows(directory, shard) for row in rows]


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    write(tmp_path / "b")
    return tmp_path / "b"


def test_what_was_written_comes_back(backup: Path) -> None:
    manifest = files.read_manifest(backup)
    assert sorted(read(backup)) == sorted(ROWS)
    assert (manifest.rows, manifest.revision, manifest.group_time_ms) == (len(ROWS), 500, 1_000)
    assert manifest.file_bytes == sum(path.stat().st_size for path in backup.glob("*.rows"))
    assert not files.partial(backup).exists()


def test_what_is_not_complete_is_not_there(tmp_path: Path) -> None:
    growing = files.begin(tmp_path / "b")
    files.RowFile(growing / "shard-00000.rows").finish()
    with pytest.raises(NotFound, match="no whole backup"):
        files.read_manifest(tmp_path / "b")
    assert list(files.begin(tmp_path / "b").iterdir()) == []
    files.remove(tmp_path / "b", completed=False)
    assert list(tmp_path.iterdir()) == []


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def test_any_bit_of_any_file_counts(backup: Path) -> None:
    for path in sorted(backup.iterdir()):
        whole = path.read_bytes()
        for at in (*range(80), len(whole) // 2, len(whole) - 2):
            flip(path, at)
            with pytest.raises(BackupDamaged):
                read(backup)
            path.write_bytes(whole)
    assert len(read(backup)) == len(ROWS)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize("harm", [cut, grow, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_file_that_is_cut_longer_gone_or_empty_is_damage(backup: Path, harm: Callable[[Path], object]) -> None:
    harm(backup / "shard-00001.rows")
    with pytest.raises(BackupDamaged, match=r"shard-00001\.rows"):
        read(backup)


def test_files_that_changed_places_are_damage(backup: Path) -> None:
    first, second = backup / "shard-00000.rows", backup / "shard-00001.rows"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(BackupDamaged):
        read(backup)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"num_shards": 4}, "each of its 4 shards once"),
        ({"shards": []}, "each of its 3 shards once"),
        ({"rows": 1}, "rows: Extra inputs"),
        ({"map_version": -1}, "map_version: "),
        ({"replication_factor": "3"}, "replication_factor: "),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(backup: Path, change: dict[str, object], complaint: str) -> None:
    """Also with a checksum that is right."""
    content = {**files.read_manifest(backup).model_dump(), **change}

    class Forged:
        def model_dump(self) -> dict[str, object]:
            return content

    forged: object = Forged()
    (backup / MANIFEST_FILE).write_bytes(encode(forged))  # type: ignore[arg-type]
    with pytest.raises(BackupDamaged, match=complaint):
        files.read_manifest(backup)


def test_a_later_format_and_other_documents_are_told_apart(backup: Path) -> None:
    document = json.loads((backup / MANIFEST_FILE).read_bytes())
    document["flotta_backup"] = 2
    for text, complaint in (
        (json.dumps(document), "its format is 2; this version reads 1"),
        ("{}", "not of a Flotta backup"),
        ("[" * 100_000, "not JSON"),
        ("nonsense", "not JSON"),
    ):
        with pytest.raises(ValueError, match=complaint):
            decode(text.encode())
