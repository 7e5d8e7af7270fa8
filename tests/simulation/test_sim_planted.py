"""The planted bugs still fit the tree. Whether the simulator finds them takes minutes: `make sim-planted`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import planted
import pytest

PATCHES = planted.read_patches([])


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.path.stem)
def test_every_patch_applies(patch: planted.Patch) -> None:
    done = subprocess.run(
        ["patch", "--strip=1", "--forward", "--fuzz=0", "--dry-run"],
        cwd=planted.ROOT,
        input=patch.path.read_text(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"make {patch.path.name} anew: {done.stdout}{done.stderr}"
    assert len(patch.what) > 20


def test_the_bugs_that_must_be_there_are() -> None:
    names = {patch.path.stem for patch in PATCHES}
    assert names >= {
        "skip-fsync-before-vote",
        "ack-before-quorum",
        "read-without-barrier",
        "apply-twice-after-restart",
        "accept-stale-epoch",
        "resurrect-overwritten-tail",
    }


def test_a_patch_says_what_it_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "PATCHES", tmp_path)
    with pytest.raises(SystemExit, match="no such patches"):
        planted.read_patches([])
    (tmp_path / "odd.patch").write_text("--- a/x\n+++ b/native/x\n")
    with pytest.raises(SystemExit, match="does not say"):
        planted.read_patches([])
    (tmp_path / "odd.patch").write_text("# Breaks it.\n# seeds: 7\n--- a/x\n+++ b/native/x\n")
    (patch,) = planted.read_patches(["odd"])
    assert (patch.what, patch.seeds_max, patch.native) == ("Breaks it.", 7, True)
