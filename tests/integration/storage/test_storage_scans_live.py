"""A scan over real nodes goes on where it was after a fail-over and after a move, and sees what a follower has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from flotta import AsyncClient, Consistency, FlottaError, Guarantee, Put
from flotta_gateway.app import Gateway, start
from flotta_gateway.settings import GatewaySettings
from storage_cluster import TOKEN, Cluster

NODES = ["node-1", "node-2", "node-3", "node-4"]
ROWS = {b"row:%04d" % number: b"v%d" % number for number in range(400)}


@pytest.fixture
async def gateway(cluster: Cluster) -> AsyncIterator[Gateway]:
    await cluster.open(4)
    await cluster.create_shards(3, NODES[:3])
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


async def test_a_scan_outlives_its_leaders_and_their_replicas(cluster: Cluster, gateway: Gateway) -> None:
    async with AsyncClient(f"127.0.0.1:{gateway.port}", timeout_ms=60_000) as client:
        written = await client.batch([Put(key, value) for key, value in ROWS.items()])
        assert not [one for one in written if isinstance(one, FlottaError)]
        pages = client.scan("row:", page_size=40).pages()
        found = list((await anext(pages)).entries)

        stopped = cluster.leader("shard-0")
        await cluster.stop(stopped)
        found += (await anext(pages)).entries

        await cluster.start(stopped)
        moved = [node for node in NODES if node != cluster.leader("shard-1")]
        await cluster.set_targets("shard-1", moved)
        await cluster.until(lambda: cluster.voters("shard-1") == set(moved), 60)
        page = await anext(pages)
        found += page.entries
        assert {entry.guarantee for entry in page.entries} == {Guarantee.LINEARIZABLE}

        rest = client.scan("row:", token=page.token, page_size=150)
        found += [entry async for entry in rest]
        assert [(entry.key, entry.value) for entry in found] == list(ROWS.items())

        assert await client.count("row:") == len(ROWS)
        async with asyncio.timeout(60):  # a replica that is new, or was away, may be behind
            while True:
                weak = [entry async for entry in client.scan("row:", consistency=Consistency.EVENTUAL)]
                assert {(entry.key, entry.value) for entry in weak} <= set(ROWS.items())
                if len(weak) == len(ROWS):
                    break
        assert {entry.guarantee for entry in weak} == {Guarantee.ANY}
