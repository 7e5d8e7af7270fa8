"""The command line over backups, restores and checks of real clusters: a damaged backup changes nothing, and a replica
that holds other rows than the rest is found.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from flotta import cli, cli_orders
from flotta.models import Put
from flotta_storage.core.keys import data_key
from flotta_storage.core.rows import encode_row
from typer.testing import CliRunner
from whole_cluster import KEY, WholeCluster, running, until

KEYS = [f"key/{n}" for n in range(300)]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_orders, "POLL_S", 0.05)


async def flotta(cluster: WholeCluster, *arguments: str, code: int = 0) -> Any:
    """What a verb printed, as JSON; it must end with `code`."""
    url = f"http://127.0.0.1:{cluster.admin.port}"
    environ = {"FLOTTA_ADMIN": url, "FLOTTA_ADMIN_API_KEY": KEY, "FLOTTA_CONFIG": "", "TERM": "dumb"}
    runner = CliRunner(env=environ | {"XDG_CONFIG_HOME": str(cluster.folder)})
    ended = await asyncio.to_thread(runner.invoke, cli.build(), [*arguments, "--json"])
    assert ended.exit_code == code, (arguments, ended.output, ended.stderr)
    return json.loads(ended.stdout) if ended.stdout.strip() else ended.stderr


async def test_backups_are_made_checked_and_restored_from_the_command_line(tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    async with running(tmp_path / "old", nodes=3, backup_dir=backups) as old:
        await old.create(2, 3)
        assert all(isinstance(one, int) for one in await old.client.batch([Put(key, key) for key in KEYS]))
        made = await flotta(old, "backup", "first", "--wait")
        assert made["status"] == "DONE" and "300 keys of 2 shards" in made["outcome"]
        assert "is there already" in await flotta(old, "backup", "first", code=3)
        assert "must lie in" in await flotta(old, "backup", "../elsewhere", code=2)
        assert "shards already" in await flotta(old, "restore", "first", code=3)
        assert "no whole backup" in await flotta(old, "restore", "second", code=1)
        sound = await flotta(old, "check", str(backups / "first"))
        assert (sound["problems"], sum(one["rows"] for one in sound["files"])) == ([], 300)
        found = await flotta(old, "check")
        assert [one["state"] for one in found["shards"]] == ["AGREE", "AGREE"] and not found["problems"]
        await compacted(old)
        await differ(old)
    file = backups / "first" / "shard-00001.rows"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes((whole[-1] ^ 1,)))
    (backups / "first" / "notes.txt").write_text("not of the backup")
    async with running(tmp_path / "new", nodes=2, backup_dir=backups) as new:
        damaged = await flotta(new, "check", str(backups / "first"), code=1)
        assert [one["wrong"] is None for one in damaged["files"]] == [True, False]
        assert any("checksum" in one for one in damaged["problems"])
        assert "notes.txt does not belong to the backup" in damaged["problems"]
        assert "no shards yet" in await flotta(new, "check", code=3)

        async def heard() -> bool:
            return len((await new.web.get("/admin/nodes")).json()) == 2

        await until(heard)
        before = (await new.map())["shards"]
        failed = await flotta(new, "restore", "first", "--wait", code=6)
        assert "shard-00001.rows: it does not match its checksum; nothing was changed" in failed["outcome"]
        assert (await new.map())["shards"] == before == {}
        file.write_bytes(whole)
        done = await flotta(new, "restore", "first", "--shards", "3", "--replicas", "2", "--wait")
        assert done["status"] == "DONE", done
        found = await flotta(new, "check")
        assert [one["state"] for one in found["shards"]] == ["AGREE"] * 3 and not found["problems"]
        assert sum(one["replicas"][0]["keys"] for one in found["shards"]) == 300


async def compacted(cluster: WholeCluster) -> None:
    """KvDB's order is an operation as well, its number in a header."""
    answer = await cluster.web.post("/admin/ops/compact", json={})
    over = await cluster.ended({"id": int(answer.headers["X-Operation-Id"])})
    assert (over["operation"], over["status"], over["outcome"]) == ("compaction", "DONE", "6 replicas are compacted")
    assert over["steps_done"] == over["steps_total"] == 6


async def differ(cluster: WholeCluster) -> None:
    """A row changes behind the back of one replica's log; the check names the shard."""
    node = next(iter(cluster.nodes.values()))
    assert node.backend is not None
    replica = node.replicas.of_shard("shard-1")
    assert replica is not None
    row = encode_row(1, 1, 1, 0, b"from nowhere")
    node.backend.engine.write(replica.machine._space, [(data_key(b"ghost"), row)], [])
    found = await flotta(cluster, "check", code=1)
    states = {one["shard_id"]: one["state"] for one in found["shards"]}
    assert states == {"shard-0": "AGREE", "shard-1": "DIFFER"}
    assert any("shard-1: replicas that have applied the log" in one for one in found["problems"])
