"""A pause that lasts longer than it was to, as on a busy machine, leaves no time for another attempt: what is known
then is told, and not a doubt that nothing but the last moment made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import flotta
import pytest
from fake_cluster import FakeCluster
from fake_gateway import FakeGateway
from fake_node import TOKEN
from flotta import AsyncClient, Put
from flotta._async import calls, gateways, leaders, scans
from flotta_proto.flotta import storage_pb2 as sp
from flotta_proto.kvdb import gateway_pb2 as gw

BUSY = gw.Status(code=gw.Status.RATE_LIMITED, message="busy", retry_after_ms=30)
NOBODY = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def oversleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pause lasts until after the deadline."""

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds + 0.6)

    for module in (calls, gateways, leaders, scans):
        monkeypatch.setattr(module, "sleep", sleep)


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    made = await FakeGateway().start()
    yield made
    await made.kill()


async def test_overload_stays_overload(gateway: FakeGateway) -> None:
    async with AsyncClient(gateway.address, timeout_ms=500) as client:
        await client.get("k", timeout_ms=20_000)  # connected
        gateway.seen.clear()
        gateway.script = [BUSY] * 4
        with pytest.raises(flotta.RateLimitedError):
            await client.put("k", "v")
        with pytest.raises(flotta.RateLimitedError):
            await client.count()
        (result,) = await client.batch([Put("k", "v")])
        assert isinstance(result, flotta.RateLimitedError)
        assert len(gateway.seen) == 3


async def test_a_gateway_that_was_never_reached_leaves_no_doubt() -> None:
    async with AsyncClient(NOBODY, timeout_ms=500) as client:
        with pytest.raises(flotta.UnavailableError, match="no gateway can be reached"):
            await client.put("k", "v")


async def test_a_refusal_of_the_nodes_stays_one() -> None:
    cluster = await FakeCluster().start(nodes=3, shards=4, coordinators=1)
    try:
        address = cluster.coordinators[0].address
        async with AsyncClient.smart(address, internal_token=TOKEN, timeout_ms=10_000) as client:
            await client.put("k", "v")
            for node in cluster.nodes:
                node.fault = lambda op: sp.Reply(code=gw.Status.UNAVAILABLE, message="no quorum")
            with pytest.raises(flotta.UnavailableError, match="no quorum"):
                await client.put("k", "v", timeout_ms=500)
    finally:
        await cluster.stop()
