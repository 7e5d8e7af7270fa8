"""A real cluster that looks after itself under load: nodes die for good, join and leave, and nobody lifts a finger.

Every test prints its timeline, what it did and every decision with the coordinator's reason, and ends with all replicas
equal and every acknowledged write there.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from load import PATIENT_S, Load, acks_grow, under_load
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


@dataclass
class Scene:
    """A cluster with a planner in a hurry, a load for it, and what the test did to it, and when."""

    cluster: ProcessCluster
    load: Load
    deeds: list[tuple[float, float, str]] = field(default_factory=list)

    def note(self, deed: str) -> None:
        self.deeds.append((time.time() * 1000, time.monotonic(), deed))

    async def tell(self) -> None:
        """Print the timeline: deeds and decisions, in ms since the first decision."""
        made = await decisions(self.cluster)
        lines = [(one["time_ms"], f"{one['kind']:<20} {one['reason']}") for one in made]
        for at_ms, moment, deed in self.deeds:
            silence = self.load.gap_after(moment, self.load.keys)
            lines.append((at_ms, f"{'(the test)':<20} {deed}; longest silence of a writer then: {silence:.2f} s"))
        for at_ms, line in sorted(lines):
            print(f"{at_ms - made[0]['time_ms']:>8.0f} ms  {line}")

    async def finish(self) -> None:
        await self.tell()
        checked = await self.load.verify(self.cluster.gateway_address(1))
        await replicas_equal(self.cluster)
        print(f"{self.load.total()} acknowledged writes, {checked} keys read back, none lost")
        print(f"calls that were not acknowledged: {len(self.load.failures)} {self.load.failures[:3]}")


@asynccontextmanager
async def hasty(folder: Path, nodes: int, zones: str = "local") -> AsyncIterator[Scene]:
    settings = {**HASTE, "ZONES": zones}
    async with running(folder, nodes=nodes, shards=SHARDS, gateways=2, settings=settings) as cluster:
        addresses = [cluster.gateway_address(1), cluster.gateway_address(2)]
        yield Scene(cluster, Load(addresses, [b"key %d" % n for n in range(12)], timeout_s=PATIENT_S))


async def decisions(cluster: ProcessCluster, **query: str) -> list[dict[str, Any]]:
    words = "&".join(f"{name}={value}" for name, value in {"limit": "1000", **query}.items())
    status, body = await cluster.admin("GET", f"/admin/decisions?{words}")
    assert status == 200, body
    found: list[dict[str, Any]] = body["decisions"]
    return found


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


async def test_a_node_that_dies_is_replaced_under_load_and_gets_its_share_when_it_comes_back(tmp_path: Path) -> None:
    async with hasty(tmp_path, 4) as scene:
        cluster, load = scene.cluster, scene.load
        await until(lambda: spread(cluster), "replicas and leaderships are spread over all nodes")
        async with under_load(load):
            await acks_grow(load, load.keys)
            before = await cluster.shards()
            known = (await decisions(cluster))[-1]["number"]
            victim = before["shard-1"]["leader"]
            scene.note(f"kills {victim} for good")
            cluster.kill(victim)
            cluster.gone.add(victim)
            await until(lambda: whole_without(cluster, victim), f"every shard has three replicas without {victim}", 60)
            scene.note("sees that every shard has three replicas again")
            _, told = await cluster.admin("GET", "/admin/shards/shard-1/explain")
            assert told["health"] == "HEALTHY", told
            await acks_grow(load, load.keys)
        held = {name for name, one in before.items() if victim in one["replicas"]}
        moves = await moves_after(cluster, known)
        replaced_ones = {one["subject"] for one in moves if f"{victim} is DEAD for" in one["reason"]}
        assert replaced_ones == held, moves
        cluster.gone.clear()
        async with under_load(load):
            scene.note(f"starts {victim} again")
            await cluster.command("start", victim)
            await until(lambda: share_of(cluster, victim), f"{victim} is back, and has its share", 60)
            await acks_grow(load, load.keys)
        await scene.finish()


async def whole_without(cluster: ProcessCluster, victim: str) -> bool:
    shards = await at_rest(cluster)
    return shards is not None and all(
        len(set(one["replicas"]) - {victim}) == 3 and one["leader"] != victim for one in shards.values()
    )


async def share_of(cluster: ProcessCluster, node_id: str) -> bool:
    """Replicas and leaderships are spread over all nodes, this one too."""
    shards = await spread(cluster)
    return shards is not None and any(node_id in one["replicas"] for one in shards.values())


async def moves_after(cluster: ProcessCluster, number: int) -> list[dict[str, Any]]:
    return [one for one in await decisions(cluster, after=str(number)) if one["kind"] == "shard-move"]


async def test_replicas_lie_in_different_zones_and_a_lost_zone_is_stood_in_for_until_it_is_back(tmp_path: Path) -> None:
    zones = {"node-1": "east", "node-2": "west", "node-3": "north", "node-4": "east"}
    async with hasty(tmp_path, 4, zones="east,west,north") as scene:
        cluster, load = scene.cluster, scene.load

        async def one_a_zone() -> bool:
            shards = await at_rest(cluster) or {}
            return bool(shards) and all(
                {zones[n] for n in one["replicas"]} == set(zones.values()) for one in shards.values()
            )

        await until(one_a_zone, "every shard has a replica in each zone")
        _, nodes = await cluster.admin("GET", "/admin/nodes")
        assert {one["node_id"]: one["zone"] for one in nodes} == zones
        assert await moves_after(cluster, 0) == [], "they were not put there to begin with"
        async with under_load(load):
            await acks_grow(load, load.keys)
            known = (await decisions(cluster))[-1]["number"]
            scene.note("kills node-2, all there is of zone west")
            cluster.kill("node-2")
            cluster.gone.add("node-2")
            await until(lambda: whole_without(cluster, "node-2"), "every shard has three replicas without node-2", 60)
            await acks_grow(load, load.keys)
        every = set(await cluster.shards())
        stands_in = (
            r"node-2 \(zone west\) is DEAD for .*, so shard-\d gets a replica on node-[14] \(zone east\) in its place"
        )
        assert every == {
            one["subject"] for one in await moves_after(cluster, known) if re.match(stands_in, one["reason"])
        }
        known = (await decisions(cluster))[-1]["number"]
        cluster.gone.clear()
        async with under_load(load):
            scene.note("starts node-2 again")
            await cluster.command("start", "node-2")
            await until(one_a_zone, "every shard has a replica in each zone again", 60)
            await acks_grow(load, load.keys)
        goes_back = (
            r"shard-\d has replicas that share a zone: the one on node-[14] \(zone east\) moves to node-2 \(zone west\)"
        )
        assert every == {
            one["subject"] for one in await moves_after(cluster, known) if re.match(goes_back, one["reason"])
        }
        await scene.finish()


async def ended(cluster: ProcessCluster, order: tuple[int, Any]) -> dict[str, Any]:
    """The operation that an order began, once it is no longer under way."""
    status, body = order
    assert status == 200, body
    print(body["message"])
    number = body["operation"]["id"]

    async def is_over() -> dict[str, Any] | None:
        status, now = await cluster.admin("GET", f"/admin/ops/{number}")
        return now if status == 200 and now["status"] != "RUNNING" else None

    found: dict[str, Any] = await until(is_over, f"operation {number} ends", 60)
    return found


async def test_a_new_node_gets_its_share_and_a_drain_goes_on_when_its_coordinator_dies(tmp_path: Path) -> None:
    async with hasty(tmp_path, 3) as scene:
        cluster, load = scene.cluster, scene.load
        async with under_load(load):
            await acks_grow(load, load.keys)
            scene.note("adds a node")
            added = await cluster.add_node()
            await until(lambda: share_of(cluster, added), f"{added} has its share", 60)
            scene.note(f"sees that {added} holds and leads as much as the others, or one less or more; drains node-1")
            order = await cluster.admin("POST", "/admin/nodes/node-1/drain")
            leader = await cluster.coordinator_leader()
            scene.note(f"kills {leader}, which leads the coordinators")
            cluster.kill(leader)  # another one goes on with the drain
            over = await ended(cluster, order)
            scene.note("sees that the drain is done")
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
        await scene.finish()
        assert load.failures == []


async def test_the_replication_factor_changes_while_the_cluster_serves(tmp_path: Path) -> None:
    async with hasty(tmp_path, 3) as scene:
        cluster, load = scene.cluster, scene.load
        async with under_load(load):
            await acks_grow(load, load.keys)
            for wanted in (2, 3):
                scene.note(f"wants {wanted} replicas of each shard")
                order = await cluster.admin("POST", "/admin/cluster/replication-factor", {"replication_factor": wanted})
                assert (await ended(cluster, order))["outcome"] == f"every shard of default has {wanted} replicas"
                assert {len(one["replicas"]) for one in (await cluster.shards()).values()} == {wanted}
                await acks_grow(load, load.keys)
        await scene.finish()
        assert load.failures == []


async def test_a_rebalance_undoes_what_was_placed_by_hand(tmp_path: Path) -> None:
    async with hasty(tmp_path, 4) as scene:
        cluster, load = scene.cluster, scene.load
        async with under_load(load):
            await acks_grow(load, load.keys)
            scene.note("places every shard on nodes 1 to 3")
            for shard_id in await cluster.shards():
                chosen = ["node-1", "node-2", "node-3"]
                status, _ = await cluster.admin("POST", f"/admin/shards/{shard_id}/replicas", chosen)
                assert status == 200

            async def placed() -> bool:
                shards = await at_rest(cluster) or {}
                return bool(shards) and all("node-4" not in one["replicas"] for one in shards.values())

            await until(placed, "all shards are where they were placed", 60)
            scene.note("orders a rebalance")
            over = await ended(cluster, await cluster.admin("POST", "/admin/cluster/rebalance"))
            assert over["status"] == "DONE", over
            await until(lambda: spread(cluster), "what was done by hand is undone")  # leaders may just be changing
        await scene.finish()
        assert load.failures == []
