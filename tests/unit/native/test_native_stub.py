"""The stub promises what the module does: mypy's stubtest compares the two."""

import subprocess
import sys
from pathlib import Path

import flotta_native

# The wheel is a package that re-exports its extension module; only the package is the interface.
ALLOWED = r"flotta_native\.flotta_native"


def test_stub_matches_the_module(tmp_path: Path) -> None:
    allowlist = tmp_path / "allowlist"
    allowlist.write_text(ALLOWED + "\n")
    result = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "flotta_native", "--concise", "--allowlist", str(allowlist)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_installed_stub_is_the_one_in_the_tree() -> None:
    package = Path(flotta_native.__file__).parent
    tree = Path(__file__).parents[3] / "native" / "flotta_native.pyi"
    assert (package / "__init__.pyi").read_text() == tree.read_text()
    assert (package / "py.typed").exists()


def test_failpoints_are_named_as_documented() -> None:
    stub = (Path(flotta_native.__file__).parent / "__init__.pyi").read_text()
    assert len(set(flotta_native.FAILPOINTS)) == 13
    for name in flotta_native.FAILPOINTS:
        assert name in stub.split("FAILPOINTS: Final", 1)[1]
