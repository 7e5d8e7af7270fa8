from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from coordinator_harness import Coordinators


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Coordinators]:
    cluster = Coordinators(tmp_path, 1)
    await cluster.start()
    yield cluster
    await cluster.close()


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Coordinators]:
    cluster = Coordinators(tmp_path, 3)
    await cluster.start()
    yield cluster
    await cluster.close()
