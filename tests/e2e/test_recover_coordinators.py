"""Two of three coordinators are lost for good, and the third lacks what nodes have seen of the map: it goes on alone by
an operator's order, data is served all the while, and two new ones take the places of the lost.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import Operator
from flotta_proto.flotta import storage_pb2, storage_pb2_grpc
from flotta_runtime.tls import open_channel
from load import Load, acks_grow, under_load
from process_cluster import ProcessCluster, replicas_equal, running, start_is_refused, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
NAMES = ("coordinator-1", "coordinator-2", "coordinator-3")
GHOSTS = 3
LEAP = 1 << 32


async def register(cluster: ProcessCluster, name: str) -> None:
    """A change of the map that moves nothing: a node that never comes."""
    body = {"node_id": name, "address": "127.0.0.1:1", "zone": "local"}

    async def taken() -> bool:
        status, answer = await cluster.admin("POST", "/admin/nodes", body)
        if status >= 300:
            raise RuntimeError(f"{status}: {answer}")
        return True

    await until(taken, f"{name} is registered")


async def looked(cluster: ProcessCluster, *gone: str) -> dict[str, Any]:
    """What a dry run says."""
    body = {"gone": gone, "dry_run": True}
    status, found = await cluster.admin("POST", "/admin/coordinators/recover", body)
    assert status == 200, found
    answer: dict[str, Any] = found
    return answer


async def nodes_have_seen(cluster: ProcessCluster, version: int) -> bool:
    metadata = (("x-kvdb-internal-token", cluster.internal_token()),)
    for number in range(cluster.nodes):
        async with open_channel(cluster.tls, f"127.0.0.1:{cluster.node_port + number}", ()) as channel:
            stub = storage_pb2_grpc.ShardsStub(channel)
            answer = await stub.Survey(storage_pb2.SurveyRequest(), timeout=10, metadata=metadata)
            if answer.map_version < version:
                return False
    return True


async def test_the_last_coordinator_goes_on_alone_and_others_join_it(tmp_path: Path) -> None:
    async with running(tmp_path, shards=2, gateways=1) as cluster:
        operator = Operator(cluster, tmp_path / "config.toml")
        load = Load([cluster.gateway_address(1)], [b"key %d" % number for number in range(6)])
        leader = await cluster.coordinator_leader()
        heir = next(name for name in NAMES if name != leader)
        lost = [name for name in NAMES if name != heir]
        named = [word for name in lost for word in ("--gone", name)]
        assert "there is no coordinator coordinator-9" in (await looked(cluster, "coordinator-9"))["refused"]

        async def is_there() -> bool:
            return "is not lost" in (await looked(cluster, heir))["refused"]

        await until(is_there, f"{heir} answers")
        assert "the coordinators have a quorum" in (await looked(cluster))["refused"]
        async with under_load(load):
            cluster.kill(heir)
            for number in range(GHOSTS):
                await register(cluster, f"ghost-{number}")
            seen = await cluster.map_version()
            await until(lambda: nodes_have_seen(cluster, seen), "all nodes have the map that the heir lacks")
            cluster.kill(*lost)
            await cluster.command("start", heir)

            async def plan() -> dict[str, Any] | None:
                found = await looked(cluster, *lost)
                return None if found["refused"] else found

            found: dict[str, Any] = await until(plan, f"{heir} knows that nobody leads")
            assert found["node_id"] == heir and found["seen_map_version"] == seen
            lacks = seen - found["map_version"]
            assert lacks >= GHOSTS and f"it lacks up to {lacks} changes" in found["message"], found
            assert "do not answer" in (await looked(cluster))["refused"]
            assert "does not answer" in await operator.run("recover", "coordinators", *named[:2], code=3)
            assert "done: " in await operator.run("recover", "coordinators", *named, "--unsafe", "--yes")
            again = {"gone": lost, "confirm": heir}
            status, refused = await cluster.admin("POST", "/admin/coordinators/recover", again)
            assert status == 412 and f"in touch with {heir}" in refused["message"], refused

            await register(cluster, "ghost-9")
            now = await cluster.map_version()
            assert now > seen + LEAP
            await until(lambda: nodes_have_seen(cluster, now), "all nodes follow the recovered map")
            shard = next(iter((await cluster.shards()).values()))
            follower = next(node for node in shard["replicas"] if node != shard["leader"])
            await operator.run("transfer", shard["shard_id"], follower)

            async def handed_over() -> bool:
                return bool((await cluster.shards())[shard["shard_id"]]["leader"] == follower)

            await until(handed_over, f"{follower} leads {shard['shard_id']}")
            await acks_grow(load, load.keys)
            assert "went on without the data directory" in await start_is_refused(cluster, lost[0])
            for name in lost:
                shutil.rmtree(tmp_path / "data" / name)
            await cluster.command("start", *lost)

            async def all_vote() -> bool:
                return (await looked(cluster))["voters"] == sorted(NAMES)

            await until(all_vote, "all three vote")
            cluster.kill(heir)
            await register(cluster, "ghost-10")
            await acks_grow(load, load.keys)
        _, told = await cluster.admin("GET", "/admin/decisions?limit=1000")
        reasons = {one["kind"]: one["reason"] for one in told["decisions"]}
        assert "changes of the map" in reasons["coordinators-recovered"] and "coordinator-admitted" in reasons
        await load.verify(cluster.gateway_address(1))
        await replicas_equal(cluster)
