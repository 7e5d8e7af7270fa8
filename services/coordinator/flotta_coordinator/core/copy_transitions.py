"""Backups, restores and compactions, as the coordinators see them: somebody else does it, says how far it is, ends it.

One copy at a time. A restore begins only in a cluster without shards, and creates them itself once it has found its
backup whole: so nothing of a cluster that is in use can be restored over, and every revision of the new shards is
above all that the backup has. A job that has ended takes no more reports: that is how whoever copies hears of a cancel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from flotta_coordinator.core import checks
from flotta_coordinator.core.commands import (
    BeginCompaction,
    BeginCopy,
    CreateForRestore,
    EndCopy,
    InitShards,
    ReportCopy,
)
from flotta_coordinator.core.draft import Draft
from flotta_coordinator.core.job_transitions import running_job
from flotta_coordinator.core.jobs import running
from flotta_coordinator.core.placement import candidates
from flotta_coordinator.core.results import Applied, Refused, RejectCode
from flotta_coordinator.core.shard_transitions import init_shards
from flotta_coordinator.core.state import COPIES, OUTSIDE, Job, JobKind, JobStatus
from flotta_coordinator.core.wording import count

DIRECTORY_CHARS_MAX: Final = 4096
OUTCOME_CHARS_MAX: Final = 1024
STEPS_MAX: Final = 1 << 31
REVISION_MAX: Final = 1 << 62  # far, and no sum of a base and a log's index overflows


def begin_copy(draft: Draft, command: BeginCopy) -> Applied:
    """A job for a copy that is about to begin."""
    _check_directory(command.directory)
    under_way = [job for job in draft.base.jobs.values() if job.kind in COPIES and job.status is JobStatus.RUNNING]
    if under_way:
        job = under_way[0]
        raise _unmet("directory", f"directory: operation {job.number}, {job.text}, is under way; one at a time")
    divisions = (JobKind.SHARD_COUNT, JobStatus.RUNNING)
    if any((job.kind, job.status) == divisions for job in draft.base.jobs.values()):
        raise _unmet("directory", "directory: the number of shards is being changed; wait until that is done")
    empty = draft.base.partitioning is None
    if command.restore and not empty:
        text = "directory: this cluster has shards already; a restore needs a new one, with nodes and no shards"
        raise _unmet("directory", text)
    if command.restore and not candidates(draft.base.nodes.values()):
        raise _unmet("directory", "directory: no node can take replicas yet; start the storage nodes first")
    if not command.restore and empty:
        raise _unmet("directory", "directory: there are no shards yet, so there is nothing to back up")
    kind = JobKind.RESTORE if command.restore else JobKind.BACKUP
    text = f"the restore from {command.directory}" if command.restore else f"the backup to {command.directory}"
    job = draft.begin_job(kind, command.directory, text, 0)
    draft.decide(f"{kind.value}-begun", command.directory, f"an operator began operation {job.number}, {text}")
    return draft.finish(f"{text} has begun", job=job.number)


def begin_compaction(draft: Draft, command: BeginCompaction) -> Applied:
    """A job for it. While one is under way that one goes on: nodes queue no replica twice."""
    checks.check_range("steps", command.steps, 1, STEPS_MAX)
    table = draft.base.partitioning
    if table is None:
        raise _unmet("steps", "steps: there are no shards yet, so there is nothing to compact")
    job = running(draft.base, (JobKind.COMPACTION,), table.name)
    if job is not None:
        return draft.finish(f"{job.text} is under way already", job=job.number)
    text = f"the compaction of {count(command.steps, 'replica')} of {table.name}"
    job = draft.begin_job(JobKind.COMPACTION, table.name, text, command.steps)
    draft.put_job(replace(job, left=command.steps))
    draft.decide("compaction-begun", table.name, f"an operator began operation {job.number}, {text}")
    return draft.finish(f"{text} has begun", job=job.number)


def report_copy(draft: Draft, command: ReportCopy) -> Applied:
    """How far it is."""
    job = _reported(draft, _copy(draft, command.number), command)
    draft.put_job(job)
    return draft.finish("noted", job=job.number)


def create_for_restore(draft: Draft, command: CreateForRestore) -> Applied:
    """The shards that a restore is to fill. Asked again, with the same numbers, it changes nothing."""
    job = _copy(draft, command.number)
    if job.kind is not JobKind.RESTORE:
        raise _unmet("number", f"number: operation {job.number} is no restore")
    checks.check_range("revision_base", command.revision_base, 0, REVISION_MAX)
    if any(shard.revision_base != command.revision_base for shard in draft.base.shards.values()):
        raise _unmet("number", "number: somebody else has created shards since this restore began")
    made = init_shards(draft, InitShards(command.num_shards, command.replication_factor, command.revision_base))
    return replace(made, reply=replace(made.reply, job=job.number))


def end_copy(draft: Draft, command: EndCopy) -> Applied:
    """It is done, or has failed."""
    job = _reported(draft, _copy(draft, command.number), command)
    if not 0 < len(command.outcome) <= OUTCOME_CHARS_MAX:
        raise checks.invalid("outcome", f"must have 1 to {OUTCOME_CHARS_MAX} characters, not {len(command.outcome)}")
    draft.end_job(job, JobStatus.FAILED if command.failed else JobStatus.DONE, command.outcome)
    return draft.finish(command.outcome, job=job.number)


def _copy(draft: Draft, number: int) -> Job:
    job = running_job(draft, number)
    if job.kind not in OUTSIDE:
        raise _unmet("number", f"number: operation {number} is neither a backup, a restore nor a compaction")
    return job


def _reported(draft: Draft, job: Job, command: ReportCopy | EndCopy) -> Job:
    checks.check_range("steps", command.steps, 0, STEPS_MAX)
    checks.check_range("left", command.left, 0, command.steps)
    return replace(job, steps=command.steps, left=command.left, reported_ms=max(1, draft.now_ms))


def _check_directory(directory: str) -> None:
    if not 0 < len(directory) <= DIRECTORY_CHARS_MAX:
        raise checks.invalid("directory", f"must have 1 to {DIRECTORY_CHARS_MAX} characters, not {len(directory)}")
    if not directory.isprintable():
        raise checks.invalid("directory", f"must be printable text, not {checks.shown(directory)}")


def _unmet(field: str, message: str) -> Refused:
    return Refused(RejectCode.FAILED_PRECONDITION, field, message)
