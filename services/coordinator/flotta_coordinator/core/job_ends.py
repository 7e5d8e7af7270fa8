"""When long work that an operator asked for has come to its end, and how. Pure; asked beside the planner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from flotta_coordinator.core.balance import is_calm
from flotta_coordinator.core.board import Board
from flotta_coordinator.core.commands import Command, EndJob, SetNotes
from flotta_coordinator.core.jobs import left
from flotta_coordinator.core.placement import candidates
from flotta_coordinator.core.plan_view import Policy, View
from flotta_coordinator.core.planner import plan
from flotta_coordinator.core.state import OUTSIDE, ClusterState, Job, JobKind, JobStatus, Shard
from flotta_coordinator.core.wording import count

BY_HAND = (JobKind.MOVE, JobKind.SHARD_COUNT, JobKind.PLACEMENT, JobKind.LEADERSHIP, JobKind.RECOVER)
"""The planner has no part in these."""


def ended(state: ClusterState, view: View, policy: Policy, decided: Sequence[Command]) -> tuple[EndJob, ...]:
    """Jobs that have come to their end. `view` is of this state, `decided` what the planner made of it."""
    if not view.ready:
        return ()
    running = [job for job in state.jobs.values() if job.status is JobStatus.RUNNING]
    levelling = any(job.kind is JobKind.REBALANCE for job in running)
    levelled = levelling and _is_level(view, policy, decided)
    silent = [job for job in running if view.copies.get(job.number, 0) > policy.copy_silent_ms]
    orders = (job for job in running if job.kind not in OUTSIDE)
    return (
        *(EndJob(job.number, JobStatus.FAILED, _silence(policy)) for job in silent),
        *(end for job in orders if (end := _end_of(state, policy, job, levelled)) is not None),
    )


def _silence(policy: Policy) -> str:
    return f"whoever did it has said nothing for more than {policy.copy_silent_ms // 1000} s"


def _end_of(state: ClusterState, policy: Policy, job: Job, levelled: bool) -> EndJob | None:
    if policy.moves_max == 0 and job.kind not in BY_HAND:
        return EndJob(job.number, JobStatus.FAILED, "the coordinator is set to move nothing: moves_max is 0")
    if job.kind is JobKind.REBALANCE:
        return EndJob(job.number, JobStatus.DONE, _levelled(state)) if levelled else None
    if left(state, job):
        return None
    if job.kind is JobKind.MOVE and state.shards[job.subject].member_on(job.target) is None:
        return EndJob(job.number, JobStatus.FAILED, f"{job.subject} did not get to {job.target}: see its decisions")
    if job.kind is JobKind.MOVE:
        return EndJob(job.number, JobStatus.DONE, f"{job.subject} has its replica on {job.target}")
    if job.kind in (JobKind.PLACEMENT, JobKind.LEADERSHIP):
        return _end_of_choice(state.shards[job.subject], job)
    if job.kind is JobKind.RECOVER:
        shard = state.shards[job.subject]
        said = (
            f"{job.subject} serves again, led by {shard.leader} at epoch {shard.epoch}; replicas follow as nodes allow"
        )
        return EndJob(job.number, JobStatus.DONE, said)
    if job.kind is JobKind.REPLICATION_FACTOR:
        wanted = state.tables[job.subject].replication_factor
        return EndJob(job.number, JobStatus.DONE, f"every shard of {job.subject} has {count(wanted, 'replica')}")
    if job.kind is JobKind.SHARD_COUNT:
        return EndJob(job.number, JobStatus.DONE, f"{job.subject} has {job.target} shards, it had {job.before}")
    gone = " and removed" if job.kind is JobKind.DECOMMISSION else ", and may be stopped"
    return EndJob(job.number, JobStatus.DONE, f"{job.subject} is empty{gone}")


def _end_of_choice(shard: Shard, job: Job) -> EndJob:
    """An operator chose the nodes of a shard, or its leader: is it so now?"""
    if job.kind is JobKind.LEADERSHIP:
        reached, said = shard.leader == job.target, f"{shard.shard_id} is led by {shard.leader or 'nobody'}"
    else:
        members = [member.node_id for member in shard.members]
        reached, said = sorted(members) == sorted(job.target.split(",")), f"{shard.shard_id} is on {', '.join(members)}"
    if reached:
        return EndJob(job.number, JobStatus.DONE, said)
    return EndJob(job.number, JobStatus.FAILED, f"{said} after all: see its decisions")


def _is_level(view: View, policy: Policy, decided: Sequence[Command]) -> bool:
    """Nothing is to be levelled any more, and nothing is under way or awaited that it would wait for."""
    moving = any(shard.targets or shard.target_leader for shard in view.shards)
    due = any(not isinstance(command, SetNotes) for command in decided)
    return not moving and not due and (is_calm(Board(view, policy)) or _will_be_level(view, policy))


def _will_be_level(view: View, policy: Policy) -> bool:
    """Nodes that are new are waited for only if they are to get something once they have settled."""
    settled = replace(policy, settle_ms=0)
    return is_calm(Board(view, settled)) and all(isinstance(found, SetNotes) for found in plan(view, settled))


def _levelled(state: ClusterState) -> str:
    nodes = candidates(state.nodes.values())
    held = Counter(replica.node_id for shard in state.shards.values() for replica in shard.members)
    if not nodes:
        return "no node can take replicas"
    least, most = min(held[node_id] for node_id in nodes), max(held[node_id] for node_id in nodes)
    return f"{count(len(nodes), 'node')} hold {least} to {most} replicas each"
