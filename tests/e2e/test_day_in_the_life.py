"""A scripted day of a real cluster: load runs while leaders, followers and at last everything is killed with -9.

Shown: every acknowledged write is there afterwards, the map version never goes back, and writes resume after each
kill of a leader (the gaps are printed, not asserted: speed is measured in bench/).
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from flotta_runtime.hashing import shard_index
from flotta_runtime.settings import Transport
from load import Load, acks_grow, under_load
from process_cluster import Client, ProcessCluster, replicas_equal, running, until

SHARDS = 4
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
BOTH = pytest.mark.parametrize("transport", ["native", "grpcio"])


def keys_of(load: Load, shard_id: str) -> list[bytes]:
    return [key for key in load.keys if f"shard-{shard_index(key, SHARDS)}" == shard_id]


async def kill_shard_leader(cluster: ProcessCluster, load: Load) -> str:
    shards = await cluster.shards()
    shard_id = next(s for s in sorted(shards) if keys_of(load, s))
    victim, moment = shards[shard_id]["leader"], time.monotonic()
    led = [s for s in shards if shards[s]["leader"] == victim]
    cluster.kill(victim)
    keys = [key for s in led for key in keys_of(load, s)]
    await acks_grow(load, keys)
    print(
        f"killed {victim}, leader of {led}: longest silence {load.gap_after(moment, keys):.2f} s over {len(keys)} keys"
    )
    await cluster.command("start")
    return str(victim)


async def kill_coordinator_leader(cluster: ProcessCluster, load: Load) -> None:
    leader, moment = await cluster.coordinator_leader(), time.monotonic()
    cluster.kill(leader)
    await acks_grow(load, load.keys)
    print(f"killed {leader}, which led the coordinators: longest silence {load.gap_after(moment, load.keys):.2f} s")
    await until(cluster.coordinator_leader, "another coordinator leads")
    await cluster.command("start")


async def kill_follower_twice(cluster: ProcessCluster, load: Load, not_this: str) -> None:
    """Down long enough to lag, killed again while it catches up."""
    victim = next(f"node-{n}" for n in (1, 2, 3) if f"node-{n}" != not_this)
    cluster.kill(victim)
    await acks_grow(load, load.keys, by=30)
    await cluster.command("start")
    cluster.kill(victim)
    await acks_grow(load, load.keys)
    await cluster.command("start")
    print(f"killed {victim} while it caught up")


@BOTH
async def test_acknowledged_writes_survive_a_hard_day(tmp_path: Path, transport: Transport) -> None:
    async with running(tmp_path, shards=SHARDS, transport=transport) as cluster:
        load = Load([cluster.gateway_address(1), cluster.gateway_address(2)], [b"key %d" % n for n in range(16)])
        versions = [await cluster.map_version()]
        async with under_load(load):
            await acks_grow(load, load.keys)
            victim = await kill_shard_leader(cluster, load)
            versions.append(await cluster.map_version())
            await kill_coordinator_leader(cluster, load)
            versions.append(await cluster.map_version())
            await kill_follower_twice(cluster, load, victim)
            versions.append(await cluster.map_version())
            before = load.total()
            cluster.kill(*cluster.members())
            await asyncio.sleep(0.3)
            await cluster.command("start")
            await acks_grow(load, load.keys)
        versions.append(await cluster.map_version())
        assert versions == sorted(versions), f"the map version went back: {versions}"
        checked = await load.verify(cluster.gateway_address(1))
        await load.verify(cluster.gateway_address(2))
        await replicas_equal(cluster)
        assert before > 100, "the load hardly ran"
        print(f"{load.total()} acknowledged writes, {checked} keys checked, map versions {versions}")


async def test_a_rejected_admin_call_leaves_no_trace(tmp_path: Path) -> None:
    async with running(tmp_path, shards=SHARDS, gateways=1) as cluster:
        _, before = await cluster.admin("GET", "/admin/cluster/shard-map")
        status, refusal = await cluster.admin(
            "POST", "/admin/config/shard-init", {"num_shards": SHARDS * 2, "replication_factor": 3}
        )
        assert 400 <= status < 500, (status, refusal)
        assert str(SHARDS) in refusal["message"], refusal
        coordinators = [name for name in cluster.members() if name.startswith("coordinator")]
        cluster.kill(*coordinators)
        await cluster.command("start")
        await until(cluster.coordinator_leader, "a coordinator leads again")

        async def same_map() -> bool:
            _, after = await cluster.admin("GET", "/admin/cluster/shard-map")
            return set(after["shards"]) == set(before["shards"]) and after["map_version"] >= before["map_version"]

        await until(same_map, "the coordinators serve the same map")
        _, after = await cluster.admin("GET", "/admin/cluster/shard-map")
        for shard_id, shard in before["shards"].items():
            assert after["shards"][shard_id]["replicas"] == shard["replicas"]
            assert after["shards"][shard_id]["epoch"] == shard["epoch"]
        assert after["partitioning"] == before["partitioning"]


async def test_a_gateway_starts_while_the_coordinator_leader_is_down(tmp_path: Path) -> None:
    async with running(tmp_path, shards=SHARDS, gateways=1) as cluster:
        client = Client(cluster.gateway_address())
        assert (await client.put(b"before", b"1")).status.code == 1
        await client.close()
        cluster.kill(await cluster.coordinator_leader(), "gateway")
        await cluster.command("start", "gateway")
        client = Client(cluster.gateway_address())

        async def served() -> bool:
            reply = await client.get(b"before", timeout=2)
            return reply.status.code == 1 and reply.kv.value == b"1"

        await until(served, "the restarted gateway serves")
        assert (await client.put(b"after", b"2")).status.code == 1
        await client.close()


async def test_any_bytes_survive_a_restart(tmp_path: Path) -> None:
    rows = {
        b"plain": b"value",
        b"empty": b"",
        b"zero": b"\x00",
        b"lines": b"a\nSET other x\r\nb",
        b"key with spaces": b"  spaced  ",
        b"\xff": b"\xfe\xfd not utf-8",
        b"\xfe": b"another",
        b"\x00": b"zero key",
        b"new\nline": b"(nil)",
        b"k" * 1024: b"v" * (1 << 20),
    }
    async with running(tmp_path, shards=SHARDS, gateways=1) as cluster:
        client = Client(cluster.gateway_address())
        for key, value in rows.items():
            assert (await client.put(key, value)).status.code == 1, key
        assert (await client.get(b"never written")).status.code == 3
        cluster.kill(*(name for name in cluster.members() if name.startswith("node")))
        await cluster.command("start")

        async def all_there() -> bool:
            for key, value in rows.items():
                reply = await client.get(key, timeout=5)
                if reply.status.code in (9, 10, 12):
                    return False
                assert (reply.status.code, reply.kv.value) == (1, value), key
            return True

        await until(all_there, "every row is intact")
        await client.close()


async def test_sixteen_writers_on_one_key_leave_equal_replicas(tmp_path: Path) -> None:
    async with running(tmp_path, shards=SHARDS) as cluster:
        clients = [Client(cluster.gateway_address(1 + n % 2)) for n in range(16)]

        async def write(n: int) -> int:
            done = 0
            for round_number in range(150):
                reply = await clients[n].put(b"contended", b"writer %d round %d" % (n, round_number), timeout=60)
                done += reply.status.code == 1
            return done

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(write(n)) for n in range(16)]
        acknowledged = sum(task.result() for task in tasks)
        assert acknowledged == 16 * 150, acknowledged
        found = await replicas_equal(cluster)
        print({shard: sorted(by_node.values())[0][:2] for shard, by_node in found.items()})
        for client in clients:
            await client.close()
