"""Is the simulator any good? Plant a known bug, run ordinary random seeds, count how many it takes to find it.

Each bug is a source patch under `planted/`, applied to a copy of the tree under build/planted; a patch that touches
Rust makes a new native module there, with a target folder that all patches share. Fails loudly if a patch no longer
applies, if a bug is not found within its bound, or if a check that is not the tree's own fault fires without a bug.
The first lines of a patch say what it breaks: `# what` and, if it needs more than the usual, `# seeds: n`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATCHES = HERE / "planted"
CLUSTER_PATCHES = HERE / "planted_cluster"
PARTS = ("libs", "services", "native", "tests/simulation")
PACKAGES = (
    "libs/proto", "libs/consensus", "libs/embedded", "libs/runtime", "services/storage", "services/coordinator",
    "services/gateway",
)  # fmt: skip
SEEDS_MAX = 150
QUICK_BUILD = {
    # The same code with fewer optimisations: what counts here is the time from a patch to its module.
    "CARGO_PROFILE_RELEASE_LTO": "off",
    "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1",
    "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
}


@dataclass(frozen=True, slots=True)
class Patch:
    path: Path
    what: str
    seeds_max: int

    @property
    def native(self) -> bool:
        return "+++ b/native/" in self.path.read_text()


@dataclass(frozen=True, slots=True)
class Found:
    """The seed that found a bug, after how many, and how it showed; `seeds` 0: it was not found."""

    seeds: int
    how: str


def read_patches(names: list[str], folder: Path | None = None) -> list[Patch]:
    patches = []
    for path in sorted((folder or PATCHES).glob("*.patch")):
        if names and path.stem not in names:
            continue
        head = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
        if not head:
            raise SystemExit(f"{path.name} does not say in its first line what it breaks")
        limits = [int(line.removeprefix("seeds:")) for line in head if line.startswith("seeds:")]
        patches.append(Patch(path, head[0], limits[0] if limits else SEEDS_MAX))
    if not patches or (names and len(patches) != len(names)):
        raise SystemExit(f"there are no such patches: {names or PATCHES}")
    return patches


class Garden:
    """A copy of the tree to plant bugs in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = folder / "tree"
        self.site = folder / "site"
        self._module_is_clean = False

    def dig(self, *, native: bool = True) -> None:
        """A fresh copy; the target folder of earlier runs stays, since a cold build takes minutes. Without `native`
        the installed module serves, and nothing is built."""
        shutil.rmtree(self.tree, ignore_errors=True)
        ignore = shutil.ignore_patterns("target", "__pycache__", ".mypy_cache", ".ruff_cache")
        for part in PARTS:
            shutil.copytree(ROOT / part, self.tree / part, ignore=ignore, copy_function=shutil.copy)
        if native:
            self.build()
        self._module_is_clean = True

    def build(self) -> None:
        """The tree's native module, into `site`."""
        wheels = self.folder / "wheels"
        shutil.rmtree(wheels, ignore_errors=True)
        command = [
            str(Path(sys.executable).with_name("maturin")), "build", "--quiet", "--release", "--locked",
            "--manifest-path", str(self.tree / "native/Cargo.toml"), "--interpreter", sys.executable,
            "--out", str(wheels),
        ]  # fmt: skip
        environment = {**os.environ, **QUICK_BUILD, "CARGO_TARGET_DIR": str(self.folder / "target")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the native module does not build:\n{done.stderr[-4000:]}")
        shutil.rmtree(self.site, ignore_errors=True)
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.site)

    def plant(self, patch: Patch) -> None:
        self._patch(patch, [])
        if patch.native:
            self.build()
            self._module_is_clean = False

    def weed(self, patch: Patch) -> None:
        self._patch(patch, ["--reverse"])

    def clean_module(self) -> None:
        """Before a bug that is all Python: the module must not hold the last one's."""
        if not self._module_is_clean:
            self.build()
            self._module_is_clean = True

    def _patch(self, patch: Patch, flags: list[str]) -> None:
        command = ["patch", "--strip=1", "--forward", "--fuzz=0", "--no-backup-if-mismatch", *flags]
        if flags:
            command.remove("--forward")
        done = subprocess.run(command, cwd=self.tree, input=patch.path.read_text(), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{patch.path.name} no longer applies; make it anew:\n{done.stdout}{done.stderr}")

    def run(self, seeds: int, base: int, flags: Sequence[str]) -> Found:
        """Ordinary random seeds until one fails."""
        paths = [self.site, *(self.tree / package for package in PACKAGES)]
        command = [
            sys.executable, str(self.tree / "tests/simulation/run.py"), "--no-corpus", "--first-failure",
            "--seeds", str(seeds), "--base", str(base), *flags,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("seed ")]
        if not lines or done.returncode not in (0, 1):
            raise SystemExit(f"the simulator did not run:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        verdict = lines[-1].partition(": ")[2]
        return Found(0, "") if verdict.startswith("ok ") else Found(len(lines), verdict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="patches to plant, without .patch (default: all)")
    parser.add_argument("--base", type=int, help="the first seed (default: from the time of day)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/planted", help="where to work")
    parser.add_argument("--cluster", action="store_true", help="the bugs for the simulator of whole clusters")
    options = parser.parse_args()
    base = options.base if options.base is not None else int(time.time() * 1_000) % (1 << 40)
    patches = sorted(
        read_patches(options.names, CLUSTER_PATCHES if options.cluster else PATCHES), key=lambda patch: patch.native
    )
    garden = Garden(options.folder.resolve())
    print(f"copying the tree; seeds from {base} on", flush=True)
    garden.dig(native=any(patch.native for patch in patches))
    missed = []
    for patch in patches:
        began = time.monotonic()
        garden.plant(patch)
        if not patch.native:
            garden.clean_module()
        found = garden.run(patch.seeds_max, base, ["--cluster"] if options.cluster else [])
        garden.weed(patch)
        took = f"{time.monotonic() - began:.0f} s"
        if found.seeds:
            print(f"{patch.path.stem}: found by seed number {found.seeds} ({took})", flush=True)
            print(f"    {patch.what}\n    {found.how[:200]}", flush=True)
        else:
            missed.append(patch.path.stem)
            print(f"{patch.path.stem}: NOT FOUND in {patch.seeds_max} seeds ({took})", flush=True)
    print(f"{len(patches) - len(missed)} of {len(patches)} planted bugs found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
