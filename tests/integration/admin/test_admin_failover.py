"""The admin service and coordinators that fail, follow, lag and hang."""

from __future__ import annotations

import asyncio

import httpx
from admin_support import Cluster, add_nodes, admin, client
from flotta_proto.kvdb import coordinator_pb2 as pb
from pydantic import SecretStr


async def test_hints_lead_to_the_leader_wherever_it_is(cluster: Cluster, web: httpx.AsyncClient) -> None:
    for leader in (2, 1, 0):
        cluster.follow(leader)
        await add_nodes(web, 1)
        assert (await web.get("/admin/nodes")).status_code == 200


async def test_a_leader_outside_the_list_is_followed(cluster: Cluster) -> None:
    cluster.follow(2)
    async with admin(cluster.addresses[:1]) as service, client(service) as web:
        await add_nodes(web, 1)


async def test_dead_coordinators_are_passed_over_and_come_back(cluster: Cluster, web: httpx.AsyncClient) -> None:
    await add_nodes(web, 1)
    cluster.follow(1)
    gone = cluster.members[0]
    await gone.server.stop(0)
    assert (await web.get("/admin/nodes")).status_code == 200
    await gone.start(gone.address)
    cluster.follow(0)
    assert (await web.get("/admin/nodes")).status_code == 200


async def test_an_election_in_between_is_waited_for(cluster: Cluster, web: httpx.AsyncClient) -> None:
    cluster.follow(-1)
    request = asyncio.create_task(web.get("/admin/nodes"))
    await asyncio.sleep(0.05)
    assert not request.done()
    cluster.follow(2)
    assert (await request).status_code == 200


async def test_no_leader_for_too_long_is_503_and_changes_nothing(cluster: Cluster) -> None:
    async with admin(cluster.addresses, request_timeout_ms=1_000) as service, client(service) as web:
        assert (await web.get("/admin/nodes")).status_code == 200  # connected
        cluster.follow(-1)
        answer = await web.post("/admin/nodes", json={"node_id": "n", "address": "h:1", "zone": ""})
        assert answer.status_code == 503
        assert answer.json()["error"] == "UNAVAILABLE"
        assert "no leader" in answer.json()["message"]
    assert cluster.writes == []
    async with admin(("127.0.0.1:1",), request_timeout_ms=200) as service, client(service) as web:
        assert (await web.get("/admin/nodes")).status_code == 503


async def test_a_leader_that_nobody_can_name_gives_503_with_its_error(cluster: Cluster) -> None:
    """Two members that point at each other: the hints lead nowhere, and the request ends in time."""
    async with admin(cluster.addresses[:2], request_timeout_ms=200) as service, client(service) as web:
        cluster.follow(2)
        await cluster.members[2].server.stop(0)
        answer = await web.get("/admin/nodes")
        assert answer.status_code == 503


async def test_a_read_that_hangs_is_asked_elsewhere(cluster: Cluster) -> None:
    async with admin(cluster.addresses, call_timeout_ms=100) as service, client(service) as web:
        cluster.members[0].hang = True
        cluster.follow(1)
        assert (await web.get("/admin/nodes")).status_code == 200


async def test_a_write_whose_outcome_is_unknown_is_504_and_not_repeated(cluster: Cluster) -> None:
    async with admin(cluster.addresses, request_timeout_ms=1_000) as service, client(service) as web:
        assert (await web.get("/admin/nodes")).status_code == 200  # connected
        cluster.members[0].hang_after_write = True
        answer = await web.post("/admin/nodes", json={"node_id": "n", "address": "h:1", "zone": ""})
        assert answer.status_code == 504
        assert answer.json()["error"] == "TIMEOUT"
        await asyncio.sleep(0.2)
        assert cluster.writes == ["RegisterNode"]


async def test_a_lagging_coordinator_never_hides_a_write(cluster: Cluster, web: httpx.AsyncClient) -> None:
    await add_nodes(web, 1)
    old = pb.ClusterState()
    old.CopyFrom(cluster.state)
    cluster.follow(2)
    for lagging in cluster.members[:2]:
        lagging.stale = old
    answer = await web.post("/admin/nodes", json={"node_id": "node-2", "address": "h:2", "zone": ""})
    assert answer.status_code == 200
    for _ in range(6):
        assert len((await web.get("/admin/nodes")).json()) == 2


async def test_a_cluster_made_anew_is_not_taken_for_a_lagging_one(cluster: Cluster, web: httpx.AsyncClient) -> None:
    await add_nodes(web, 3)
    cluster.state = pb.ClusterState(cluster_id="c-2")
    await add_nodes(web, 1)
    assert len((await web.get("/admin/nodes")).json()) == 1


async def test_a_coordinator_that_breaks_is_500_with_its_words(cluster: Cluster, web: httpx.AsyncClient) -> None:
    cluster.members[0].broken = True
    answer = await web.get("/admin/nodes")
    assert answer.status_code == 500
    assert answer.json()["error"] == "INTERNAL_ERROR"
    assert answer.json()["code"] == "500"


async def test_a_wrong_internal_token_is_not_blamed_on_the_caller(cluster: Cluster) -> None:
    async with admin(cluster.addresses, internal_token=SecretStr("other")) as service, client(service) as web:
        answer = await web.post("/admin/nodes", json={"node_id": "n", "address": "h:1", "zone": ""})
        assert answer.status_code == 502
        assert "internal token" in answer.json()["message"]


async def test_the_admin_load_loop(cluster: Cluster) -> None:
    """The shape of KvDB's admin load test: everybody initialises and registers again and again, at the same time."""
    async with (
        admin(cluster.addresses, request_timeout_ms=60_000, call_timeout_ms=60_000) as service,
        client(service) as web,
    ):
        await load_loop(cluster, web)


async def load_loop(cluster: Cluster, web: httpx.AsyncClient) -> None:
    cluster.follow(1)
    await add_nodes(web, 2)

    async def user(number: int) -> None:
        for i in range(4):
            init = await web.post("/admin/config/shard-init", json={"num_shards": 8, "replication_factor": 2})
            assert init.status_code == 200, init.text
            node = 1 + (number + i) % 2
            body = {"node_id": f"node-{node}", "address": f"localhost:800{node}", "zone": "z"}
            assert (await web.post("/admin/nodes", json=body)).status_code == 200
            for path in ("/admin/cluster/summary", "/admin/nodes", "/admin/shards"):
                assert (await web.get(path)).status_code == 200
            if i == 1:
                cluster.follow(number % 3)

    async with asyncio.TaskGroup() as group:
        for number in range(25):
            group.create_task(user(number))
    summary = (await web.get("/admin/cluster/summary")).json()
    assert (summary["total_nodes"], summary["total_shards"], summary["map_version"]) == (2, 8, 3)
    assert cluster.writes.count("InitShards") == 100
