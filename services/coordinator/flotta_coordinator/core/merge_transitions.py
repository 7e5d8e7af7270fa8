"""Shards of a table that grow together: n to m, m a divisor of n. The way to any other number goes over a multiple.

Shard j of (j, n), j below m, takes the keys of shards j + m, j + 2m, … over, which are no more then. The order names,
on each of these, the one that takes them; the table has m shards from the order on, and shards that still count n lead
routers on to the others, as while a table divides. When the one that takes over reports that it has all but the newest
rows, its sources are to be sealed: from then on nothing can be called off. When it reports that it counts m, the
sources go from the map, and their groups are named on it as taken over, for good.

Invariants: nothing is sealed before the map says so; an order is called off only while nothing is; a shard goes from
the map only after the one with its keys has reported so; what is said for an earlier order changes nothing.
"""

from __future__ import annotations

from dataclasses import replace

from flotta_coordinator.core.commands import ShardReport
from flotta_coordinator.core.draft import Draft
from flotta_coordinator.core.jobs import running
from flotta_coordinator.core.results import Refused, RejectCode
from flotta_coordinator.core.state import ClusterState, Job, JobKind, JobStatus, Phase, Shard, Table, shard_name
from flotta_coordinator.core.wording import count, some


def begin(draft: Draft, table: Table, num_shards: int, order: int) -> None:
    """Let the shards of a table take each other over until there are `num_shards`."""
    for shard in shards_of(draft, table.name):
        into = shard_name(shard.shard_index % num_shards) if shard.shard_index >= num_shards else ""
        draft.put_shard(replace(shard, into=into, order=order, sealing=False, caught_up=False))
    draft.put_table(replace(table, num_shards=num_shards, merges_to=0))
    factor = table.num_shards // num_shards
    draft.decide(
        "shards-merge",
        table.name,
        f"{factor} shards each of {table.name} grow together into one: {table.num_shards} become {num_shards}, and "
        "every row of those that go is copied meanwhile",
    )


def shards_of(draft: Draft, table: str) -> list[Shard]:
    """As they now are, those that go left out."""
    found = (shard for shard in {**draft.base.shards, **draft.shards}.values() if shard.table == table)
    return sorted((shard for shard in found if not draft.is_gone(shard)), key=lambda shard: shard.shard_index)


def reported(state: ClusterState, after: Shard, report: ShardReport) -> Shard:
    """What a report that was found true says of shards that are taken over: `after`, with it."""
    if after.into:
        return replace(after, sealing=True) if report.sealed else after  # coordinators may have lost that they said so
    if not after.order:
        return after
    table = state.tables[after.table]
    if after.shard_count > table.num_shards == report.shard_count:
        return replace(after, shard_count=report.shard_count, order=0, caught_up=False)
    return replace(after, caught_up=True) if report.caught_up == after.order else after


def settle(draft: Draft) -> None:
    """What follows from reports: sources are sealed, or go; and a table that has divided begins to grow together."""
    for shard in list(draft.shards.values()):
        sources = [one for one in shards_of(draft, shard.table) if one.into == shard.shard_id]
        if not sources:
            continue
        names = some([one.shard_id for one in sources])
        if not shard.order:
            _take_over(draft, shard, sources, names)
        elif shard.caught_up and not all(one.sealing for one in sources):
            for one in sources:
                draft.put_shard(replace(one, sealing=True))
            draft.decide(
                "shards-sealed",
                shard.shard_id,
                f"{shard.shard_id} has all but the newest rows of {names}: they take nothing more, and it follows",
            )
    for name in sorted({shard.table for shard in draft.shards.values()}):
        table = draft.tables.get(name) or draft.base.tables[name]
        job = running(draft.base, (JobKind.SHARD_COUNT,), name)
        if table.merges_to and job is not None and _is_divided(draft, table):
            begin(draft, table, table.merges_to, job.number)


def check_not_merging(state: ClusterState, shard: Shard) -> None:
    """Refused while what a shard has must not be changed behind the back of another that copies it."""
    if shard.order:
        what = f"{shard.into} takes its keys over" if shard.into else "it takes over the keys of others"
        raise _unmet("shard_id", f"shard_id: {shard.shard_id} is growing together with others: {what}; call that off")


def cancel(draft: Draft, job: Job) -> None:
    """Let a table keep the shards that it has by now. Refused once any of them is sealed, or while they divide."""
    table = draft.base.tables[job.subject]
    shards = shards_of(draft, table.name)
    if any(shard.sealing for shard in shards) or not any(shard.into for shard in shards):
        raise _unmet(
            "number",
            f"number: operation {job.number} cannot be called off now: shards that divide go on to the end, and so do "
            "those that grow together once the first of them takes nothing more",
        )
    had = max(shard.shard_count for shard in shards)
    if any(shard.shard_count != had for shard in shards):
        raise _unmet("number", f"number: operation {job.number} cannot be called off: some shards are one already")
    for shard in shards:
        draft.put_shard(replace(shard, into="", order=0, caught_up=False))
    draft.put_table(replace(table, num_shards=had, merges_to=0))
    draft.end_job(job, JobStatus.CANCELLED, f"an operator cancelled it; {table.name} has {count(had, 'shard')}")


def _take_over(draft: Draft, shard: Shard, sources: list[Shard], names: str) -> None:
    for source in sources:
        for job in draft.base.jobs.values():
            if job.status is JobStatus.RUNNING and job.subject == source.shard_id:
                draft.end_job(job, JobStatus.FAILED, f"{source.shard_id} is no more: {shard.shard_id} has its keys")
        draft.remove_shard(source.shard_id)
    # What a source had taken over goes along: there may be nodes that have been away since.
    absorbed = (*shard.absorbed, *(group for source in sources for group in (*source.absorbed, source.group_id)))
    draft.put_shard(replace(shard, absorbed=absorbed))
    draft.decide(
        "shards-merged", shard.shard_id, f"{shard.shard_id} has taken over the keys of {names} at epoch {shard.epoch}"
    )


def _is_divided(draft: Draft, table: Table) -> bool:
    """Has every shard the number that the table has, and all of its replicas?"""
    return all(
        shard.phase is Phase.ACTIVE and not shard.parent and shard.shard_count == table.num_shards
        for shard in shards_of(draft, table.name)
    )


def _unmet(field: str, message: str) -> Refused:
    return Refused(RejectCode.FAILED_PRECONDITION, field, message)
