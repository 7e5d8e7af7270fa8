from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from coordinator_harness import Coordinators


@pytest.fixture
def transport() -> str:
    """What the coordinators speak. Modules whose tests depend on it run with both."""
    return "native"


@pytest.fixture
async def one(tmp_path: Path, transport: str) -> AsyncIterator[Coordinators]:
    cluster = Coordinators(tmp_path, 1, transport=transport)
    await cluster.start()
    await cluster.leader()  # who asks at once may be told that there is none yet
    yield cluster
    await cluster.close()


@pytest.fixture
async def three(tmp_path: Path, transport: str) -> AsyncIterator[Coordinators]:
    cluster = Coordinators(tmp_path, 3, transport=transport)
    await cluster.start()
    await cluster.leader()  # who asks at once may be told that there is none yet
    yield cluster
    await cluster.close()
