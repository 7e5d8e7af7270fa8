"""A process that dies at any named step comes back, and no acknowledged write is missing or doubled anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from consensus_cluster import GROUP, STEP_MS, Cluster, Process, equal, replica, until, write
from flotta_consensus.api import Committed, Outcome, Unknown
from flotta_consensus.failpoints import FailpointError


@pytest.fixture
def native() -> bool:
    return True


@pytest.fixture
async def cluster(tmp_path: Path, native: bool) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path, native=native)
    yield made
    await made.stop()


async def keep_writing(cluster: Cluster, acknowledged: set[str], attempted: set[str]) -> None:
    """Unique rows, one batch after the other, through whoever leads and still runs; for ever."""
    number = len(attempted)
    while True:
        leader = await cluster.leader()
        rows = [f"{number + offset}-{'z' * 200}" for offset in range(20)]
        number += len(rows)
        attempted.update(rows)
        outcomes: list[Outcome] = await leader.host.propose_many(GROUP, [row.encode() for row in rows], 1_000)
        acknowledged.update(row for row, each in zip(rows, outcomes, strict=True) if isinstance(each, Committed))
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("failpoint", "native"),
    [
        # Over links the host's frames pass no step of ours.
        ("consensus.before_send=error@40", False),
        ("consensus.before_step=error@40", False),
        ("consensus.before_apply=error@20", False),
        ("consensus.before_apply=error@20", True),
        ("consensus.after_apply=error@20", True),
        ("consensus.before_flush=error@2", True),
        ("consensus.after_flush=error@2", True),
        ("consensus.before_compact=error@2", True),
    ],
)
async def test_dying_at_a_step_of_replication(cluster: Cluster, failpoint: str) -> None:
    processes = await cluster.bear(3)
    await write(cluster, ["first"])
    victim = processes[0]
    await victim.stop()
    await victim.start(failpoints=failpoint)
    acknowledged: set[str] = set()
    attempted: set[str] = {"first"}
    writing = asyncio.create_task(keep_writing(cluster, acknowledged, attempted))
    await until(victim.has_ended, f"{failpoint} is reached")
    with pytest.raises(FailpointError):
        await victim.ended()
    before = len(acknowledged)
    await until(lambda: len(acknowledged) > before + 40 or writing.done(), "the others go on")
    await victim.start()
    before = len(acknowledged)
    await until(lambda: len(acknowledged) > before + 40 or writing.done(), "writes go on with the victim back")
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await write(cluster, ["last"])
    rows = await equal(processes)
    assert len(set(rows)) == len(rows)
    assert acknowledged <= set(rows) <= attempted | {"last"}


async def left_behind(cluster: Cluster) -> tuple[Process, list[Process]]:
    """A stopped follower that can only be helped by a snapshot, and the others."""
    processes = await cluster.bear(3)
    await write(cluster, ["first"])
    leader = await cluster.leader()
    victim = next(process for process in processes if process is not leader)
    others = [process for process in processes if process is not victim]
    await victim.stop()
    async with asyncio.timeout(STEP_MS / 1000):
        while True:
            await write(cluster, ["y" * 2_000] * 50, others)
            status = await (await cluster.leader(others)).host.status(GROUP)
            if status is not None and status.first_index > 100:
                return victim, others


@pytest.mark.parametrize(
    "failpoint",
    [
        "consensus.before_install=error@1",
        "consensus.before_install_commit=error@1",
        "consensus.after_install_commit=error@1",
        "consensus.after_install_delete=error@1",
    ],
)
async def test_dying_at_a_step_of_an_install(cluster: Cluster, failpoint: str) -> None:
    victim, others = await left_behind(cluster)
    await victim.start(failpoints=failpoint)
    await until(victim.has_ended, f"{failpoint} is reached")
    with pytest.raises(FailpointError):
        await victim.ended()
    await write(cluster, ["while dead"], others)
    await victim.start()
    rows = await equal([victim, *others])
    assert rows[0] == "first" and rows[-1] == "while dead"
    await until(lambda: not list((victim.root / "incoming").iterdir()), "the received file was deleted")
    await victim.stop()
    await victim.start()
    await write(cluster, ["last"])
    assert (await equal([victim, *others]))[-1] == "last"


@pytest.mark.parametrize(
    "failpoint", ["consensus.before_incoming_sync=error@1", "consensus.after_incoming_sync=error@1"]
)
async def test_a_snapshot_that_is_not_taken_comes_again(cluster: Cluster, failpoint: str) -> None:
    victim, others = await left_behind(cluster)
    await victim.start(failpoints=failpoint)
    await equal([victim, *others])
    assert any("snapshot of group" in report for process in others for report in process.reports)


@pytest.mark.parametrize(
    "failpoint",
    [
        "consensus.before_snapshot_build=error@1",
        "consensus.before_snapshot_sync=error@1",
        "consensus.after_snapshot_build=error@1",
        "consensus.before_snapshot_send=error@1",
    ],
)
async def test_dying_while_a_snapshot_is_made_or_sent(cluster: Cluster, failpoint: str) -> None:
    victim, others = await left_behind(cluster)
    for process in others:
        await process.stop()
    for process in others:
        await process.start(failpoints=failpoint)
    await victim.start()
    await until(lambda: any(process.has_ended() for process in others), f"{failpoint} is reached")
    for process in others:
        if process.has_ended():
            with pytest.raises(FailpointError):
                await process.ended()
        else:
            await process.stop()
    for process in others:
        await process.start()
    await write(cluster, ["last"])
    assert (await equal([victim, *others]))[-1] == "last"


@pytest.mark.parametrize("failpoint", ["consensus.before_destroy=error@1", "consensus.after_destroy=error@1"])
async def test_dying_while_a_removed_replica_is_destroyed(cluster: Cluster, failpoint: str) -> None:
    processes = await cluster.bear(3)
    await write(cluster, ["first"])
    leader = await cluster.leader()
    victim = next(process for process in processes if process is not leader)
    outcome = await leader.host.change_membership(GROUP, [("remove", replica(victim.node_num))], STEP_MS)
    assert isinstance(outcome, Committed)
    await victim.stop()
    await victim.start(failpoints=failpoint)
    removing = asyncio.create_task(victim.host.remove_group(GROUP))
    await until(victim.has_ended, f"{failpoint} is reached")
    with pytest.raises(FailpointError):
        await victim.ended()
    await asyncio.gather(removing, return_exceptions=True)
    await victim.start()
    assert victim.host.groups() == []
    assert victim.host.tombstones() == {GROUP: [replica(victim.node_num)]}
    if failpoint.startswith("consensus.before_destroy"):
        victim.host.orphans[GROUP].destroy()
    assert not (victim.root / "state" / str(GROUP)).exists()


@pytest.mark.parametrize("native", [True, False])
async def test_all_dying_at_once_lose_nothing_acknowledged(cluster: Cluster) -> None:
    processes = await cluster.bear(3)
    acknowledged: set[str] = set()
    attempted: set[str] = set()
    for _ in range(3):
        before = len(acknowledged)
        writing = asyncio.create_task(keep_writing(cluster, acknowledged, attempted))
        await until(lambda: len(acknowledged) > before + 200 or writing.done(), "writes flow")  # noqa: B023
        for process in processes:
            await process.stop()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        for process in processes:
            await process.start()
    await write(cluster, ["last"])
    rows = await equal(processes)
    assert len(set(rows)) == len(rows)
    assert acknowledged <= set(rows) <= attempted | {"last"}


async def test_a_deadline_that_passes_is_unknown_and_may_still_commit(cluster: Cluster) -> None:
    processes = await cluster.bear(3)
    await write(cluster, ["first"])
    leader = await cluster.leader()
    outcome = await leader.host.propose(GROUP, b"too late", 0)
    assert isinstance(outcome, Unknown | Committed)
    rows = await equal(processes)
    await write(cluster, ["last"])
    rows = await equal(processes)
    assert rows.count("too late") <= 1 and rows[-1] == "last"
