"""Long work that an operator asked for: how far it is. Pure.

A job does nothing by itself. What was asked for is in the state (a node is draining, a table has another replication
factor, a shard has targets), the planner works towards it, and a job only tells how much is left. So it survives
everything the state survives, and cannot disagree with it. Copies (backup, restore) alone are done by somebody outside,
who says how far they are, and whose silence ends them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from flotta_coordinator.core.placement import candidates
from flotta_coordinator.core.state import OUTSIDE, ClusterState, Job, JobKind, JobStatus, Phase, Purpose, Shard

_TO_A_FACTOR = (Purpose.MISSING, Purpose.SURPLUS)


def holdings(state: ClusterState, node_id: str) -> tuple[int, int]:
    """On how many shards the node has a replica, or is to get one, and how many of them it leads."""
    held = [shard for shard in state.shards.values() if _holds(shard, node_id)]
    return len(held), sum(shard.leader == node_id for shard in held)


def left(state: ClusterState, job: Job) -> int:
    """How many steps it would take from here: replicas to go, shards to change, or replicas above the even share."""
    if job.status is not JobStatus.RUNNING or job.kind in OUTSIDE:
        return job.left
    if job.kind in (JobKind.DRAIN, JobKind.DECOMMISSION):
        return holdings(state, job.subject)[0]
    if job.kind is JobKind.REPLICATION_FACTOR:
        wanted = state.tables[job.subject].replication_factor
        shards = (shard for shard in state.shards.values() if shard.table == job.subject)
        return sum(len(shard.members) != wanted or shard.purpose in _TO_A_FACTOR for shard in shards)
    if job.kind is JobKind.SHARD_COUNT:
        return _shards_to_change(state, job)
    if job.kind is JobKind.MOVE:
        return int(state.shards[job.subject].moving)
    if job.kind is JobKind.PLACEMENT:
        return _to_come(state.shards[job.subject])
    if job.kind is JobKind.LEADERSHIP:
        return int(state.shards[job.subject].target_leader == job.target)
    if job.kind is JobKind.RECOVER:
        return int(state.shards[job.subject].heir is not None)
    return uneven(state)


def _shards_to_change(state: ClusterState, job: Job) -> int:
    """Those that are to divide or to be born, and those that are to be taken over by others."""
    shards = [shard for shard in state.shards.values() if shard.table == job.subject]
    merging = sum(bool(shard.into) for shard in shards)
    if merging:
        return merging
    divides_to = max(int(job.target), *(shard.shard_count for shard in shards))
    dividing = sum(shard.phase is Phase.AWAITED or shard.shard_count < divides_to for shard in shards)
    merges_to = state.tables[job.subject].merges_to
    return dividing + (divides_to - merges_to if merges_to else 0)


def running(state: ClusterState, kinds: Iterable[JobKind], subject: str) -> Job | None:
    """The job of one of these kinds that is under way for the subject."""
    wanted = set(kinds)
    found = (job for job in state.jobs.values() if job.status is JobStatus.RUNNING and job.subject == subject)
    return next((job for job in found if job.kind in wanted), None)


def uneven(state: ClusterState) -> int:
    """Replicas and leaderships that nodes have above the even share."""
    nodes = candidates(state.nodes.values())
    if not nodes:
        return 0
    held = Counter(replica.node_id for shard in state.shards.values() for replica in shard.members)
    leads = Counter(shard.leader for shard in state.shards.values())
    above = 0
    for found in (held, leads):
        share = -(-sum(found.values()) // len(nodes))
        above += sum(max(0, found[node_id] - share) for node_id in nodes)
    return above


def _to_come(shard: Shard) -> int:
    """Replicas that are to come or to go."""
    return len({*shard.targets} ^ {*shard.members}) if shard.moving else 0


def _holds(shard: Shard, node_id: str) -> bool:
    return any(replica.node_id == node_id for replica in (*shard.members, *shard.targets))
