"""Sessions over replicas that lag: plain weak reads miss what was just written, those of a session never do."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from flotta import AsyncClient, Consistency, Guarantee
from flotta_gateway.app import Gateway, start
from flotta_gateway.settings import GatewaySettings
from storage_cluster import TOKEN, Cluster

NODES = ["node-1", "node-2", "node-3"]
WEAK = Consistency.EVENTUAL
WRITES = 40


@pytest.fixture
async def gateway(cluster: Cluster) -> AsyncIterator[Gateway]:
    """Before three nodes whose followers apply a second late."""
    await cluster.start_coordinator()
    for node_id in NODES:
        await cluster.start(node_id, apply_delay_ms=1_000)
    await cluster.create_shards(2, NODES)
    made = await start(
        GatewaySettings(
            listen="127.0.0.1:0",
            http_listen="127.0.0.1:0",
            internal_token=TOKEN,
            coordinators=(f"127.0.0.1:{cluster.coordinator_port}",),
            stop_timeout_ms=500,
        )
    )
    yield made
    await made.stop()


async def check(client: AsyncClient) -> None:
    session = client.session()
    missed = 0
    guarantees: set[Guarantee] = set()
    for number in range(WRITES):
        key, value = b"key-%d" % (number % 4), b"%d" % number
        await session.put(key, value)
        plain = await client.get(key, consistency=WEAK)
        missed += plain is None or plain.value != value
        for _ in range(3):
            entry = await session.get(key)
            assert entry is not None and entry.value == value, "the session does not see its own write"
            guarantees.add(entry.guarantee)
    assert guarantees == {Guarantee.SESSION}
    assert missed, f"of {WRITES} plain reads of lagging replicas none missed anything: nothing was tested"


async def test_a_session_sees_its_writes_on_any_replica(cluster: Cluster, gateway: Gateway) -> None:
    async with AsyncClient(f"127.0.0.1:{gateway.port}", timeout_ms=60_000) as client:
        await check(client)
    coordinator = f"127.0.0.1:{cluster.coordinator_port}"
    async with AsyncClient.smart(coordinator, internal_token=TOKEN, timeout_ms=60_000) as client:
        await check(client)


async def test_a_session_outlives_a_fail_over(cluster: Cluster, gateway: Gateway) -> None:
    async with AsyncClient(f"127.0.0.1:{gateway.port}", timeout_ms=60_000) as client:
        session = client.session()
        keys = [b"key-%d" % number for number in range(8)]
        for key in keys:
            await session.put(key, b"before")
        await cluster.stop(cluster.leader("shard-0"))
        for key in keys:
            entry = await session.get(key)
            assert entry is not None and entry.value == b"before"
            await session.put(key, b"after")
            entry = await session.get(key)
            assert entry is not None and entry.value == b"after"
