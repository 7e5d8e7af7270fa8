"""Three GroupHosts over links and over gRPC, threaded Raft hosts and files: the life of a group."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from consensus_cluster import GROUP, OPTIONS, STEP_MS, Cluster, Process, equal, replica, until, voters_of, write
from consensus_disk_machine import DiskMachine
from flotta_consensus.aio import HostClosed
from flotta_consensus.api import Committed, Members, ReadReady, Rejected, RejectReason, Unknown
from flotta_consensus.opening import MissingMachine
from flotta_native import HostFailed


@pytest.fixture(params=["native", "grpcio"])
async def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path, native=request.param == "native")
    yield made
    await made.stop()


async def test_elect_write_read_and_restart(cluster: Cluster) -> None:
    processes = await cluster.bear(3)
    rows = [f"row-{number}" for number in range(2_000)]
    done = await write(cluster, rows[:1_000])
    assert [each.index for each in done] == sorted(each.index for each in done)
    await write(cluster, rows[1_000:])
    assert await equal(processes) == rows
    [outcome] = await write(cluster, ["reject me"])
    assert outcome.result == "rejected"
    # Only now: a slow disk may have cost the first leader its place.
    leader = await cluster.leader()
    follower = next(process for process in processes if process is not leader)
    barrier = await follower.host.read_barrier(GROUP, STEP_MS)
    assert isinstance(barrier, ReadReady) and barrier.index >= outcome.index
    refused = await follower.host.propose(GROUP, b"x", STEP_MS)
    assert refused == Rejected(RejectReason.NOT_LEADER, replica(leader.node_num))
    for process in processes:
        await process.stop()
    for process in processes:
        await process.start()
    await write(cluster, ["after"])
    assert await equal(processes) == [*rows, "after"]


async def test_a_follower_that_was_away_catches_up_and_leadership_moves_to_it(cluster: Cluster) -> None:
    processes = await cluster.bear(3)
    await write(cluster, ["a"])
    leader = await cluster.leader()
    away, other = (process for process in processes if process is not leader)
    await away.stop()
    here = [leader, other]
    await write(cluster, [f"b{number}" for number in range(100)], here)
    await away.start()
    await equal(processes)
    await until(lambda: away.host.role(GROUP) is not None, "a role")
    while not (role := away.host.role(GROUP)) or not role.is_leader:
        (await cluster.leader()).host.transfer_leader(GROUP, replica(away.node_num))
        await asyncio.sleep(0.1)
    done = await write(cluster, ["c"], [away])
    assert done[0].term == role.term
    assert len(await equal(processes)) == 102


async def test_snapshots_learners_joint_changes_and_tombstones(cluster: Cluster) -> None:
    processes = await cluster.bear(3)
    big = ["x" * 1_000 + str(number) for number in range(600)]
    await write(cluster, big[:300])
    await write(cluster, big[300:])
    leader = await cluster.leader()

    async def compacted() -> None:
        while True:
            status = await leader.host.status(GROUP)
            assert status is not None
            if status.first_index > 2:
                return
            await write(cluster, ["filler" * 100])

    await asyncio.wait_for(compacted(), STEP_MS / 1000)
    # An empty replica gets everything by snapshot.
    newcomer = await cluster.add(4)
    await newcomer.host.create_group(GROUP, replica(4), [], newcomer.new_machine())
    added = await leader.host.change_membership(GROUP, [("learner", replica(4))], STEP_MS)
    assert isinstance(added, Committed) and added.result == replace(voters_of(1, 2, 3), learners=(replica(4),))
    await until(lambda: newcomer.machine().index >= added.index, "the learner has the change that added it")
    everyone = [*processes, newcomer]
    await equal(everyone)
    await until(lambda: not list((newcomer.root / "incoming").iterdir()), "the received file was deleted")
    # One joint change: the learner votes, a voter leaves. The leader stays.
    leaving = next(process for process in processes if process is not leader)
    changes = [("voter", replica(4)), ("remove", replica(leaving.node_num))]
    changed = await leader.host.change_membership(GROUP, changes, STEP_MS)  # type: ignore[arg-type]
    assert isinstance(changed, Committed)
    staying = [process for process in everyone if process is not leaving]
    expected = voters_of(*(process.node_num for process in staying))
    await until(lambda: all(process.machine().members() == expected for process in staying), "the joint change left")
    await leaving.host.remove_group(GROUP)
    assert leaving.host.groups() == [] and not (leaving.root / "state" / str(GROUP)).exists()
    assert leaving.host.tombstones() == {GROUP: [replica(leaving.node_num)]}
    gone = await leaving.host.propose(GROUP, b"x", STEP_MS)
    assert gone == Rejected(RejectReason.UNKNOWN_GROUP)
    await write(cluster, ["after"], staying)
    await equal(staying)
    # The removed replica is not resurrected, neither now nor after a restart.
    await leaving.stop()
    await leaving.start()
    machine = leaving.new_machine(birth=[replica(leaving.node_num)])
    with pytest.raises(ValueError, match="was removed for good"):
        await leaving.host.create_group(GROUP, replica(leaving.node_num), [replica(leaving.node_num)], machine)
    machine.destroy()
    # The same node may come back as another replica.
    await leaving.host.create_group(GROUP, replica(leaving.node_num, 2), [], leaving.new_machine())
    back = await cluster.leader(staying)
    await back.host.change_membership(GROUP, [("learner", replica(leaving.node_num, 2))], STEP_MS)
    await until(lambda: leaving.machine().index > 0, "the new replica got its state")
    await equal([*staying, leaving])


async def test_a_follower_left_behind_gets_a_snapshot_and_restarts_from_it(cluster: Cluster) -> None:
    processes = await cluster.bear(3)
    await write(cluster, ["first"])
    leader = await cluster.leader()
    away, other = (process for process in processes if process is not leader)
    await away.stop()
    here = [leader, other]

    async def fill() -> None:
        while True:
            current = await cluster.leader(here)
            await write(cluster, ["y" * 2_000] * 100, here)
            status = await current.host.status(GROUP)
            if status is not None and status.first_index > 200:
                return

    await asyncio.wait_for(fill(), STEP_MS / 1000)
    await away.start()
    await equal(processes)
    assert away.machine().durable_index() > 100
    await away.stop()
    await away.start()
    await write(cluster, ["last"])
    assert (await equal(processes))[-1] == "last"


async def test_a_partitioned_leader_answers_unknown_and_serves_no_reads(cluster: Cluster) -> None:
    processes = await cluster.bear(3)
    await write(cluster, ["before"])
    old = await cluster.leader()
    others = [process for process in processes if process is not old]
    old.muted = {process.node_num for process in others}
    for process in others:
        process.muted = {old.node_num}
    outcome, read = await asyncio.gather(
        old.host.propose(GROUP, b"lost or not", 200), old.host.read_barrier(GROUP, 400)
    )
    assert isinstance(outcome, Unknown) or (
        isinstance(outcome, Rejected) and outcome.reason in (RejectReason.NOT_LEADER, RejectReason.LOST)
    )
    assert not isinstance(read, ReadReady)
    await write(cluster, ["while apart"], others)
    for process in processes:
        process.muted = set()
    await write(cluster, ["together"], others)
    rows = await equal(processes)
    assert rows in (["before", "while apart", "together"], ["before", "lost or not", "while apart", "together"])
    # The old leader's first read after the heal sees what was written without it.
    ready = await old.host.read_barrier(GROUP, STEP_MS)
    assert isinstance(ready, ReadReady) and old.machine().rows == rows


async def test_barriers_see_every_write_that_ended_before_they_began(cluster: Cluster) -> None:
    processes = await cluster.bear(3)
    await write(cluster, ["0"])
    written = 1
    stop = False
    seen = 0

    async def reader(process: Process) -> None:
        nonlocal seen
        while not stop:
            floor = written
            outcome = await process.host.read_barrier(GROUP, STEP_MS)
            assert isinstance(outcome, ReadReady)
            assert len(process.machine().rows) >= floor
            seen += 1

    async with asyncio.TaskGroup() as tasks:
        for process in processes:
            tasks.create_task(reader(process))
        for number in range(1, 150):
            await write(cluster, [str(number)])
            written += 1
            if number == 75:
                leader = await cluster.leader()
                target = next(process for process in processes if process is not leader)
                leader.host.transfer_leader(GROUP, replica(target.node_num))
        stop = True
    assert seen > 10


async def test_closing_answers_everybody_at_once(cluster: Cluster) -> None:
    processes = await cluster.bear(3)
    await write(cluster, ["x"])
    leader = await cluster.leader()
    leader.muted = {1, 2, 3}
    waiting = [asyncio.create_task(leader.host.propose(GROUP, b"y", STEP_MS)) for _ in range(5)]
    reading = asyncio.create_task(leader.host.read_barrier(GROUP, STEP_MS))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await leader.stop()
    assert {await task for task in waiting} <= {Unknown("closed"), Rejected(RejectReason.CLOSED)}
    assert await reading == Rejected(RejectReason.CLOSED)
    assert await leader.host.propose(GROUP, b"z", STEP_MS) == Rejected(RejectReason.CLOSED)
    with pytest.raises(HostClosed, match="closed"):
        await leader.host.create_group(9, replica(1), [], leader.new_machine(9))
    assert len(processes) == 3


async def test_a_failing_state_machine_ends_the_host_after_everybody_was_answered(tmp_path: Path) -> None:
    class Broken(DiskMachine):
        def apply_many(self, entries: object) -> list[object]:  # type: ignore[override]
            raise RuntimeError("disk on fire")

    cluster = Cluster(tmp_path)
    process = await cluster.add(1)
    machine = Broken(process.root / "state" / "1", [replica(1)])
    creating = asyncio.create_task(process.host.create_group(GROUP, replica(1), [replica(1)], machine))
    outcome = await process.host.propose(GROUP, b"x", STEP_MS)
    assert not isinstance(outcome, Committed)
    with pytest.raises(RuntimeError, match="disk on fire"):
        await process.ended()
    await asyncio.gather(creating, return_exceptions=True)
    await process.stop()


async def test_a_log_without_its_state_stops_the_start(cluster: Cluster) -> None:
    (process,) = await cluster.bear(1)
    await write(cluster, ["x"])
    await process.stop()
    for path in (process.root / "state" / "1").iterdir():
        path.unlink()
    (process.root / "state" / "1").rmdir()
    with pytest.raises(MissingMachine, match="the first is group 1"):
        await process.start()


async def test_machines_the_log_does_not_know_are_handed_back(cluster: Cluster) -> None:
    process = await cluster.add(1)
    await process.stop()
    process.new_machine(5, birth=[replica(1)])
    await process.start()
    assert list(process.host.orphans) == [5] and process.host.groups() == []
    machine = process.host.orphans[5]
    await process.host.create_group(5, replica(1), [replica(1)], machine)
    outcome: object = None
    while not isinstance(outcome, Committed):
        outcome = await process.host.propose(5, b"x", STEP_MS)
        await asyncio.sleep(0.01)
    assert outcome.result == 1


async def test_a_host_that_is_gone_ends_the_run_and_leaves_nobody_waiting(cluster: Cluster) -> None:
    (process,) = await cluster.bear(1)
    await write(cluster, ["x"])
    process.host._host.stop()  # as if its thread had met a failed fsync
    waiting = asyncio.create_task(process.host.propose(GROUP, b"y", STEP_MS))
    reading = asyncio.create_task(process.host.read_barrier(GROUP, STEP_MS))
    removing = asyncio.create_task(process.host.remove_group(GROUP))
    with pytest.raises(HostFailed):
        await process.ended()
    assert isinstance(await waiting, Unknown | Rejected)
    assert isinstance(await reading, Rejected)
    with pytest.raises((HostClosed, HostFailed)):
        await removing
    with pytest.raises(HostClosed, match="the host failed: "):
        await process.host.statuses()
    machine = process.new_machine(7, birth=[replica(1)])
    with pytest.raises(HostClosed, match="the host failed: "):
        await process.host.create_group(7, replica(1), [replica(1)], machine)


async def test_a_lone_voter_serves_alone(cluster: Cluster) -> None:
    (process,) = await cluster.bear(1, replace(OPTIONS, election_ticks=5))
    done = await write(cluster, ["only"])
    assert done[0].result == 1
    assert process.machine().members() == Members(voters=(replica(1),))
    assert isinstance(await process.host.read_barrier(GROUP, STEP_MS), ReadReady)
