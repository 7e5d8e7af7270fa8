"""The verbs that show the shard map: `cluster`, `nodes`, `shards`, `watch-map`, and completion from it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeCluster, wait_until
from flotta import cli
from flotta.map_changes import Change, changes
from flotta.shard_map import ShardMap
from flotta_proto.kvdb import coordinator_pb2 as cp
from typer.testing import CliRunner

NOBODY = "127.0.0.1:1"
Run = Callable[..., Awaitable[Any]]


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    made = await FakeCluster().start(nodes=3, shards=4)
    made.state.nodes["node-2"].status = cp.SUSPECT
    made.state.shards["shard-3"].replicas[:] = ["node-1", "node-3"]
    yield made
    await made.stop()


@pytest.fixture
def environ(cluster: FakeCluster, tmp_path: Path) -> dict[str, str]:
    address = cluster.coordinator.address
    return {"FLOTTA_COORDINATORS": address, "FLOTTA_DATA": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}


@pytest.fixture
def flotta_cli(environ: dict[str, str]) -> Run:
    async def run(*arguments: str) -> Any:
        return await asyncio.to_thread(CliRunner(env=environ).invoke, cli.build(), list(arguments))

    return run


async def test_cluster_in_numbers(flotta_cli: Run, cluster: FakeCluster) -> None:
    facts = json.loads((await flotta_cli("cluster", "--json")).stdout)
    assert facts == {
        "cluster_id": "fake",
        "map_version": 5,
        "num_shards": 4,
        "replication_factor": 3,
        "nodes": {"ALIVE": 2, "SUSPECT": 1},
        "shards": {"STABLE": 4},
        "shards_without_leader": 0,
        "coordinators": {cluster.coordinator.address: "leader"},
    }
    shown = await flotta_cli("cluster")
    assert shown.exit_code == 0
    assert "ALIVE 2, SUSPECT 1" in shown.stdout


async def test_nodes_and_shards_as_tables_and_json(flotta_cli: Run) -> None:
    nodes = (await flotta_cli("nodes")).stdout.splitlines()
    assert [line.split()[0] for line in nodes] == ["node", "node-1", "node-2", "node-3"]
    assert nodes[2].split()[2:] == ["SUSPECT", "1", "3"]
    assert [node["status"] for node in json.loads((await flotta_cli("nodes", "--json")).stdout)] == [
        *("ALIVE", "SUSPECT", "ALIVE"),
    ]
    assert len((await flotta_cli("shards")).stdout.splitlines()) == 5
    on_two = json.loads((await flotta_cli("shards", "--node", "node-2", "--json")).stdout)
    assert [shard["shard_id"] for shard in on_two] == ["shard-0", "shard-1", "shard-2"]
    unknown = await flotta_cli("shards", "--node", "node-9")
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert "flotta nodes" in unknown.stderr


@pytest.mark.parametrize("command", ["cluster", "nodes", "shards", "watch-map"])
async def test_nobody_there_says_what_to_do(flotta_cli: Run, command: str) -> None:
    ended = await flotta_cli(command, "--coordinators", NOBODY)
    assert ended.exit_code == 4
    assert NOBODY in ended.stderr
    assert "from --coordinators" in ended.stderr
    assert "flotta dev" in ended.stderr


async def test_changes_are_shown_as_they_happen(flotta_cli: Run, cluster: FakeCluster) -> None:
    for json_ in (False, True):
        watching = asyncio.create_task(flotta_cli("watch-map", "--count", "2", *(["--json"] if json_ else [])))
        await wait_until(lambda: bool(cluster.coordinator.watches))
        first = cluster.state.map_version
        for node in (1, 2):
            cluster.move_leader(
                "shard-0", cluster.nodes[node if json_ else 3 - node], epoch=cluster.shards.epochs["shard-0"] + 1
            )
        ended = await watching
        assert ended.exit_code == 0
        lines = ended.stdout.splitlines()
        await wait_until(lambda: not cluster.coordinator.watches)
        if json_:
            assert [json.loads(line)["map_version"] for line in lines] == [first, first + 1, first + 2]
            assert json.loads(lines[1])["changes"][0]["subject"] == "shard-0"
        else:
            assert lines[0] == f"map {first}: 3 nodes, 4 shards; now waiting"
            assert lines[1] == f"map {first + 1}: shard shard-0: leader node-1 → node-3"
            assert lines[2] == f"map {first + 1}: shard shard-0: epoch 1 → 2"


def test_every_kind_of_change_has_its_sentence() -> None:
    node = cp.NodeRecord(node_id="n", address="h:1", status=cp.ALIVE)
    moved = cp.NodeRecord(node_id="n", address="h:2", zone="z", status=cp.DEAD)
    shard = cp.ShardRecord(shard_id="s", epoch=1, replicas=["n"], leader="n", config_state=cp.STABLE)
    moving = cp.ShardRecord(shard_id="s", epoch=2, replicas=["n", "m"], config_state=cp.MOVING)
    empty = ShardMap(1)
    first = ShardMap(2, num_shards=1, replication_factor=1, nodes={"n": node}, shards={"s": shard})
    second = ShardMap(3, num_shards=1, replication_factor=2, nodes={"n": moved}, shards={"s": moving})
    assert changes(empty, first) == [
        Change("node", "n", "new, ALIVE at h:1"),
        Change("shard", "s", "new, on n, led by n"),
        Change("cluster", "", "shards 0 → 1"),
        Change("cluster", "", "replication factor 0 → 1"),
    ]
    assert [one.text for one in changes(first, second)] == [
        "ALIVE → DEAD",
        "address h:1 → h:2",
        "zone none → z",
        "STABLE → MOVING",
        "replicas n → n, m",
        "leader n → nobody",
        "epoch 1 → 2",
        "replication factor 1 → 2",
    ]
    assert [one.text for one in changes(second, ShardMap(4, num_shards=1, replication_factor=2))] == [
        *("taken off the map", "removed"),
    ]
    assert changes(first, first) == []


async def test_the_shell_completes_commands_nodes_and_shards(environ: dict[str, str]) -> None:
    async def completed(words: str) -> list[str]:
        count = len(words.split(" ")) - 1
        variables = environ | {"_FLOTTA_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
        program = "import sys; sys.argv = ['flotta']; from flotta.cli import main; main()"
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=60
        )
        return done.stdout.split()

    assert await completed("flotta watch") == ["watch-map"]
    assert await completed("flotta drain node-") == ["node-1", "node-2", "node-3"]
    assert await completed("flotta why shard-3") == ["shard-3"]
