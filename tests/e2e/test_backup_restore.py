"""A real cluster of 3 nodes and 4 shards is backed up under load, wiped, and restored into 5 nodes and 16 shards."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flotta import AsyncClient, Entry, Put
from flotta.models import Get
from load import PATIENT_S, Load, acks_grow, under_load
from process_cluster import ProcessCluster, replicas_equal, running, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]
KEYS = [f"user/{n}" for n in range(100_000)]
EXPIRING = set(KEYS[::50])
BATCH = 1_000


def value(key: str, number: int) -> str:
    return f"{key} has " + "x" * (number % 97)


async def fill(client: AsyncClient) -> None:
    for start in range(0, len(KEYS), BATCH):
        puts = [
            Put(key, value(key, number), ttl_ms=86_400_000 if key in EXPIRING else 0)
            for number, key in enumerate(KEYS[start : start + BATCH])
        ]
        results = await client.batch(puts, timeout_ms=30_000)
        assert all(isinstance(result, int) for result in results), results[:3]


async def entries(client: AsyncClient, keys: Iterable[str]) -> dict[str, Entry]:
    wanted = list(keys)
    found: dict[str, Entry] = {}
    for start in range(0, len(wanted), BATCH):
        some = wanted[start : start + BATCH]
        for key, entry in zip(some, await client.batch([Get(key) for key in some], timeout_ms=30_000), strict=True):
            assert isinstance(entry, Entry), (key, entry)
            found[key] = entry
    return found


async def ended(cluster: ProcessCluster, order: tuple[int, Any]) -> dict[str, Any]:
    status, body = order
    assert status == 200, body
    number = body["operation"]["id"]
    steps: set[int] = set()

    async def is_over() -> dict[str, Any] | None:
        status, now = await cluster.admin("GET", f"/admin/ops/{number}")
        if status != 200:
            return None
        steps.add(now["steps_done"])
        return None if now["status"] == "RUNNING" else now

    began = time.monotonic()
    found: dict[str, Any] = await until(is_over, f"operation {number} ends", 240)
    print(f"{found['text']}: {found['status']} after {time.monotonic() - began:.1f} s, {found['outcome']}, {steps}")
    return found


async def test_a_hundred_thousand_keys_come_back_equal_in_a_cluster_of_another_size(tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    place = {"FLOTTA_ADMIN_BACKUP_DIR": str(backups)}
    async with running(tmp_path / "old", nodes=3, shards=4, settings=place) as old:
        async with AsyncClient(old.gateway_address(1), timeout_ms=30_000) as client:
            await fill(client)
            saved = await entries(client, KEYS)
        addresses = [old.gateway_address(1), old.gateway_address(2)]
        load = Load(addresses, [b"hot %d" % n for n in range(8)], timeout_s=PATIENT_S)
        async with under_load(load):
            await acks_grow(load, load.keys)
            before = {key: record.acknowledged for key, record in load.records.items()}
            over = await ended(old, await old.admin("POST", "/admin/backups", {"directory": "whole"}))
            assert (over["status"], over["steps_done"], over["steps_total"]) == ("DONE", 4, 4), over
            await acks_grow(load, load.keys)
        assert load.failures == []
        print(f"{load.total()} writes were acknowledged meanwhile")
    await asyncio.to_thread(shutil.rmtree, tmp_path / "old")
    new = ProcessCluster(tmp_path / "new", nodes=5, shards=16, settings=place)
    try:
        await new.start()

        async def restoring() -> tuple[int, Any] | None:
            sizes = {"num_shards": 16, "replication_factor": 3}
            answer = await new.admin("POST", "/admin/restores", {"directory": "whole", **sizes})
            return answer if answer[0] == 200 else None  # not before all nodes have been heard

        async def all_heard() -> bool:
            _, nodes = await new.admin("GET", "/admin/nodes")
            return len(nodes) == 5 and all(node["status"] == "ALIVE" for node in nodes)

        await until(all_heard, "five nodes are ALIVE")
        over = await ended(new, await until(restoring, "a restore has begun"))
        assert (over["status"], over["steps_done"], over["steps_total"]) == ("DONE", 8, 8), over
        shards = await new.shards()
        assert len(shards) == 16
        assert {len(one["replicas"]) for one in shards.values()} == {3}
        assert {node for one in shards.values() for node in one["replicas"]} == {f"node-{n}" for n in range(1, 6)}
        async with AsyncClient(new.gateway_address(1), timeout_ms=30_000) as client:
            assert await entries(client, KEYS) == saved
            hot = await entries(client, [key.decode() for key in before])
            for key, least in before.items():
                record = load.records[key]
                assert least <= int(hot[key.decode()].value) <= max(record.acknowledged, *record.maybe, 0), key
            newest = max(entry.version for entry in (*saved.values(), *hot.values()))
            assert await client.put(KEYS[0], "new", if_version=saved[KEYS[0]].version) > newest
        await replicas_equal(new)
    except BaseException:
        print(new.tails())
        raise
    finally:
        await new.end()
