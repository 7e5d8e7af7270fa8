"""A restore meets what clusters meet: a node that goes away in the middle, and an operator who changes his mind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from flotta import Entry, Put
from flotta.models import Get
from flotta_admin.copying import job, restore
from whole_cluster import WholeCluster, running, until

KEYS = [f"key/{n}" for n in range(600)]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there is a middle."""
    monkeypatch.setattr(restore, "BATCH_ROWS", 2)
    monkeypatch.setattr(job, "REPORT_EVERY_S", 0.05)


@asynccontextmanager
async def restoring(folder: Path) -> AsyncIterator[tuple[WholeCluster, dict[str, Any], list[Any]]]:
    """A cluster of three nodes into which rows are being loaded, the operation, and what the rows were."""
    backups = folder / "backups"
    async with running(folder / "old", nodes=1, backup_dir=backups) as old:
        await old.create(6, 1)
        await old.client.batch([Put(key, f"value of {key}") for key in KEYS])
        saved = await old.client.batch([Get(key) for key in KEYS])
        assert all(isinstance(entry, Entry) for entry in saved)
        over = await old.ended(await old.order("/admin/backups", directory="b"))
        assert over["status"] == "DONE", over
    async with running(folder / "new", nodes=3, backup_dir=backups) as new:
        begun = await new.order("/admin/restores", directory="b", num_shards=3, replication_factor=3)

        async def loading() -> bool:
            shards = (await new.web.get("/admin/shards")).json()
            if len(shards) < 3 or not all(one["leader"] for one in shards):
                return False
            return any(isinstance(entry, Entry) for entry in await new.client.batch([Get(key) for key in KEYS]))

        await until(loading)
        yield new, begun, saved


async def test_a_leader_that_goes_away_in_the_middle_costs_nothing(tmp_path: Path) -> None:
    async with restoring(tmp_path) as (cluster, begun, saved):
        leader = (await cluster.web.get("/admin/shards/shard-0")).json()["leader"]
        assert (await cluster.web.get(f"/admin/ops/{begun['id']}")).json()["status"] == "RUNNING"
        await cluster.nodes.pop(leader).stop()
        over = await cluster.ended(begun)
        assert (over["status"], over["steps_done"]) == ("DONE", 12), over
        assert await cluster.client.batch([Get(key) for key in KEYS]) == saved


async def test_a_restore_that_is_cancelled_in_the_middle_stops_and_is_not_begun_over(tmp_path: Path) -> None:
    async with restoring(tmp_path) as (cluster, begun, saved):
        assert (await cluster.web.post(f"/admin/ops/{begun['id']}/cancel")).status_code == 200
        assert (await cluster.web.post(f"/admin/ops/{begun['id']}/cancel")).status_code == 412
        assert (await cluster.ended(begun))["status"] == "CANCELLED"
        again = await cluster.web.post("/admin/restores", json={"directory": "b"})
        assert (again.status_code, "has shards already" in again.text) == (412, True)
        found = await cluster.client.batch([Get(key) for key in KEYS])
        assert all(entry is None or entry in saved for entry in found)


async def test_a_client_that_writes_a_key_first_keeps_it_and_the_restore_says_so(tmp_path: Path) -> None:
    async with restoring(tmp_path) as (cluster, begun, _):
        found = await cluster.client.batch([Get(key) for key in KEYS])
        missing = [key for key, entry in zip(KEYS, found, strict=True) if entry is None]
        mine = await cluster.client.batch([Put(key, "mine", if_absent=True) for key in missing])
        kept = [key for key, version in zip(missing, mine, strict=True) if isinstance(version, int)]
        assert kept, "every row was loaded before the client came"
        over = await cluster.ended(begun)
        assert over["status"] == "FAILED", over
        assert "has another row already" in over["outcome"]
        assert over["outcome"].endswith("wipe it before you restore again")
        entries = await cluster.client.batch([Get(key) for key in kept])
        assert {entry.value for entry in entries if isinstance(entry, Entry)} == {b"mine"}
