"""A real cluster that looks after itself under load: nodes die for good, join and leave, and nobody lifts a finger.

Every test prints the decisions that the coordinator gave as its reasons, and ends with all replicas equal and every
acknowledged write there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from load import Load, acks_grow, under_load
from process_cluster import ProcessCluster, replicas_equal, running, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
SHARDS = 6
HASTE = {
    "FLOTTA_COORDINATOR_SUSPECT_AFTER_MS": "2000",
    "FLOTTA_COORDINATOR_DEAD_AFTER_MS": "4000",
    "FLOTTA_COORDINATOR_PLAN_EVERY_MS": "200",
    "FLOTTA_COORDINATOR_REPLACE_AFTER_MS": "1000",
    "FLOTTA_COORDINATOR_SETTLE_MS": "1500",
}


@asynccontextmanager
async def hasty(folder: Path, nodes: int) -> AsyncIterator[tuple[ProcessCluster, Load]]:
    """A cluster with a planner in a hurry, and a load for it."""
    async with running(folder, nodes=nodes, shards=SHARDS, gateways=2, settings=HASTE) as cluster:
        addresses = [cluster.gateway_address(1), cluster.gateway_address(2)]
        await until(lambda: spread(cluster), "replicas and leaderships are spread over all nodes")
        yield cluster, Load(addresses, [b"key %d" % n for n in range(12)])


async def decisions(cluster: ProcessCluster, **query: str) -> list[dict[str, Any]]:
    words = "&".join(f"{name}={value}" for name, value in {"limit": "1000", **query}.items())
    status, body = await cluster.admin("GET", f"/admin/decisions?{words}")
    assert status == 200, body
    found: list[dict[str, Any]] = body["decisions"]
    return found


async def tell(cluster: ProcessCluster) -> None:
    """Print the timeline of what the planner did."""
    made = await decisions(cluster)
    for one in made:
        if one["kind"] not in ("shard-created", "shard-leader", "shard-members"):
            print(f"{one['time_ms'] - made[0]['time_ms']:>7} ms  {one['kind']:<20} {one['reason']}")


async def at_rest(cluster: ProcessCluster) -> dict[str, Any] | None:
    shards = await cluster.shards()
    return shards if all(one["config_state"] == "STABLE" and one["leader"] for one in shards.values()) else None


async def spread(cluster: ProcessCluster) -> dict[str, Any] | None:
    """At rest, every node holding and leading as much as any other, or one more."""
    shards = await at_rest(cluster)
    if shards is None:
        return None
    nodes = [f"node-{n + 1}" for n in range(cluster.nodes) if f"node-{n + 1}" not in cluster.gone]
    held = Counter(node for one in shards.values() for node in one["replicas"])
    leads = Counter(one["leader"] for one in shards.values())
    level = all(max(found[node] for node in nodes) - min(found[node] for node in nodes) <= 1 for found in (held, leads))
    return shards if level and set(held) <= set(nodes) else None


async def finish(cluster: ProcessCluster, load: Load) -> None:
    await tell(cluster)
    await load.verify(cluster.gateway_address(1))
    await replicas_equal(cluster)
    print(f"{load.total()} acknowledged writes; calls that were not: {len(load.failures)}")


async def test_a_node_that_dies_is_replaced_under_load_and_gets_its_share_when_it_comes_back(tmp_path: Path) -> None:
    async with hasty(tmp_path, 4) as (cluster, load):
        async with under_load(load):
            await acks_grow(load, load.keys)
            before = await cluster.shards()
            known = (await decisions(cluster))[-1]["number"]
            victim = before["shard-1"]["leader"]
            cluster.kill(victim)
            cluster.gone.add(victim)

            async def replaced() -> bool:
                shards = await at_rest(cluster)
                return shards is not None and all(
                    len(set(one["replicas"]) - {victim}) == 3 and one["leader"] != victim for one in shards.values()
                )

            await until(replaced, f"every shard has three replicas without {victim}", 60)
            _, told = await cluster.admin("GET", "/admin/shards/shard-1/explain")
            assert told["health"] == "HEALTHY", told
            await acks_grow(load, load.keys)
        held = {name for name, one in before.items() if victim in one["replicas"]}
        moves = [one for one in await decisions(cluster, after=str(known)) if one["kind"] == "shard-move"]
        replaced_ones = {one["subject"] for one in moves if f"{victim} is DEAD for" in one["reason"]}
        assert replaced_ones == held, moves
        cluster.gone.clear()
        async with under_load(load):
            await cluster.command("start", victim)

            async def back() -> bool:
                shards = await spread(cluster)
                return shards is not None and any(victim in one["replicas"] for one in shards.values())

            await until(back, f"{victim} is back, and has its share", 60)
            await acks_grow(load, load.keys)
        await finish(cluster, load)


async def ended(cluster: ProcessCluster, order: tuple[int, Any]) -> dict[str, Any]:
    """The operation that an order began, once it is no longer under way."""
    status, body = order
    assert status == 200, body
    print(body["message"])
    number = body["operation"]["id"]

    async def is_over() -> dict[str, Any] | None:
        _, now = await cluster.admin("GET", f"/admin/ops/{number}")
        return None if now["status"] == "RUNNING" else now

    found: dict[str, Any] = await until(is_over, f"operation {number} ends", 60)
    return found


async def test_a_new_node_gets_its_share_and_a_drain_goes_on_when_its_coordinator_dies(tmp_path: Path) -> None:
    async with hasty(tmp_path, 3) as (cluster, load):
        async with under_load(load):
            await acks_grow(load, load.keys)
            added = await cluster.add_node()

            async def shared() -> bool:
                shards = await spread(cluster)
                return shards is not None and any(added in one["replicas"] for one in shards.values())

            await until(shared, f"{added} has its share", 60)
            order = await cluster.admin("POST", "/admin/nodes/node-1/drain")
            leader = await cluster.coordinator_leader()
            cluster.kill(leader)  # another one goes on with the drain
            over = await ended(cluster, order)
            await cluster.command("start", leader)
            assert (over["status"], over["steps_done"]) == ("DONE", over["steps_total"]), over
            assert all("node-1" not in one["replicas"] for one in (await cluster.shards()).values())
            await acks_grow(load, load.keys)
            status, twice = await cluster.admin("POST", f"/admin/ops/{over['id']}/cancel")
            assert status == 412 and "has ended already" in twice["message"]
            _, body = await cluster.admin("DELETE", "/admin/nodes/node-1")
            assert body["message"] == "node-1 is removed"
            cluster.kill("node-1")
            cluster.gone.add("node-1")
            await acks_grow(load, load.keys)
        await finish(cluster, load)
        assert load.failures == []


async def test_the_replication_factor_changes_while_the_cluster_serves(tmp_path: Path) -> None:
    async with hasty(tmp_path, 3) as (cluster, load):
        async with under_load(load):
            await acks_grow(load, load.keys)
            for wanted in (2, 3):
                order = await cluster.admin("POST", "/admin/cluster/replication-factor", {"replication_factor": wanted})
                assert (await ended(cluster, order))["outcome"] == f"every shard of default has {wanted} replicas"
                assert {len(one["replicas"]) for one in (await cluster.shards()).values()} == {wanted}
                await acks_grow(load, load.keys)
        await finish(cluster, load)
        assert load.failures == []


async def test_a_rebalance_undoes_what_was_placed_by_hand(tmp_path: Path) -> None:
    async with hasty(tmp_path, 4) as (cluster, load):
        async with under_load(load):
            await acks_grow(load, load.keys)
            for shard_id in await cluster.shards():
                chosen = ["node-1", "node-2", "node-3"]
                status, _ = await cluster.admin("POST", f"/admin/shards/{shard_id}/replicas", chosen)
                assert status == 200

            async def placed() -> bool:
                shards = await at_rest(cluster) or {}
                return bool(shards) and all("node-4" not in one["replicas"] for one in shards.values())

            await until(placed, "all shards are where they were placed", 60)
            over = await ended(cluster, await cluster.admin("POST", "/admin/cluster/rebalance"))
            assert over["status"] == "DONE", over
            assert await spread(cluster), await cluster.shards()
        await finish(cluster, load)
        assert load.failures == []
