"""Coordinators that lost their quorum for good: one goes on alone, others take the places of the lost, and whoever was
given up stays out.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import grpc.aio
import pytest
from coordinator_harness import CALL_S, Client, Coordinators, eventually, join_nodes, report_leaders
from flotta_coordinator.core.roster_transitions import PLACES, VERSION_LEAP
from flotta_proto.flotta import roster_pb2, roster_pb2_grpc
from flotta_runtime.errors import StartupError


class Roster:
    """The calls of one coordinator that the recovery is made of."""

    def __init__(self, client: Client) -> None:
        self._stub = roster_pb2_grpc.RosterStub(client.grpc)
        self._metadata = client.metadata

    async def survey(self) -> roster_pb2.RosterSurvey:
        request = roster_pb2.RosterSurveyRequest()
        return await self._stub.Survey(request, metadata=self._metadata, timeout=CALL_S, wait_for_ready=True)

    async def seize(self, seen: roster_pb2.RosterSurvey, *gone: str, **more: Any) -> roster_pb2.SeizeRosterResponse:
        request = roster_pb2.SeizeRosterRequest(
            replica=seen.replica, last_term=seen.last_term, last_index=seen.last_index, gone=gone, **more
        )
        return await self._stub.Seize(request, metadata=self._metadata, timeout=CALL_S)

    async def replace(self, name: str, **more: Any) -> str:
        """What was done; or, behind `refused: `, why it was not."""
        request = roster_pb2.ReplaceCoordinatorRequest(node_id=name, **more)
        try:
            reply = await self._stub.Replace(request, metadata=self._metadata, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION, error
            return f"refused: {error.details()}"
        return str(reply.message)

    async def given_up(self, name: str) -> str:
        """The same, once nobody has heard of it for a while, and the others follow the leader."""

        async def done() -> str:
            said = await self.replace(name)
            return "" if "a moment ago" in said or "are no quorum" in said else said

        said: str = await eventually(done, f"{name} is still heard of, or others are not")
        return said

    async def refused(self, seen: roster_pb2.RosterSurvey, *gone: str, **more: Any) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.seize(seen, *gone, **more)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        return caught.value.details() or ""


async def leaderless(roster: Roster) -> roster_pb2.RosterSurvey:
    """What it holds, once it knows that nobody leads."""

    async def look() -> roster_pb2.RosterSurvey | None:
        seen = await roster.survey()
        return None if seen.leader_id else seen

    found: roster_pb2.RosterSurvey = await eventually(look, "it still believes in a leader")
    return found


async def test_one_goes_on_alone_and_others_take_the_places_of_the_lost(tmp_path: Path) -> None:
    cluster = Coordinators(tmp_path, 3)
    try:
        await cluster.start()
        client = cluster.client(await cluster.leader())
        await join_nodes(client, 3)
        await client.init(4, 3)
        await report_leaders(client)
        before = await client.map()
        one = Roster(cluster.client("c1"))
        assert "is in touch with" in await one.refused(await one.survey(), "c2", "c3")
        await cluster.stop("c1")
        unseen = await cluster.client(await cluster.leader()).hello("node-7", "store-7")  # by the one that goes on
        await cluster.stop("c2", "c3")
        await cluster.start("c1")
        seen = await leaderless(one)
        assert list(seen.voters) == ["c1", "c2", "c3"] and set(seen.nodes) == {"node-1", "node-2", "node-3"}
        assert "c3 does not answer c1" in await one.refused(seen, "c2")
        assert (await one.seize(seen, "c2", "c3", dry_run=True)).map_version == before.map_version

        done = await one.seize(seen, "c2", "c3", seen_map_version=before.map_version + 5)
        assert done.map_version >= before.map_version + 5 + VERSION_LEAP
        assert "another by now" in await one.refused(seen, "c2", "c3")
        assert "is in touch with c1" in await one.refused(await one.survey(), "c2", "c3")
        client = cluster.client("c1")
        after = await client.map()
        assert after.shards == before.shards and after.cluster_id == before.cluster_id
        watch = client.watch(before.map_version + 3, records=True)  # of the lost ones
        assert (await anext(watch)).full_state.map_version == done.map_version
        hello = await client.hello("node-4", "store-4")
        assert hello.accepted and hello.node_num > 1 << 16
        again = await client.hello("node-7", "store-7", before.cluster_id, unseen.node_num)
        assert again.accepted and again.node_num == unseen.node_num

        await refused_start(cluster, "c2", "went on without the data directory of c2")
        for name in ("c2", "c3"):
            shutil.rmtree(tmp_path / name)
            await cluster.start(name)
        await eventually(lambda: whole(one), "all three vote again")
        numbers = {name: app.member.coordinators.name(number_of(app)) for name, app in cluster.apps.items()}
        assert numbers == {"c1": "c1", "c2": "c2", "c3": "c3"}
        assert {number_of(cluster.apps[name]) for name in ("c2", "c3")} == {2 + PLACES, 3 + 2 * PLACES}
        assert (await cluster.client("c3").map()).map_version == again.map_version
        await cluster.stop("c3", "c1")
        await cluster.start("c1", "c3")  # the heir, and one under its new number
        await cluster.leader()
        await cluster.stop("c2")
        shutil.rmtree(tmp_path / "c2")
        await refused_start(cluster, "c2", "is known with another data directory")
    finally:
        await cluster.close()


@mock.patch("flotta_coordinator.roster.OBJECTIONS_MS", 200)
async def test_given_up_ones_that_lead_each_other_end_once_they_hear_of_it(tmp_path: Path) -> None:
    cluster = Coordinators(tmp_path, 3)
    try:
        await cluster.start()
        await cluster.leader()
        await cluster.stop("c2", "c3")
        one = Roster(cluster.client("c1"))
        await one.seize(await leaderless(one), "c2", "c3")
        with mock.patch("flotta_coordinator.roster.RosterKeeper.check_objections"):  # as if they could not reach it
            await cluster.start("c2", "c3")
            leading = lambda: next((name for name in ("c2", "c3") if cluster.apps[name].is_leader), "")  # noqa: E731
            leader = await eventually(leading, "they do not elect each other")
        async with asyncio.timeout(CALL_S):
            with pytest.raises(StartupError, match=f"went on without the data directory of {leader}, says c1"):
                await cluster.apps[leader].wait()
    finally:
        await cluster.close()


async def whole(roster: Roster) -> bool:
    return sorted((await roster.survey()).voters) == ["c1", "c2", "c3"]


def number_of(app: Any) -> int:
    number: int = app._directory.identity.node_num
    return number


async def refused_start(cluster: Coordinators, name: str, words: str) -> None:
    with pytest.raises(StartupError, match=words):
        async with asyncio.timeout(CALL_S):
            await cluster.start(name)
            await cluster.apps[name].wait()  # on a slow machine the objection may come after the start
    await cluster.stop(name)
