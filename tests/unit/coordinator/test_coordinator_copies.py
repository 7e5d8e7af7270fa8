"""Backups and restores as jobs: what may begin, how their reports count, what ends them."""

from __future__ import annotations

import pytest
from flotta_coordinator.core import commands
from flotta_coordinator.core.jobs import left
from flotta_coordinator.core.results import Applied, Rejection
from flotta_coordinator.core.state import Job, JobKind, JobStatus
from planner_world import POLICY, World


@pytest.fixture
def empty() -> World:
    made = World()
    for node_id in ("n1", "n2", "n3"):
        made.join(node_id)
    made.tick(60_000)
    return made


@pytest.fixture
def world(empty: World) -> World:
    empty.create(4, 3)
    empty.converge(100)
    return empty


def accepted(world: World, command: commands.Command) -> Applied:
    result = world.submit(command)
    assert isinstance(result, Applied), result
    return result


def refused(world: World, command: commands.Command) -> str:
    before = world.state
    result = world.submit(command)
    assert isinstance(result, Rejection), result
    assert world.state is before
    return result.message


def begin(world: World, restore: bool = False) -> Job:
    number = accepted(world, commands.BeginCopy(restore, "/b/1")).reply.job
    return world.state.jobs[number]


def test_a_backup_is_as_far_as_it_was_reported(world: World) -> None:
    version = world.state.map_version
    job = begin(world)
    assert (job.kind, job.status, job.subject) == (JobKind.BACKUP, JobStatus.RUNNING, "/b/1")
    accepted(world, commands.ReportCopy(job.number, 4, 3))
    assert (world.state.jobs[job.number].steps, left(world.state, world.state.jobs[job.number])) == (4, 3)
    accepted(world, commands.EndCopy(job.number, False, "10 rows", 4, 0))
    ended = world.state.jobs[job.number]
    assert (ended.status, ended.left, ended.outcome) == (JobStatus.DONE, 0, "10 rows")
    assert world.state.map_version == version  # no map is sent round for it


def test_one_copy_at_a_time(world: World) -> None:
    job = begin(world)
    message = refused(world, commands.BeginCopy(False, "/b/2"))
    assert message == f"directory: operation {job.number}, the backup to /b/1, is under way; one at a time"
    accepted(world, commands.EndCopy(job.number, True, "the disk is full", 4, 3))
    failed = world.state.jobs[job.number]
    assert (failed.status, failed.steps, failed.left) == (JobStatus.FAILED, 4, 3)
    begin(world)


def test_what_was_cancelled_takes_no_more_reports_and_is_not_cancelled_twice(world: World) -> None:
    job = begin(world)
    accepted(world, commands.ReportCopy(job.number, 4, 3))
    accepted(world, commands.CancelJob(job.number))
    assert world.state.jobs[job.number].left == 3
    ended = f"number: operation {job.number} has ended already: it is CANCELLED"
    assert refused(world, commands.ReportCopy(job.number, 4, 2)) == ended
    assert refused(world, commands.EndCopy(job.number, False, "done", 1, 0)) == ended
    assert refused(world, commands.CancelJob(job.number)) == ended


def test_one_that_nobody_reports_on_has_failed(world: World) -> None:
    job = begin(world)
    for _ in range(3):
        world.tick(POLICY.copy_silent_ms // 2)
        accepted(world, commands.ReportCopy(job.number, 4, 4))
        world.run(1)
    assert world.state.jobs[job.number].status is JobStatus.RUNNING
    world.tick(POLICY.copy_silent_ms)
    world.run(2)
    ended = world.state.jobs[job.number]
    assert (ended.status, ended.outcome) == (JobStatus.FAILED, "whoever did it has said nothing for more than 60 s")


def test_a_restore_needs_a_cluster_without_shards_and_makes_them_itself(empty: World) -> None:
    job = begin(empty, restore=True)
    assert (job.kind, job.text) == (JobKind.RESTORE, "the restore from /b/1")
    create = commands.CreateForRestore(job.number, 8, 3, 5_000)
    accepted(empty, create)
    assert len(empty.state.shards) == 8
    assert {shard.revision_base for shard in empty.state.shards.values()} == {5_000}
    again = accepted(empty, create)
    assert (again.changed, again.reply.job) == (False, job.number)
    accepted(empty, commands.EndCopy(job.number, False, "restored", 8, 0))
    assert "has shards already" in refused(empty, commands.BeginCopy(True, "/b/1"))


def test_shards_that_appeared_meanwhile_are_not_restored_into(empty: World) -> None:
    job = begin(empty, restore=True)
    accepted(empty, commands.InitShards(8, 3))
    message = refused(empty, commands.CreateForRestore(job.number, 8, 3, 5_000))
    assert message == "number: somebody else has created shards since this restore began"


def test_what_cannot_be_is_refused(empty: World) -> None:
    assert "nothing to back up" in refused(empty, commands.BeginCopy(False, "/b/1"))
    assert "must have 1 to 4096" in refused(empty, commands.BeginCopy(True, ""))
    assert "printable" in refused(empty, commands.BeginCopy(True, "a\nb"))
    assert "no operation 9" in refused(empty, commands.ReportCopy(9, 1, 1))
    assert "no node can take replicas" in refused(World(), commands.BeginCopy(True, "/b/1"))


def test_a_copy_is_no_other_job(world: World) -> None:
    drain = accepted(world, commands.DrainNode("n1", True)).reply.job
    assert "neither a backup, a restore nor a compaction" in refused(world, commands.ReportCopy(drain, 1, 1))
    backup = begin(world)
    assert "is no restore" in refused(world, commands.CreateForRestore(backup.number, 4, 3, 0))
    assert "left" in refused(world, commands.ReportCopy(backup.number, 3, 4))
    assert "outcome" in refused(world, commands.EndCopy(backup.number, True, "", 1, 1))


def test_a_compaction_is_on_record_once_and_ends_as_whoever_follows_it_says(empty: World) -> None:
    assert "no shards yet" in refused(empty, commands.BeginCompaction(3))
    empty.create(2, 3)
    number = accepted(empty, commands.BeginCompaction(6)).reply.job
    begun = empty.state.jobs[number]
    assert (begun.kind, begun.text, left(empty.state, begun)) == (
        JobKind.COMPACTION,
        "the compaction of 6 replicas of default",
        6,
    )
    again = accepted(empty, commands.BeginCompaction(2))
    assert not again.changed and again.reply.job == number
    accepted(empty, commands.BeginCopy(False, "/backups/beside"))  # they are in nobody's way
    accepted(empty, commands.ReportCopy(number, 6, 2))
    assert left(empty.state, empty.state.jobs[number]) == 2
    accepted(empty, commands.EndCopy(number, False, "6 replicas are compacted", 6, 0))
    assert empty.state.jobs[number].status is JobStatus.DONE
    second = accepted(empty, commands.BeginCompaction(6)).reply.job
    assert second != number
    accepted(empty, commands.CancelJob(second))
    assert "has ended already" in refused(empty, commands.ReportCopy(second, 6, 2))


def test_a_compaction_that_nobody_reports_on_has_failed(world: World) -> None:
    number = accepted(world, commands.BeginCompaction(6)).reply.job
    world.tick(POLICY.copy_silent_ms)
    world.round()
    world.tick(POLICY.copy_silent_ms + 1)
    world.round()
    ended = world.state.jobs[number]
    assert ended.status is JobStatus.FAILED and "has said nothing for more than" in ended.outcome
