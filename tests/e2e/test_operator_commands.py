"""An operator at the command line, on a real cluster under load: a move, a transfer, a drain that is waited for, a node
taken off the map, and `watch-map` beside it that saw it all.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from load import Load, under_load
from process_cluster import ProcessCluster, replicas_equal, running, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
SHARDS = 4
HASTE = {
    "FLOTTA_COORDINATOR_PLAN_EVERY_MS": "200",
    "FLOTTA_COORDINATOR_SETTLE_MS": "1500",
}


class Operator:
    """The command line, with a configuration file as its only knowledge."""

    def __init__(self, cluster: ProcessCluster, config: Path) -> None:
        coordinators = ",".join(f"127.0.0.1:{cluster.coordinator_port + number}" for number in range(3))
        config.write_text(
            f'gateway = ["{cluster.gateway_address(1)}"]\n'
            f'coordinators = "{coordinators}"\n'
            f'admin = "http://127.0.0.1:{cluster.admin_port}"\n'
            'admin_key_file = "data/admin-api-key"\n'
        )
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("FLOTTA_", "KVDB_"))}
        self._environment = {**clean, "FLOTTA_CONFIG": str(config)}

    async def run(self, *arguments: str, code: int = 0) -> str:
        """What a command printed; it must end with `code`."""
        process = await self._start(*arguments)
        output, errors = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode == code, f"{arguments} ended with {process.returncode}: {errors.decode()}"
        return output.decode()

    async def told(self, *arguments: str) -> Any:
        return json.loads(await self.run(*arguments, "--json"))

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """`watch-map` while the block runs."""
        process = await self._start("watch-map", "--json")
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "flotta", *arguments),
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


async def test_an_operators_day(tmp_path: Path) -> None:
    async with running(tmp_path, nodes=4, shards=SHARDS, gateways=1, settings=HASTE) as cluster:
        operator = Operator(cluster, tmp_path / "config.toml")
        load = Load([cluster.gateway_address(1)], [b"key %d" % number for number in range(8)])

        async def stable() -> bool:
            rows = await operator.told("shards")
            return len(rows) == SHARDS and all(row["state"] == "STABLE" and row["leader"] for row in rows)

        await until(stable, "all shards are STABLE")
        async with operator.watching() as watch, under_load(load):
            assert (await operator.told("cluster"))["nodes"] == {"ALIVE": 4}
            shard = (await operator.told("shards"))[0]
            (outsider,) = {f"node-{number}" for number in range(1, 5)} - set(shard["replicas"])
            follower = next(node for node in shard["replicas"] if node != shard["leader"])
            moved = await operator.told("move", shard["shard_id"], follower, outsider, "--wait")
            assert moved["status"] == "DONE", moved
            await operator.run("transfer", shard["shard_id"], outsider)

            async def leads() -> bool:
                return bool((await operator.told("shards"))[0]["leader"] == outsider)

            await until(leads, f"{outsider} leads {shard['shard_id']}")
            drained = await operator.told("drain", "node-2", "--remove", "--yes", "--wait")
            assert drained["status"] == "DONE", drained
            assert await operator.run("shards", "--node", "node-2", code=1) == ""
            assert [row["node_id"] for row in await operator.told("nodes")] == ["node-1", "node-3", "node-4"]
            assert all("node-2" not in row["replicas"] for row in await operator.told("shards"))
            assert "HEALTHY" in await operator.run("why", shard["shard_id"])
            assert (await operator.told("rebalance", "--wait")).get("status", "DONE") == "DONE"
            await operator.run("move", shard["shard_id"], outsider, "node-9", code=1)
            watch.terminate()
            printed, _ = await watch.communicate()
            lines = [json.loads(line) for line in printed.splitlines()]
        cluster.gone.add("node-2")
        versions = [line["map_version"] for line in lines]
        assert versions == sorted(set(versions))
        told = {(change["subject"], change["text"]) for line in lines for change in line["changes"]}
        assert ("node-2", "taken off the map") in told
        assert any(subject == shard["shard_id"] and "MOVING" in text for subject, text in told)
        print(
            f"{load.total()} acknowledged writes; calls that were not: {len(load.failures)}; {len(lines)} map versions"
        )
        assert not load.failures
        await load.verify(cluster.gateway_address(1))
        await replicas_equal(cluster)
