from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from flotta_runtime.tls import TlsFiles
from storage_cluster import Cluster


@pytest.fixture
def transport() -> str:
    """What the nodes speak. Modules whose tests depend on it run with both."""
    return "native"


@pytest.fixture
def tls() -> TlsFiles | None:
    """What everybody in the cluster shows and trusts, if anything."""
    return None


@pytest.fixture
async def cluster(tmp_path: Path, transport: str, tls: TlsFiles | None) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path, transport, tls)
    try:
        yield made
    finally:
        await made.close()
