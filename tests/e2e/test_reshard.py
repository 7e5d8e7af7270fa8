"""A real cluster goes from 6 shards to 4 under load, and to 6 again while the coordinator that leads is killed: each
time all shards divide into 12, and these grow together.

Chains of conditional writes show that nothing is lost and nothing is done twice: each put names the version before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from flotta import AsyncClient, Entry, FlottaError, Put
from flotta.models import Get
from load import PATIENT_S, Load, acks_grow, under_load
from process_cluster import ProcessCluster, replicas_equal, running, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
ROWS = {f"row/{n}": f"value {n} " + "x" * (n % 200) for n in range(3_000)}
EXPIRING = set(list(ROWS)[::7])
BATCH = 1_000


class Chains:
    """Writers that each count up under one key, and stop at the first call that fails."""

    def __init__(self) -> None:
        self.last: dict[str, tuple[int, int]] = {}
        self.failures: list[str] = []
        self.longest_s = 0.0

    async def run(self, client: AsyncClient, key: str, stopping: asyncio.Event) -> None:
        number, version = 0, 0
        while not stopping.is_set():
            began = time.monotonic()
            try:
                version = await client.put(key, str(number + 1), if_version=version, if_absent=not version)
            except FlottaError as error:
                self.failures.append(f"{key} at {number + 1}: {type(error).__name__}: {error}")
                return
            number += 1
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.last[key] = (number, version)


@asynccontextmanager
async def chains(cluster: ProcessCluster) -> AsyncIterator[Chains]:
    made, stopping = Chains(), asyncio.Event()
    coordinators = [f"127.0.0.1:{cluster.port(name)}" for name in cluster.insiders() if name.startswith("coord")]
    smart = AsyncClient.smart(*coordinators, internal_token=cluster.internal_token(), timeout_ms=20_000)
    plain = AsyncClient(cluster.gateway_address(1), timeout_ms=20_000)
    async with smart, plain, asyncio.TaskGroup() as tasks:
        for number in range(8):
            client, name = (smart, "smart") if number % 2 else (plain, "plain")
            tasks.create_task(made.run(client, f"{name}/{number}", stopping))
        try:
            yield made
        finally:
            stopping.set()


def batched() -> Iterable[list[str]]:
    names = list(ROWS)
    return (names[start : start + BATCH] for start in range(0, len(names), BATCH))


async def scans(client: AsyncClient, stopping: asyncio.Event) -> int:
    """One whole scan after the other, each of which must have every row once; how many there were."""
    done = 0
    while not stopping.is_set():
        keys = [entry.key async for entry in client.scan("row/", keys_only=True)]
        assert sorted(key.decode() for key in keys) == sorted(ROWS)
        done += 1
    return done


async def check_rows(client: AsyncClient, versions: dict[str, int]) -> None:
    for keys in batched():
        for key, entry in zip(keys, await client.batch([Get(key) for key in keys], timeout_ms=60_000), strict=True):
            assert isinstance(entry, Entry), (key, entry)
            assert (entry.value.decode(), entry.version) == (ROWS[key], versions[key])
            assert bool(entry.expire_time_ms) is (key in EXPIRING)


async def fill(client: AsyncClient) -> dict[str, int]:
    versions: dict[str, int] = {}
    for keys in batched():
        puts = [Put(key, ROWS[key], ttl_ms=86_400_000 if key in EXPIRING else 0) for key in keys]
        for key, version in zip(keys, await client.batch(puts, timeout_ms=60_000), strict=True):
            assert isinstance(version, int), (key, version)
            versions[key] = version
    return versions


async def ended(cluster: ProcessCluster, order: tuple[int, Any]) -> dict[str, Any]:
    status, body = order
    assert status == 200, body
    began, number = time.monotonic(), body["operation"]["id"]

    async def is_over() -> dict[str, Any] | None:
        status, now = await cluster.admin("GET", f"/admin/ops/{number}")
        return now if status == 200 and now["status"] != "RUNNING" else None

    found: dict[str, Any] = await until(is_over, f"operation {number} ends", 90)
    print(f"{found['text']}: {found['status']} after {time.monotonic() - began:.1f} s")
    assert (found["status"], found["steps_done"]) == ("DONE", found["steps_total"]), found
    return found


async def told(cluster: ProcessCluster) -> list[str]:
    status, body = await cluster.admin("GET", "/admin/decisions?limit=1000")
    assert status == 200, body
    return [
        one["reason"] for one in body["decisions"] if one["kind"].startswith("shards-") or one["kind"] == "shard-count"
    ]


async def change(cluster: ProcessCluster, number: int) -> tuple[int, Any]:
    return await cluster.admin("POST", "/admin/tables/default/shards", {"num_shards": number})


async def test_any_number_of_shards_under_load_and_again_while_a_coordinator_is_killed(tmp_path: Path) -> None:
    async with running(tmp_path, nodes=3, shards=6, gateways=2) as cluster:
        addresses = [cluster.gateway_address(1), cluster.gateway_address(2)]
        load = Load(addresses, [b"key %d" % n for n in range(12)], timeout_s=PATIENT_S)
        async with AsyncClient(addresses[0], timeout_ms=30_000) as client, chains(cluster) as made:
            versions = await fill(client)
            stopping = asyncio.Event()
            scanning = asyncio.create_task(scans(client, stopping))
            async with under_load(load):
                await acks_grow(load, load.keys)
                status, refused = await change(cluster, 4095)
                assert status == 412 and "goes over 8190, more than there can be" in refused["message"]
                over = await ended(cluster, await change(cluster, 4))
                assert over["outcome"] == "default has 4 shards, it had 6"
                await acks_grow(load, load.keys)
            stopping.set()
            assert await scanning > 0
            assert (load.failures, made.failures) == ([], [])
            print(f"the longest write of a chain took {made.longest_s:.2f} s; {load.total()} acknowledged beside them")
            assert sorted(await cluster.shards()) == [f"shard-{index}" for index in range(4)]
            await check_rows(client, versions)

            order = await change(cluster, 6)
            cluster.kill(await cluster.coordinator_leader())
            await ended(cluster, order)
            await check_rows(client, versions)
            assert made.failures == []
            cluster.shard_count = len(await cluster.shards())
            assert cluster.shard_count == 6
            for key, (number, version) in made.last.items():
                assert number > 10, "every chain has grown"
                entry = await client.get(key)
                assert entry is not None and entry.version >= version
        await load.verify(addresses[1])
        for sentence in await told(cluster):
            print(sentence)
        held = await replicas_equal(cluster)
        keys = {name: {found[1] for found in one.values()} for name, one in held.items()}
        assert all(len(found) == 1 for found in keys.values()), keys
        total = sum(found.pop() for found in keys.values())
        assert total == len(ROWS) + len(load.keys) + len(made.last)
