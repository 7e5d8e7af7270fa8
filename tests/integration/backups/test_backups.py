"""Backups of whole clusters and restores into other ones, everything in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flotta import AlreadyExistsError, AsyncClient, Entry, Put, VersionMismatchError
from flotta.models import Delete, Get
from whole_cluster import WholeCluster, running, until


async def all_of(client: AsyncClient, keys: Iterable[str]) -> dict[str, Entry | None]:
    wanted = list(keys)
    found: dict[str, Entry | None] = {}
    for start in range(0, len(wanted), 500):
        some = wanted[start : start + 500]
        for key, entry in zip(some, await client.batch([Get(key) for key in some]), strict=True):
            assert entry is None or isinstance(entry, Entry), entry
            found[key] = entry
    return found


async def fill(client: AsyncClient, keys: list[str]) -> None:
    for start in range(0, len(keys), 250):
        puts = [Put(key, f"value of {key} " * (n % 50)) for n, key in enumerate(keys[start : start + 250])]
        assert all(isinstance(one, int) for one in await client.batch(puts))


KEYS = [f"key/{n}" for n in range(2_000)]
GONE = KEYS[::7]
SHORT = KEYS[1::7]


async def write_all(client: AsyncClient) -> None:
    await fill(client, KEYS)
    await fill(client, KEYS[::3])  # some have other versions, and were changed later than made
    await client.batch([Delete(key) for key in GONE])
    await client.batch([Put(key, "short", ttl_ms=3_600_000) for key in SHORT])
    await client.put("large", b"\x00\xff" * (1 << 20))


async def test_a_restored_cluster_of_another_size_is_equal_key_for_key(tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    async with running(tmp_path / "old", nodes=3, backup_dir=backups) as old:
        await old.create(4, 3)
        await write_all(old.client)
        before = await all_of(old.client, [*KEYS, "large"])
        over = await old.ended(await old.order("/admin/backups", directory="first"))
        assert (over["status"], over["steps_done"], over["steps_total"]) == ("DONE", 4, 4), over
        assert f"{sum(entry is not None for entry in before.values())} keys of 4 shards" in over["outcome"]
    async with running(tmp_path / "new", nodes=2, backup_dir=backups) as new:
        sizes = {"num_shards": 7, "replication_factor": 2}
        over = await new.ended(await new.order("/admin/restores", directory="first", **sizes))
        assert (over["status"], over["steps_done"], over["steps_total"]) == ("DONE", 8, 8), over
        shards = (await new.web.get("/admin/shards")).json()
        assert (len(shards), {len(one["replicas"]) for one in shards}) == (7, {2})
        assert await all_of(new.client, before) == before
        newest = max(entry.version for entry in before.values() if entry is not None)
        kept = next(key for key, entry in before.items() if entry is not None and key != "large")
        entry = before[kept]
        assert entry is not None
        with pytest.raises(VersionMismatchError):
            await new.client.put(kept, "x", if_version=entry.version + 1)
        with pytest.raises(AlreadyExistsError):
            await new.client.put(kept, "x", if_absent=True)
        assert await new.client.put(kept, "x", if_version=entry.version) > newest
        assert await new.client.put(GONE[0], "x", if_absent=True) > newest
        refused = await new.web.post("/admin/restores", json={"directory": "first"})
        assert (refused.status_code, "has shards already" in refused.text) == (412, True)


async def test_a_backup_under_load_has_all_that_was_acknowledged_before_it(tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    keys = [f"k{n}" for n in range(40)]
    history: dict[str, list[int]] = {key: [] for key in keys}  # versions in the order they were acknowledged
    async with running(tmp_path / "old", nodes=3, backup_dir=backups) as old:
        await old.create(3, 3)

        async def write_on(mine: list[str]) -> None:
            while True:
                for key in mine:
                    history[key].append(await old.client.put(key, f"{key} {len(history[key])}"))

        writers = [asyncio.create_task(write_on(keys[part::4])) for part in range(4)]

        async def written(least: int) -> bool:
            return all(len(versions) >= least for versions in history.values())

        await until(lambda: written(2))
        before = {key: len(versions) for key, versions in history.items()}
        over = await old.ended(await old.order("/admin/backups", directory="loaded"))
        assert over["status"] == "DONE", over
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
    async with running(tmp_path / "new", nodes=1, backup_dir=backups) as new:
        over = await new.ended(await new.order("/admin/restores", directory="loaded", replication_factor=1))
        assert over["status"] == "DONE", over
        restored = await all_of(new.client, keys)
    for key, entry in restored.items():
        assert entry is not None
        number = int(entry.value.split()[1])
        assert number >= before[key] - 1, key
        if number < len(history[key]):  # else the backup has one whose acknowledgement the test did not wait for
            assert history[key][number] == entry.version


async def small_backup(folder: Path, backups: Path) -> None:
    async with running(folder, nodes=1, backup_dir=backups) as cluster:
        await cluster.create(3, 1)
        await fill(cluster.client, KEYS[:300])
        assert (await cluster.ended(await cluster.order("/admin/backups", directory="good")))["status"] == "DONE"


async def test_a_damaged_backup_changes_nothing_and_a_whole_one_can_still_be_restored(tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    await small_backup(tmp_path / "old", backups)
    good = {path.name: path.read_bytes() for path in (backups / "good").iterdir()}
    bad = backups / "bad"
    bad.mkdir()
    async with running(tmp_path / "new", nodes=1, backup_dir=backups) as new:
        await until(lambda: placeable(new))
        before = await new.map()
        for name in sorted(good):
            for harm in (lambda raw: raw[:-20], lambda raw: raw[:99] + bytes([raw[99] ^ 1]) + raw[100:], None):
                for other, content in good.items():
                    (bad / other).write_bytes(content)
                if harm is None:
                    (bad / name).unlink()
                else:
                    (bad / name).write_bytes(harm(good[name]))
                answer = await new.web.post("/admin/restores", json={"directory": "bad"})
                if name == "manifest.json":
                    assert answer.status_code == (404 if harm is None else 412), answer.text
                else:
                    over = await new.ended(answer.json()["operation"])
                    assert over["status"] == "FAILED", over
                    assert f"is damaged: {name}: " in over["outcome"], over
                    assert over["outcome"].endswith("; nothing was changed")
                assert (await new.map()) == before
        over = await new.ended(await new.order("/admin/restores", directory="good"))
        assert over["status"] == "DONE", over
        assert None not in (await all_of(new.client, KEYS[:300])).values()


async def placeable(cluster: WholeCluster) -> bool:
    """A restore of something that is not there says so only where it could be done."""
    nodes = (await cluster.web.get("/admin/nodes")).json()
    return bool(nodes) and all(node["status"] == "ALIVE" for node in nodes)


async def test_orders_that_cannot_be_are_refused(tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    backups.mkdir()
    (backups / "taken").mkdir()
    async with running(tmp_path / "c", nodes=1, backup_dir=backups) as cluster:
        empty = await cluster.web.post("/admin/backups", json={"directory": "b"})
        assert (empty.status_code, "nothing to back up" in empty.text) == (412, True)
        await cluster.create(1, 1)
        for path, body, status, words in (
            ("backups", {"directory": "taken"}, 409, "is there already"),
            ("backups", {"directory": "../out"}, 400, "must lie in"),
            ("backups", {"directory": "/etc/x"}, 400, "must lie in"),
            ("backups", {"directory": "."}, 400, "must lie in"),
            ("backups", {"directory": "a\0b"}, 400, "is no path"),
            ("backups", {"directory": ""}, 400, "directory: "),
            ("backups", {"directory": "x.partial"}, 400, "must not end in"),
            ("backups", {"directory": "b", "more": 1}, 400, "more: there is no such field"),
            ("backups", {}, 400, "directory: the field is missing"),
            ("restores", {"directory": "none"}, 404, "no whole backup"),
            ("restores", {"directory": "taken"}, 404, "no whole backup"),
            ("restores", {"directory": "taken", "num_shards": 0}, 400, "num_shards: "),
            ("restores", {"directory": "taken", "num_shards": 4097}, 400, "num_shards: "),
            ("restores", {"directory": "taken", "replication_factor": 17}, 400, "replication_factor: "),
        ):
            answer = await cluster.web.post(f"/admin/{path}", json=body)
            assert (answer.status_code, words in answer.text) == (status, True), (body, answer.text)
        assert (await cluster.web.get("/admin/ops")).json()["operations"] == []
        assert [path.name for path in backups.iterdir()] == ["taken"]


async def test_without_a_place_for_backups_there_are_none(tmp_path: Path) -> None:
    async with running(tmp_path / "c", nodes=1, backup_dir=None) as cluster:
        for path in ("backups", "restores"):
            answer = await cluster.web.post(f"/admin/{path}", json={"directory": "b"})
            assert (answer.status_code, "set its backup_dir" in answer.text) == (412, True)


async def stuck_backup(cluster: WholeCluster) -> dict[str, Any]:
    """Two of three nodes are gone: no replica can do its read barrier."""
    await cluster.create(2, 3)
    for node_id in ("node-2", "node-3"):
        await cluster.nodes.pop(node_id).stop()
    begun = await cluster.order("/admin/backups", directory="stuck")

    async def reported() -> bool:
        return bool((await cluster.web.get(f"/admin/ops/{begun['id']}")).json()["steps_total"] == 2)

    await until(reported)
    return begun


async def test_a_backup_that_is_cancelled_leaves_nothing_behind(tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    async with running(tmp_path / "c", nodes=3, backup_dir=backups) as cluster:
        begun = await stuck_backup(cluster)
        second = await cluster.web.post("/admin/backups", json={"directory": "other"})
        assert (second.status_code, "one at a time" in second.text) == (412, True)
        cancel = f"/admin/ops/{begun['id']}/cancel"
        assert (await cluster.web.post(cancel)).status_code == 200
        assert (await cluster.web.post(cancel)).status_code == 412
        assert (await cluster.ended(begun))["status"] == "CANCELLED"

        async def clean() -> bool:
            return not any(backups.iterdir())

        await until(clean)


async def test_an_admin_service_that_stops_says_so_of_its_backup(tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    async with running(tmp_path / "c", nodes=3, backup_dir=backups) as cluster:
        begun = await stuck_backup(cluster)
        await cluster.stop_admin()
        await cluster.start_admin()
        over = await cluster.ended(begun)
        assert (over["status"], over["outcome"]) == ("FAILED", "the admin service that copied was stopped")
        assert not any(backups.iterdir())
