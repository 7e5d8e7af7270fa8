"""KvDB's orders: the configuration that may be changed, and compaction, which reaches the nodes it is meant for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from admin_support import Cluster, FakeShards, storage_node
from flotta_admin import compactions
from flotta_admin.copying import job
from flotta_proto.flotta.operator_pb2 import Job
from flotta_proto.kvdb import coordinator_pb2 as pb

CONFIG = "/admin/config"


@pytest.fixture
async def nodes(web: httpx.AsyncClient) -> AsyncIterator[dict[str, FakeShards]]:
    """Three nodes that answer, and four shards with two replicas, on node-1 and node-2."""
    made = {f"node-{number}": FakeShards() for number in (1, 2, 3)}
    async with AsyncExitStack() as stack:
        for node_id, shards in made.items():
            address = await stack.enter_async_context(storage_node(shards))
            await web.post("/admin/nodes", json={"node_id": node_id, "address": address})
        answer = await web.post("/admin/config/shard-init", json={"num_shards": 4, "replication_factor": 2})
        assert answer.status_code == 200, answer.text
        yield made


def orders(nodes: dict[str, FakeShards]) -> list[list[list[str]]]:
    return [shards.orders for shards in nodes.values()]


async def test_the_replication_factor_is_changed_and_what_was_sent_is_answered(
    web: httpx.AsyncClient, cluster: Cluster, nodes: dict[str, FakeShards]
) -> None:
    answer = await web.post(CONFIG, json={"replication_factor": 3})
    assert (answer.status_code, answer.json()) == (200, {"replication_factor": 3})
    assert answer.headers["x-operation-id"] == "7"
    read = (await web.get(CONFIG)).json()
    assert read["replication_factor"] == 3
    writes = list(cluster.writes)
    for same in ({}, read, {"num_shards": 4}):
        answer = await web.post(CONFIG, json=same)
        assert (answer.status_code, answer.json()) == (200, same)
        assert "x-operation-id" not in answer.headers
    assert cluster.writes == writes, "what is so already is not asked for again"


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ({"num_shards": 6}, 412, "num_shards: shards divide, not 6"),
        ({"num_shards": 8, "replication_factor": 3}, 412, "num_shards: change it and replication_factor one after"),
        ({"replication_factor": 0}, 400, "replication_factor"),
        ({"replication_factor": "3"}, 400, "replication_factor"),
        ({"cache_size": 1}, 400, "cache_size: there is no such field"),
        ([], 400, "body"),
    ],
)
async def test_what_cannot_be_configured_is_refused_and_changes_nothing(
    web: httpx.AsyncClient, cluster: Cluster, nodes: dict[str, FakeShards], sent: Any, status: int, words: str
) -> None:
    before, writes = cluster.state.SerializeToString(deterministic=True), list(cluster.writes)
    answer = await web.post(CONFIG, json=sent)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["message"]
    assert (cluster.state.SerializeToString(deterministic=True), cluster.writes) == (before, writes)


async def test_the_number_of_shards_is_changed_by_its_own_route_and_by_the_configuration(
    web: httpx.AsyncClient, cluster: Cluster, nodes: dict[str, FakeShards]
) -> None:
    answer = await web.post("/admin/tables/default/shards", json={"num_shards": 8})
    assert answer.status_code == 200, answer.text
    operation = answer.json()["operation"]
    assert (operation["id"], operation["operation"], operation["subject"]) == (8, "shard-count", "default")
    answer = await web.post(CONFIG, json={"num_shards": 16})
    assert (answer.status_code, answer.json(), answer.headers["x-operation-id"]) == (200, {"num_shards": 16}, "8")
    assert (await web.get(CONFIG)).json()["num_shards"] == 16
    for body, status in (({"num_shards": 17}, 412), ({"num_shards": 0}, 400), ({}, 400)):
        refused = await web.post("/admin/tables/default/shards", json=body)
        assert refused.status_code == status, refused.text
        assert "num_shards" in refused.json()["message"]


async def test_before_shard_init_there_is_nothing_to_configure_or_compact(web: httpx.AsyncClient) -> None:
    for path in (CONFIG, "/admin/ops/compact"):
        answer = await web.post(path, json={})
        assert answer.status_code == 412
        assert "shard-init" in answer.json()["message"]


async def test_a_compaction_goes_to_every_node_that_lives(
    web: httpx.AsyncClient, cluster: Cluster, nodes: dict[str, FakeShards]
) -> None:
    body = {"operation": "compact", "parameters": None, "target_shards": None, "target_nodes": []}
    for path in ("/admin/ops/compact", "/admin/ops/trigger"):
        answer = await web.post(path, json=body)
        assert (answer.status_code, answer.json()) == (200, body)
        assert answer.headers["x-replicas"] == "15"
    assert orders(nodes) == [[[], []]] * 3
    cluster.state.nodes["node-2"].status = pb.DEAD
    answer = await web.post("/admin/ops/compact", json={})
    assert answer.headers["x-replicas"] == "10"


async def followed(cluster: Cluster, number: int, check: Callable[[Job], bool]) -> Job:
    async with asyncio.timeout(60):
        while not check(cluster.jobs[number]):  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.02)
    return cluster.jobs[number]


async def test_a_compaction_is_followed_to_its_end(
    web: httpx.AsyncClient, cluster: Cluster, nodes: dict[str, FakeShards], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compactions, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(job, "REPORT_EVERY_S", 0.02)
    nodes["node-1"].left, nodes["node-2"].left = 5, 2
    answer = await web.post("/admin/ops/compact", json={})
    number = int(answer.headers["x-operation-id"])
    assert (await followed(cluster, number, lambda job: job.left < 15)).left == 7
    nodes["node-1"].left = nodes["node-2"].left = 0
    ended = await followed(cluster, number, lambda job: job.status != "RUNNING")
    assert (ended.status, ended.outcome, ended.left) == ("DONE", "15 replicas are compacted", 0)
    assert not any(node.dropped for node in nodes.values())


async def test_a_compaction_that_is_called_off_is_dropped_by_the_nodes(
    web: httpx.AsyncClient, cluster: Cluster, nodes: dict[str, FakeShards], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "REPORT_EVERY_S", 0.02)
    for node in nodes.values():
        node.left = 5
    number = int((await web.post("/admin/ops/compact", json={})).headers["x-operation-id"])
    cluster.jobs[number].status = "CANCELLED"
    async with asyncio.timeout(60):
        while not all(node.dropped for node in nodes.values()):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)


async def test_a_compaction_that_cannot_be_asked_after_is_given_up(
    web: httpx.AsyncClient, cluster: Cluster, nodes: dict[str, FakeShards], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compactions, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(compactions, "SILENCES_MAX", 3)

    nodes["node-2"].away = True
    number = int((await web.post("/admin/ops/compact", json={})).headers["x-operation-id"])
    ended = await followed(cluster, number, lambda job: job.status != "RUNNING")
    assert ended.status == "FAILED" and "it is away" in ended.outcome


async def test_a_compaction_of_some_shards_goes_to_those_that_hold_them(
    web: httpx.AsyncClient, nodes: dict[str, FakeShards]
) -> None:
    await web.post("/admin/ops/compact", json={"target_shards": ["shard-1", "shard-0"]})
    assert orders(nodes) == [[["shard-0", "shard-1"]], [["shard-0", "shard-1"]], []]
    await web.post("/admin/ops/compact", json={"target_shards": ["shard-1"], "target_nodes": ["node-2", "node-3"]})
    assert orders(nodes) == [[["shard-0", "shard-1"]], [["shard-0", "shard-1"], ["shard-1"]], []]


async def test_wrong_targets_are_named_and_nobody_is_asked(
    web: httpx.AsyncClient, nodes: dict[str, FakeShards]
) -> None:
    for path, body, status, words in (
        ("compact", {"target_nodes": ["node-9"]}, 404, "target_nodes: node not found: node-9"),
        ("compact", {"target_shards": ["shard-9"]}, 404, "target_shards: shard not found: shard-9"),
        ("trigger", {"operation": "explode"}, 400, "operation: it must be REBALANCE or COMPACT, not 'explode'"),
        ("trigger", {}, 400, "operation"),
        ("rebalance", {"target_nodes": ["node-1"]}, 400, "target_nodes"),
    ):
        answer = await web.post(f"/admin/ops/{path}", json=body)
        assert (answer.status_code, words in answer.json()["message"]) == (status, True), answer.text
    assert orders(nodes) == [[], [], []]


async def test_a_node_that_does_not_answer_is_named(
    web: httpx.AsyncClient, cluster: Cluster, nodes: dict[str, FakeShards]
) -> None:
    cluster.state.nodes["node-2"].address = "127.0.0.1:1"
    answer = await web.post("/admin/ops/compact", json={})
    assert answer.status_code == 503
    assert "1 of 3 nodes" in answer.json()["message"] and "node-2" in answer.json()["message"]
    assert orders(nodes) == [[[]], [], [[]]]
