"""Two of four nodes are lost for good under load: what lost its quorum with them is recovered from what is left, and is
whole again once a node is back; the stale replicas that come back with it disturb nobody.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command_line import Operator
from flotta_proto.kvdb import gateway_pb2
from flotta_runtime.hashing import shard_index
from load import Load, acks_grow, under_load
from process_cluster import Client, ProcessCluster, replicas_equal, running, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
SHARDS = 4
OK = gateway_pb2.Status.OK
HASTE = {
    "FLOTTA_COORDINATOR_SUSPECT_AFTER_MS": "2000",
    "FLOTTA_COORDINATOR_DEAD_AFTER_MS": "4000",
    "FLOTTA_COORDINATOR_RECOVER_AFTER_MS": "1000",
    "FLOTTA_COORDINATOR_PLAN_EVERY_MS": "200",
    "FLOTTA_COORDINATOR_REPLACE_AFTER_MS": "1000",
    "FLOTTA_COORDINATOR_SETTLE_MS": "1500",
}
KEYS = [b"key %d" % number for number in range(24)]
LOST = {"node-1", "node-2"}


async def spread(cluster: ProcessCluster) -> dict[str, Any] | None:
    """Every node holds as much as any other, so each lacks one shard."""
    shards = await placed(cluster) or {}
    held = Counter(node for one in shards.values() for node in one["replicas"])
    return shards if len(held) == 4 and len(set(held.values())) == 1 else None


async def placed(cluster: ProcessCluster) -> dict[str, Any] | None:
    shards = await cluster.shards()
    return shards if all(one["config_state"] == "STABLE" and one["leader"] for one in shards.values()) else None


async def whole(cluster: ProcessCluster) -> bool:
    shards = await placed(cluster) or {}
    return bool(shards) and all(len(set(one["replicas"]) - cluster.gone) == 3 for one in shards.values())


async def test_shards_that_lost_their_quorum_are_recovered_and_whole_again(tmp_path: Path) -> None:
    async with running(tmp_path, nodes=4, shards=SHARDS, gateways=1, settings=HASTE) as cluster:
        operator = Operator(cluster, tmp_path / "config.toml")
        shards: dict[str, Any] = await until(lambda: spread(cluster), "all shards are spread over the nodes")
        stuck = {name for name, one in shards.items() if len(LOST & set(one["replicas"])) == 2}
        assert 0 < len(stuck) < SHARDS
        quiet = [key for key in KEYS if f"shard-{shard_index(key, SHARDS)}" in stuck]
        load = Load([cluster.gateway_address(1)], [key for key in KEYS if key not in quiet])
        client = Client(cluster.gateway_address(1))
        versions = {key: (await client.put(key, b"before " + key, timeout=20)).version for key in quiet}
        assert all(versions.values())
        await replicas_equal(cluster)  # so that the survivors have everything, and nothing has to be lost
        assert "has a leader" in await operator.run("recover", "--unsafe", "shard-0", "--yes", code=3)
        async with under_load(load):
            await acks_grow(load, load.keys)
            cluster.kill(*LOST)
            cluster.gone |= LOST

            async def may_be_recovered() -> bool:
                for shard in stuck:
                    status, body = await cluster.admin("POST", f"/admin/shards/{shard}/recover", {"dry_run": True})
                    if status != 200:
                        raise RuntimeError(body["message"])
                return True

            await until(may_be_recovered, "the nodes are DEAD for long enough")
            named = [word for node in sorted(LOST) for word in ("--node", node)]
            ended = json.loads(await operator.run("recover", "--unsafe", *named, "--yes", "--wait", "--json"))
            assert {one["shard_id"] for one in ended} == stuck
            assert {one["operation"]["status"] for one in ended} == {"DONE"}, ended
            for key in quiet:
                found = await client.get(key, timeout=20)
                assert (found.kv.value, found.kv.version) == (b"before " + key, versions[key])
                written = await client.put(key, b"after", timeout=20)
                assert written.status.code == OK and written.version > versions[key]
            await acks_grow(load, load.keys)
            await cluster.command("start", "node-1")
            cluster.gone.discard("node-1")
            await until(lambda: whole(cluster), "every shard has three replicas again", 90)
            await acks_grow(load, load.keys)
        _, told = await cluster.admin("GET", "/admin/decisions?limit=1000")
        sentences = [one["reason"] for one in told["decisions"] if one["kind"] == "shard-recovered"]
        print("\n".join(sentences))
        assert len(sentences) == len(stuck) and all("acknowledged ones included" in one for one in sentences)
        await load.verify(cluster.gateway_address(1))
        for key in quiet:
            assert (await client.get(key, timeout=20)).kv.value == b"after"
        await client.close()
        await replicas_equal(cluster)
