from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from storage_cluster import Cluster


@pytest.fixture
def transport() -> str:
    """What the nodes speak. Modules whose tests depend on it run with both."""
    return "native"


@pytest.fixture
async def cluster(tmp_path: Path, transport: str) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path, transport)
    try:
        yield made
    finally:
        await made.close()
