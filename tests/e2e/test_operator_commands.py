"""An operator at the command line, on a real cluster under load: a move, a transfer, a drain that is waited for, a node
taken off the map, and `watch-map` beside it that saw it all.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Operator
from load import PATIENT_S, Load, under_load
from process_cluster import replicas_equal, running, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
SHARDS = 4
HASTE = {
    "FLOTTA_COORDINATOR_PLAN_EVERY_MS": "200",
    "FLOTTA_COORDINATOR_SETTLE_MS": "1500",
}


async def test_an_operators_day(tmp_path: Path) -> None:
    async with running(tmp_path, nodes=4, shards=SHARDS, gateways=1, settings=HASTE) as cluster:
        operator = Operator(cluster, tmp_path / "config.toml")
        load = Load([cluster.gateway_address(1)], [b"key %d" % number for number in range(8)], timeout_s=PATIENT_S)

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

            async def on_record() -> bool:
                found = [one for one in await operator.told("ops") if one["operation"] == "leadership"]
                return [(one["subject"], one["status"]) for one in found] == [(shard["shard_id"], "DONE")]

            await until(on_record, "and that is on record")
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
