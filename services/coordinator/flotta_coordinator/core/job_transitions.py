"""Jobs come to their end here: done, failed, or called off by an operator. What they began is in the draft's state."""

from __future__ import annotations

from dataclasses import replace

from flotta_coordinator.core import merge_transitions, operator_transitions
from flotta_coordinator.core.commands import CancelJob, CancelMove, DrainNode, EndJob, RemoveNode
from flotta_coordinator.core.draft import Draft
from flotta_coordinator.core.jobs import left
from flotta_coordinator.core.results import Applied, Refused, RejectCode
from flotta_coordinator.core.shard_transitions import called_off
from flotta_coordinator.core.state import OUTSIDE, Job, JobKind, JobStatus, Purpose

LEVELLING = (Purpose.ZONES, Purpose.BALANCE)


def end_job(draft: Draft, command: EndJob) -> Applied:
    """The caretaker saw a job at its end; asked once more here, as all its findings are."""
    job = running_job(draft, command.number)
    if command.status is JobStatus.RUNNING:
        raise Refused(RejectCode.INVALID_ARGUMENT, "status", "status: an operation does not end by running on")
    if command.status is JobStatus.DONE and job.kind is not JobKind.REBALANCE and left(draft.base, job):
        raise _unmet(f"number: operation {job.number} is not at its end any more")
    draft.end_job(job, command.status, command.outcome)
    if job.kind is JobKind.DECOMMISSION and command.status is JobStatus.DONE and job.subject in draft.base.nodes:
        return operator_transitions.remove_node(draft, RemoveNode(job.subject))
    return draft.finish(command.outcome)


def cancel_job(draft: Draft, command: CancelJob) -> Applied:
    """Take back what the job asked for. What is done of it by then stays done, unless balance wants it otherwise."""
    job = running_job(draft, command.number)
    if job.kind is JobKind.SHARD_COUNT:
        merge_transitions.cancel(draft, job)
        return draft.finish(f"operation {job.number} is cancelled", job=job.number)
    if job.kind is JobKind.RECOVER:
        raise _unmet(
            f"number: operation {job.number}, {job.text}, cannot be called off: {job.target} may have acted on it"
        )
    draft.end_job(job, JobStatus.CANCELLED, "an operator cancelled it")
    if job.kind in (JobKind.DRAIN, JobKind.DECOMMISSION):
        return operator_transitions.drain_node(draft, DrainNode(job.subject, False))
    if job.kind is JobKind.LEADERSHIP:
        shard = draft.base.shards[job.subject]
        if shard.target_leader == job.target:
            draft.put_shard(replace(shard, target_leader=""))
    elif job.kind in (JobKind.MOVE, JobKind.PLACEMENT):
        if draft.base.shards[job.subject].moving:
            return operator_transitions.cancel_move(draft, CancelMove(job.subject))
    elif job.kind in OUTSIDE:
        pass  # whoever copies hears of it with the next report, and stops
    elif job.kind is JobKind.REPLICATION_FACTOR:
        operator_transitions.change_factor(draft, draft.base.tables[job.subject], job.before)
    else:
        _stop_levelling(draft)
    return draft.finish(f"operation {job.number} is cancelled", job=job.number)


def _stop_levelling(draft: Draft) -> None:
    """Moves in flight end, and their shards are left alone for a while, as after any move that was cancelled."""
    for shard in draft.base.shards.values():
        if shard.purpose in LEVELLING:
            at_ms = max(1, draft.now_ms)
            draft.put_shard(replace(called_off(shard), cancelled_ms=at_ms))
            draft.decide("shard-move-cancelled", shard.shard_id, f"an operator cancelled the move of {shard.shard_id}")


def running_job(draft: Draft, number: int) -> Job:
    """Refused when there is none under way with this number."""
    job = draft.base.jobs.get(number)
    if job is None:
        raise Refused(RejectCode.NOT_FOUND, "number", f"number: there is no operation {number}")
    if job.status is not JobStatus.RUNNING:
        raise _unmet(f"number: operation {number} has ended already: it is {job.status.value}")
    return job


def _unmet(message: str) -> Refused:
    return Refused(RejectCode.FAILED_PRECONDITION, "number", message)
