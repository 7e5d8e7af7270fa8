from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from storage_cluster import Cluster


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        await made.close()
