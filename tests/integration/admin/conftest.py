"""Fixtures: three fake coordinators, an admin service over them, a client with the key."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from admin_support import Cluster, admin, client, coordinators


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with coordinators() as made:
        yield made


@pytest.fixture
async def web(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    async with admin(cluster.addresses) as service, client(service) as made:
        yield made
