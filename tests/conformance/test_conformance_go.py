"""A grpc-go client writes and reads through the gateway, plain and with its compressors.

Armada's and Regatta's official clients send framed snappy by default; answers come in the encoding of the request.
That is the native transport's: grpcio knows no snappy, and answers plain.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conformance_support import Doors
from flotta_runtime.settings import Transport

MODULE = Path(__file__).parent / "go"
BUILD_SECONDS = 300
RUN_SECONDS = 100


@pytest.fixture(scope="session")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once. Go is among the tools the tests need (scripts/setup_test.sh)."""
    go = shutil.which("go")
    assert go is not None, "the tests need Go"
    binary = tmp_path_factory.mktemp("go") / "client"
    built = subprocess.run(
        [go, "build", "-o", str(binary), "."], cwd=MODULE, capture_output=True, text=True, timeout=BUILD_SECONDS
    )
    assert built.returncode == 0, built.stderr
    return binary


@pytest.mark.timeout(BUILD_SECONDS + RUN_SECONDS)
@pytest.mark.parametrize("compressor", ["identity", "gzip", "snappy"])
@pytest.mark.parametrize("value_bytes", [300, 1_000_000])
def test_a_go_client_is_served_in_its_own_encoding(
    doors: Doors, transport: Transport, go_client: Path, compressor: str, value_bytes: int
) -> None:
    keys = 12
    ran = subprocess.run(
        [
            str(go_client),
            f"-address={doors.gateway.address}",
            f"-compressor={compressor}",
            f"-keys={keys}",
            f"-value-bytes={value_bytes}",
        ],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    if transport == "grpcio" and compressor == "snappy":
        assert ran.returncode == 1 and "grpc-encoding" in ran.stderr, (ran.stdout, ran.stderr)
        return
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert seen["keys"] == keys
    # Small answers may come plain; the big values, which shrink, come as they were sent.
    if value_bytes > 100_000 and transport == "native":
        assert seen["encodings"].get(compressor, 0) >= keys, seen
    assert set(seen["encodings"]) <= {compressor, "identity"}
