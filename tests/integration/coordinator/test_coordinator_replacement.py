"""One of the coordinators is lost for good while the others have a quorum: it is given up, an empty directory takes its
place, and the old one stays out.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from unittest import mock

import pytest
from coordinator_harness import CALL_S, Coordinators, eventually, join_nodes
from flotta_consensus.api import node_of
from flotta_coordinator.core.roster_transitions import PLACES
from flotta_coordinator.core.state import Roster as State
from flotta_coordinator.roster import RosterKeeper
from flotta_coordinator.roster_duties import RosterDuties
from flotta_runtime.errors import StartupError
from test_coordinator_roster import Roster, number_of, refused_start


async def test_two_of_three_are_replaced_one_after_the_other(tmp_path: Path, transport: str) -> None:
    cluster = Coordinators(tmp_path, 3, transport=transport)
    try:
        await cluster.start()
        leader = await cluster.leader()
        lost, other = await cluster.followers()
        roster = Roster(cluster.client(other))  # who passes it on
        await join_nodes(cluster.client(leader), 1)
        for name in (leader, lost):
            assert f"{name} is not lost: it " in await roster.replace(name)
        assert "the coordinators are c1, c2, c3, not c9" in await roster.replace("c9")
        before = await cluster.client(leader).map()
        await cluster.stop(lost)
        (tmp_path / lost).rename(tmp_path / "away")
        # An empty directory alone is a forgotten vote.
        await refused_start(cluster, lost, f"recover coordinators --replace {lost}")
        looked = await eventually(lambda: silent(roster, lost), f"{lost} is silent")
        assert f"its data directory (number {lost[1:]}) takes part no more" in looked
        assert not cluster.apps[leader].store.state().roster.replaced
        assert f"{lost} is given up: start it" in await roster.given_up(lost)
        assert f"{lost} is given up already" in await roster.replace(lost)
        assert await cluster.client(leader).map() == before
        first, second, third = (int(name[1:]) for name in (leader, other, lost))
        await eventually(lambda: vote(cluster, first, second), f"{lost} votes no more")
        assert (await cluster.client(leader).hello("node-2", "store-2")).accepted

        await cluster.start(lost)
        await eventually(lambda: vote(cluster, first, second, third + PLACES), "all three vote again")
        assert number_of(cluster.apps[lost]) == third + PLACES
        assert f"{lost} is not lost: it answers" in await roster.replace(lost)
        await cluster.stop(lost, leader)
        await cluster.start(lost)  # only `other` answers, which has met its predecessor
        await cluster.leader()
        await cluster.start(leader)
        await cluster.stop(other)
        shutil.rmtree(tmp_path / other)
        roster = Roster(cluster.client(lost))
        assert f"{other} is given up: start it" in await roster.given_up(other)
        await cluster.start(other)
        numbers = (first, second + 2 * PLACES, third + PLACES)
        await eventually(lambda: vote(cluster, *numbers), "all three vote again, and only they")
        assert number_of(cluster.apps[other]) == second + 2 * PLACES

        await cluster.stop(lost)
        (tmp_path / lost).rename(tmp_path / "newer")
        (tmp_path / "away").rename(tmp_path / lost)
        # Who has met both says the second, and it depends on who leads when who has.
        words = f"went on without the data directory of {lost}|knows {lost} with another data directory"
        await refused_start(cluster, lost, words)
        shutil.rmtree(tmp_path / lost)
        (tmp_path / "newer").rename(tmp_path / lost)
        await cluster.start(lost)
        await cluster.stop(leader)
        await cluster.leader()  # of the two that came with empty directories
        assert set((await cluster.client(lost).map()).nodes) == {"node-1", "node-2"}
        kinds = [one.kind for one in cluster.apps[lost].store.state().decisions]
        assert [kinds.count(kind) for kind in ("coordinator-given-up", "coordinator-admitted")] == [2, 2]
    finally:
        await cluster.close()


@pytest.mark.parametrize("transport", ["grpcio"])
@mock.patch("flotta_coordinator.roster.OBJECTIONS_MS", 200)
async def test_the_next_leader_goes_on_where_the_last_one_died(tmp_path: Path, transport: str) -> None:
    """Five coordinators; the leader puts it on record, and dies before the group has changed."""
    cluster = Coordinators(tmp_path, 5, transport=transport)
    busy = asyncio.Event()
    look = RosterDuties._look

    async def unless_idle(duties: RosterDuties, roster: State) -> None:
        if busy.is_set():
            await look(duties, roster)

    with mock.patch.object(RosterDuties, "_look", unless_idle):
        try:
            await cluster.start()
            first = await cluster.leader()
            lost = (await cluster.followers())[0]
            await cluster.stop(lost)
            await Roster(cluster.client(first)).given_up(lost)
            with mock.patch.object(RosterKeeper, "check_objections"):  # as if it reached nobody who knows
                await cluster.start(lost)
            await ends(cluster, lost)
            await eventually(lambda: vote(cluster, 1, 2, 3, 4, 5), "somebody leads, and nothing has changed")
            first = await cluster.leader()
            await cluster.stop(lost)
            shutil.rmtree(tmp_path / lost)
            with mock.patch("flotta_coordinator.app.CoordinatorApp._hand_over"):  # as if it died
                await cluster.stop(first)
            busy.set()
            second = await cluster.leader()
            place, rest = int(lost[1:]), {1, 2, 3, 4, 5} - {int(lost[1:])}
            await eventually(lambda: vote(cluster, *rest), f"{lost} votes no more")
            await cluster.start(lost)
            await eventually(lambda: vote(cluster, *rest, place + PLACES), f"{lost} votes again")
            assert "is not lost: it answers" in await Roster(cluster.client(second)).replace(lost)
        finally:
            await cluster.close()


async def ends(cluster: Coordinators, name: str) -> None:
    async with asyncio.timeout(CALL_S):
        with pytest.raises(StartupError, match=f"went on without the data directory of {name}"):
            await cluster.apps[name].wait()


async def silent(roster: Roster, name: str) -> str:
    """What a dry run says once it is not refused any more."""
    said = await roster.replace(name, dry_run=True)
    return "" if "a moment ago" in said else said


async def vote(cluster: Coordinators, *numbers: int) -> bool:
    """Do just these vote, as the leader has it? By names they would be taken for those that they replace."""
    leader = next((app for app in cluster.apps.values() if app.is_leader), None)
    status = await leader._roster.status() if leader is not None else None
    return status is not None and {node_of(one) for one in status.membership.voters} == set(numbers)
