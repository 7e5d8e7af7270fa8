"""A real coordinator over nodes that a test speaks for: what the caretaker has done, and what it says of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from coordinator_harness import CALL_S, Client, Coordinators, eventually, join_nodes, report_leaders
from flotta_proto.flotta import cluster_pb2
from flotta_proto.flotta import operator_pb2 as operator
from flotta_proto.flotta.operator_pb2_grpc import OperatorStub
from flotta_proto.kvdb import coordinator_pb2 as pb

HASTE = {
    "liveness_check_ms": 100,
    "suspect_after_ms": 1_000,
    "dead_after_ms": 1_500,
    "plan_every_ms": 50,
    "replace_after_ms": 100,
    "settle_ms": 100,
    "move_stall_ms": 700,
}


class Nodes:
    """Storage nodes as the coordinator sees them; the leader of shard-0 tells what `lag` and `voters` say."""

    def __init__(self, client: Client, count: int) -> None:
        self.client = client
        self.beating = {f"node-{number}" for number in range(1, count + 1)}
        self.lag: int | None = None
        self.voters: list[int] = []
        self.epoch = 1

    async def run(self) -> None:
        while True:
            for node_id in sorted(self.beating):
                store = f"store-{node_id.removeprefix('node-')}"
                await self.client.heartbeat(node_id, store, await self._reports(node_id))
            await asyncio.sleep(0.05)

    async def _reports(self, node_id: str) -> list[cluster_pb2.ShardReport]:
        shard = await self.shard()
        if shard is None or shard.leader != node_id:
            return []
        members = {member.node_id: member.replica_id for member in shard.detail.members}
        voters = self.voters or list(members.values())
        coming = [target.replica_id for target in shard.detail.targets if target.replica_id not in voters]
        progress = None
        if self.lag is not None and coming:
            lags = [cluster_pb2.ReplicaLag(replica_id=replica, entries=self.lag) for replica in coming]
            progress = cluster_pb2.MoveProgress(lags=lags, waits_for="replicas are still catching up")
        return [
            cluster_pb2.ShardReport(
                shard_id="shard-0",
                group_id=shard.detail.group_id,
                epoch=self.epoch,
                term=shard.detail.leader_term,
                leader_replica=members[node_id],
                voters=voters,
                conf_index=self.epoch,
                moving=bool(coming),
                progress=progress,
            )
        ]

    async def shard(self) -> pb.ShardRecord | None:
        return (await self.client.map()).shards.get("shard-0")

    async def targets(self) -> list[pb.ReplicaRef]:
        shard = await self.shard()
        return [] if shard is None else list(shard.detail.targets)

    async def decided(self, words: str) -> list[str]:
        request = cluster_pb2.ListDecisionsRequest(limit=1_000)
        told = await self.client.cluster.ListDecisions(request, metadata=self.client.metadata, timeout=CALL_S)
        return [one.reason for one in told.decisions if words in one.reason]

    async def decided_times(self, words: str, times: int) -> None:
        async def so_often() -> bool:
            return len(await self.decided(words)) >= times

        await eventually(so_often, f"{words!r}, {times} times")

    async def explained(self) -> cluster_pb2.ExplainShardResponse:
        request = cluster_pb2.ExplainShardRequest(shard_id="shard-0")
        return await self.client.cluster.ExplainShard(request, metadata=self.client.metadata, timeout=CALL_S)


@asynccontextmanager
async def living(root: Path, count: int, **settings: int) -> AsyncIterator[Nodes]:
    """One coordinator, one shard of three replicas on the first of so many nodes, all of them alive."""
    cluster = Coordinators(root, 1, **{**HASTE, **settings})
    await cluster.start()
    try:
        client = cluster.client("c1")
        nodes = Nodes(client, count)
        await join_nodes(client, count)
        assert (await client.init(1, 3)).success
        await report_leaders(client)
        beats = asyncio.create_task(nodes.run())
        try:
            yield nodes
        finally:
            beats.cancel()
    finally:
        await cluster.close()


async def test_a_move_that_comes_no_closer_goes_elsewhere_and_is_told_of_on_the_way(tmp_path: Path) -> None:
    async with living(tmp_path, 5) as nodes:
        nodes.lag = 500
        nodes.beating.remove("node-2")
        first = await eventually(nodes.targets, "node-2 is replaced")
        (coming,) = {target.node_id for target in first} - {"node-1", "node-3"}

        async def told() -> list[str]:
            return [line for line in (await nodes.explained()).now if "lacks 500 entries" in line]

        assert await eventually(told, "the new replica's lag is known") == [
            f"the new replica on {coming} lacks 500 entries of the log"
        ]
        assert (await nodes.explained()).health == "MOVING"
        await eventually(lambda: nodes.decided("has not come closer"), "the move is given up")

        async def elsewhere() -> list[pb.ReplicaRef]:
            return [one for one in await nodes.targets() if one.node_id not in (coming, "node-1", "node-3")]

        (other,) = await eventually(elsewhere, "it goes to the other node")
        assert {coming, other.node_id} == {"node-4", "node-5"}
        targets = [target.replica_id for target in await nodes.targets()]
        nodes.voters, nodes.epoch = targets, 2

        async def healthy() -> bool:
            return (await nodes.explained()).health == "HEALTHY"

        await eventually(healthy, "the shard is where it was wanted")
        assert {member.node_id for member in (await nodes.client.map()).shards["shard-0"].detail.members} == {
            *("node-1", "node-3"),
            other.node_id,
        }


async def test_a_replacement_goes_to_the_zone_that_has_none(tmp_path: Path) -> None:
    async with living(tmp_path, 5) as nodes:
        for node_id, zone in (("node-1", "a"), ("node-2", "b"), ("node-3", "c"), ("node-4", "a"), ("node-5", "b")):
            assert (await nodes.client.register(node_id, f"{node_id}:8001", zone)).success
        nodes.beating.remove("node-2")
        targets = await eventually(nodes.targets, "node-2 is replaced")
        assert {target.node_id for target in targets} == {"node-1", "node-3", "node-5"}
        (reason,) = await nodes.decided("gets a replica on")
        assert "node-5 (zone b)" in reason


async def test_a_node_that_comes_and_goes_is_given_nothing_new_for_a_while(tmp_path: Path) -> None:
    async with living(tmp_path, 4, settle_ms=2_000) as nodes:
        for times in (1, 2):
            nodes.beating.remove("node-4")
            await nodes.decided_times("node-4 is SUSPECT", times)
            nodes.beating.add("node-4")
            await nodes.decided_times("node-4 was SUSPECT and sent a heartbeat", times)
        (told,) = await eventually(lambda: nodes.decided("node-4 came back"), "the planner says so")
        assert told == "node-4 came back 2 times lately: it is given nothing new before it has stayed for 4 s"


async def test_a_shard_that_lost_its_quorum_is_only_reported(tmp_path: Path) -> None:
    async with living(tmp_path, 5) as nodes:
        nodes.beating -= {"node-2", "node-3"}
        (sentence,) = await eventually(lambda: nodes.decided("lost the quorum"), "the loss is noted")
        assert "node-2, node-3 are DEAD" in sentence
        assert (await nodes.explained()).health == "QUORUM_LOST"
        assert await nodes.targets() == []
        nodes.beating |= {"node-3"}
        await eventually(lambda: nodes.decided("no longer so: 1 shard of default"), "it has its quorum again")
        assert await eventually(nodes.targets, "and is mended")


async def test_orders_are_answered_with_their_operation_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    async with living(tmp_path, 4) as nodes:
        client = nodes.client
        orders = OperatorStub(client.grpc)
        drain = operator.DrainNodeRequest(node_id="node-2")
        begun = await orders.DrainNode(drain, metadata=client.metadata, timeout=CALL_S)
        assert (begun.success, begun.job.kind, begun.job.status, begun.job.steps) == (True, "drain", "RUNNING", 1)
        again = await orders.DrainNode(drain, metadata=client.metadata, timeout=CALL_S)
        assert again.job.number == begun.job.number
        await eventually(nodes.targets, "the replica is to leave")
        cancel = operator.CancelJobRequest(number=begun.job.number)
        ended = await orders.CancelJob(cancel, metadata=client.metadata, timeout=CALL_S)
        assert ended.success and ended.job.status == "CANCELLED"
        twice = await orders.CancelJob(cancel, metadata=client.metadata, timeout=CALL_S)
        assert (twice.success, twice.rejection.code) == (False, "FAILED_PRECONDITION")
        listed = await orders.ListJobs(operator.ListJobsRequest(), metadata=client.metadata, timeout=CALL_S)
        assert [job.number for job in listed.jobs] == [begun.job.number]
        await eventually(lambda: nodes.decided("nothing is being drained there any more"), "the move is given up")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            bad = operator.DrainNodeRequest(node_id="a b")
            await orders.DrainNode(bad, metadata=client.metadata, timeout=CALL_S)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
