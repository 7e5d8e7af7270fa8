"""What `pip install 'flotta[embedded]'` brings is enough for the replicated core and the database over it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys

class Absent:
    names = {"pydantic", "pydantic_settings", "structlog", "uvloop", "prometheus_client", "uvicorn", "fastapi",
             "grpc_health", "grpc_reflection", "tenacity", "httptools"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ImportError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
names = []
for package in ("flotta_consensus", "flotta_embedded"):
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(found.name)
        names.append(found.name)
print(*names)
"""


def test_the_packages_of_servers_are_not_needed() -> None:
    imported = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, timeout=60, text=True)
    assert imported.returncode == 0, imported.stderr
    assert {"flotta_consensus.aio", "flotta_consensus.native_transport"} <= {*imported.stdout.split()}
