"""The planted bugs still fit the tree. Whether the simulators find them all takes minutes: `make sim-planted` and
`make sim-cluster-planted`. The two that show at once are found here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import planted
import pytest

PATCHES = planted.read_patches([])
CLUSTER_PATCHES = planted.read_patches([], planted.CLUSTER_PATCHES)


@pytest.mark.parametrize("patch", [*PATCHES, *CLUSTER_PATCHES], ids=lambda patch: patch.path.stem)
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
        "kept-back-is-overtaken",
    }

    assert {patch.path.stem for patch in CLUSTER_PATCHES} >= {
        "two-replicas-on-one-node",
        "move-without-epoch",
        "retry-unknown-writes",
        "quorum-of-half",
    }
    assert not any(patch.native for patch in CLUSTER_PATCHES)


@pytest.mark.timeout(240)
def test_bugs_of_a_cluster_are_found(tmp_path: Path) -> None:
    garden = planted.Garden(tmp_path)
    garden.dig(native=False)
    for name in ("two-replicas-on-one-node", "move-without-epoch"):
        (patch,) = planted.read_patches([name], planted.CLUSTER_PATCHES)
        garden.plant(patch)
        assert garden.run(12, 1, ["--cluster"]).seeds, f"{name} was not found"
        garden.weed(patch)


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
