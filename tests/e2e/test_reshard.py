"""A real cluster's shards divide under load, 2 into 8, and then 8 into 16 while the coordinator that leads is killed.

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
from load import Load, acks_grow, under_load
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
        one["reason"] for one in body["decisions"] if one["kind"] in ("shard-count", "shard-divided", "shards-divided")
    ]


async def test_shards_divide_under_load_and_again_while_a_coordinator_is_killed(tmp_path: Path) -> None:
    async with running(tmp_path, nodes=3, shards=2, gateways=2) as cluster:
        addresses = [cluster.gateway_address(1), cluster.gateway_address(2)]
        load = Load(addresses, [b"key %d" % n for n in range(12)])
        async with AsyncClient(addresses[0], timeout_ms=30_000) as client, chains(cluster) as made:
            versions = await fill(client)
            async with under_load(load):
                await acks_grow(load, load.keys)
                status, refused = await cluster.admin("POST", "/admin/tables/default/shards", {"num_shards": 5})
                assert status == 412 and "can become a multiple, as 4, 6, 8, 10, not 5" in refused["message"]
                over = await ended(
                    cluster, await cluster.admin("POST", "/admin/tables/default/shards", {"num_shards": 8})
                )
                assert over["outcome"] == "default has 8 shards, it had 2"
                await acks_grow(load, load.keys)
            assert (load.failures, made.failures) == ([], [])
            print(f"the longest write of a chain took {made.longest_s:.2f} s; {load.total()} acknowledged beside them")
            assert len(await cluster.shards()) == 8
            await check_rows(client, versions)

            async def whole() -> bool:
                return (await cluster.admin("POST", "/admin/tables/default/shards", {"num_shards": 16}))[0] == 200

            await until(whole, "the children are whole, and may divide in their turn")
            jobs = (await cluster.admin("GET", "/admin/ops"))[1]["operations"]
            cluster.kill(await cluster.coordinator_leader())
            await ended(cluster, (200, {"operation": jobs[0]}))
            await check_rows(client, versions)
            assert made.failures == []
            cluster.shard_count = len(await cluster.shards())
            assert cluster.shard_count == 16
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
