"""Build hook: generates the protobuf stubs of `proto/` into `libs/proto/flotta_proto`.

Each contract `proto/<family>/<name>.proto` becomes `flotta_proto.<family>.<name>_pb2` (+ `_grpc`, + `.pyi`).
Stubs are never edited and never committed; a build or an editable install makes them anew.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
PROTO = ROOT / "proto"
OUT = ROOT / "libs" / "proto" / "flotta_proto"
PACKAGE = "flotta_proto"


def generate() -> None:
    """Compile every contract; raises RuntimeError with protoc's words when one is wrong."""
    from importlib import resources

    from grpc_tools import protoc

    staging = ROOT / "build" / "proto"
    shutil.rmtree(staging, ignore_errors=True)
    sources = sorted(PROTO.rglob("*.proto"))
    if not sources:
        raise RuntimeError(f"no contracts found under {PROTO}")
    # Staged below the package's own name: imports in the generated code are then `flotta_proto.…`.
    for source in sources:
        target = staging / PACKAGE / source.relative_to(PROTO)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    out = staging / "out"
    out.mkdir()
    well_known = str(resources.files("grpc_tools") / "_proto")
    arguments = [
        "protoc",
        f"-I{staging}",
        f"-I{well_known}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).parent / 'protoc-gen-mypy_grpc'}",
        *([f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}"] if _has_mypy_plugin() else []),
        *[str(staging / PACKAGE / source.relative_to(PROTO)) for source in sources],
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc refused a contract; see the message above")
    for old in [*OUT.rglob("*_pb2*.py"), *OUT.rglob("*_pb2*.pyi")]:
        old.unlink()
    for made in sorted((out / PACKAGE).rglob("*.py*")):
        target = OUT / made.relative_to(out / PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, target)
    for folder in {path.parent for path in OUT.rglob("*_pb2.py")} | {OUT}:
        marker = folder / "__init__.py"
        if not marker.exists():
            marker.write_text('"""Generated from proto/ by the build; never edited."""\n')
    (OUT / "py.typed").touch()


def _has_mypy_plugin() -> bool:
    return (Path(sys.executable).parent / "protoc-gen-mypy").exists()


class CustomBuildHook(BuildHookInterface[Any]):
    """Runs before a wheel or an editable install is assembled."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        generate()


if __name__ == "__main__":
    generate()
    print(f"stubs written to {OUT.relative_to(ROOT)}")
