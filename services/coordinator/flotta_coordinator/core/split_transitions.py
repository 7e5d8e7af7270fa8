"""The number of shards of a table, changed while it serves: to k·n, each shard dividing into k by residue, and from
there to any divisor of that (`merge_transitions.py`).

The order makes the children known, AWAITED: their ids, groups and residue classes. Each shard divides by an entry of
its own log, on its own; nobody creates a child by the map. From the report of a shard that it has divided, routers find
its children by its own `shard_count`; the table's number follows once every shard has divided and every child has a
leader.

Invariants: an order is taken only when every shard is at rest and has a quorum, one at a time; a division cannot be
called off; `shard_count` of a shard is what the shard reported.
"""

from __future__ import annotations

import math
from dataclasses import replace

from flotta_coordinator.core import checks, merge_transitions
from flotta_coordinator.core.commands import SetShardCount, ShardReport
from flotta_coordinator.core.draft import REPLICA_SEQUENCE_BITS, Draft
from flotta_coordinator.core.jobs import running
from flotta_coordinator.core.quorum import has_quorum
from flotta_coordinator.core.results import Applied, Refused, RejectCode
from flotta_coordinator.core.state import (
    COPIES,
    ClusterState,
    JobKind,
    JobStatus,
    NodeStatus,
    Phase,
    Replica,
    Shard,
    Table,
    shard_name,
)
from flotta_coordinator.core.wording import count, some

NUMBERS_SHOWN = 4


def set_shard_count(draft: Draft, command: SetShardCount) -> Applied:
    """Let every shard of a table divide."""
    checks.check_id("table", command.table)
    checks.check_range("num_shards", command.num_shards, 1, checks.SHARDS_MAX)
    table = draft.base.tables.get(command.table)
    if table is None:
        raise Refused(RejectCode.NOT_FOUND, "table", f"table: there is no table {checks.shown(command.table)}")
    job = running(draft.base, (JobKind.SHARD_COUNT,), table.name)
    if job is not None and job.target == str(command.num_shards):
        return draft.finish(f"{table.name} is on its way to {command.num_shards} shards already", job=job.number)
    if job is not None:
        raise _unmet("num_shards", f"num_shards: operation {job.number}, {job.text}, is under way; one at a time")
    if command.num_shards == table.num_shards:
        return draft.finish(f"{table.name} has {count(table.num_shards, 'shard')} already")
    shards = sorted((one for one in draft.base.shards.values() if one.table == table.name), key=_by_index)
    _check_at_rest(draft, shards)
    multiple = math.lcm(table.num_shards, command.num_shards)
    _check_way(table, command.num_shards, multiple)
    way = _way(table, command.num_shards, multiple)
    draft.decide(
        "shard-count",
        table.name,
        f"an operator wants {command.num_shards} shards of {table.name} instead of {table.num_shards}: {way}",
    )
    divides = multiple if multiple != table.num_shards else 0
    only_divides = multiple == command.num_shards
    change = f"{table.name} from {table.num_shards} {'into' if only_divides else 'to'} {command.num_shards} shards"
    job = draft.begin_job(
        JobKind.SHARD_COUNT,
        table.name,
        f"the {'division' if only_divides else 'change'} of {change}",
        divides + multiple - command.num_shards,
        before=table.num_shards,
        target=str(command.num_shards),
    )
    if divides:
        _divide(draft, table, shards, multiple)
        if not only_divides:
            draft.put_table(replace(table, merges_to=command.num_shards))
    else:
        merge_transitions.begin(draft, table, command.num_shards, job.number)
    return draft.finish(f"of the {count(table.num_shards, 'shard')} of {table.name} {way}", job=job.number)


def _divide(draft: Draft, table: Table, parents: list[Shard], shard_count: int) -> None:
    for parent in parents:
        for index in range(parent.shard_index + table.num_shards, shard_count, table.num_shards):
            draft.put_shard(_awaited(draft, parent, index, shard_count))


def _way(table: Table, num_shards: int, multiple: int) -> str:
    """How it is done, in words."""
    parts, joined = multiple // table.num_shards, multiple // num_shards
    if joined == 1:
        return f"each divides into {parts}"
    if parts == 1:
        return f"{joined} each grow together into one"
    return f"each divides into {parts}, and of the {multiple} {joined} each grow together into one"


def divided(state: ClusterState, before: Shard, after: Shard, report: ShardReport) -> Shard:
    """What a report that was found true says of a division: `after`, with it."""
    if report.shard_count > after.shard_count and _is_ordered(state, after, report.shard_count):
        after = replace(after, shard_count=report.shard_count)
    if report.whole and before.phase is Phase.ACTIVE and before.parent:
        after = replace(after, parent="")
    return after


def tell_divided(draft: Draft, before: Shard, after: Shard) -> None:
    if after.shard_count <= before.shard_count:
        return
    names = [shard.shard_id for shard in _children(draft.base, after.shard_id)]
    draft.decide(
        "shard-divided",
        after.shard_id,
        f"{after.shard_id} divided at epoch {after.epoch}: it keeps one in {after.shard_count // before.shard_count} "
        f"of its keys, the others go to {some(names)}",
    )


def settle(draft: Draft) -> None:
    """Let the number of a table's shards follow, once all of them have divided and are led."""
    for name in sorted({shard.table for shard in draft.shards.values()}):
        table = draft.tables.get(name) or draft.base.tables[name]
        wanted = max(shard.shard_count for shard in draft.shards.values() if shard.table == name)
        if wanted <= table.num_shards or any(shard.into for shard in merge_transitions.shards_of(draft, name)):
            continue
        shards = [shard for shard in {**draft.base.shards, **draft.shards}.values() if shard.table == name]
        if (
            all(shard.phase is Phase.ACTIVE and shard.shard_count == wanted for shard in shards)
            and len(shards) == wanted
        ):
            draft.put_table(replace(table, num_shards=wanted))
            draft.decide("shards-divided", name, f"every shard of {name} has divided: it has {wanted} shards now")


def check_not_dividing(state: ClusterState, shard: Shard) -> None:
    """Refused while the shard's voters have to stay where they are."""
    if shard.phase is Phase.AWAITED:
        raise _unmet("shard_id", f"shard_id: {shard.shard_id} is still to be born of {shard.parent}")
    children = _children(state, shard.shard_id)
    if children:
        raise _unmet(
            "shard_id",
            f"shard_id: {shard.shard_id} divides: its replicas stay where they are until every replica of "
            f"{some([child.shard_id for child in children])} has been made",
        )


def _is_ordered(state: ClusterState, shard: Shard, shard_count: int) -> bool:
    """Have the children that there are then been made known?"""
    names = (
        shard_name(index) for index in range(shard.shard_index + shard.shard_count, shard_count, shard.shard_count)
    )
    found = [state.shards.get(name) for name in names]
    return bool(found) and all(child is not None and child.shard_count == shard_count for child in found)


def _children(state: ClusterState, shard_id: str) -> list[Shard]:
    return sorted((shard for shard in state.shards.values() if shard.parent == shard_id), key=_by_index)


def _by_index(shard: Shard) -> int:
    return shard.shard_index


def _awaited(draft: Draft, parent: Shard, index: int, shard_count: int) -> Shard:
    """Where its replicas will be is up to the parent's voters when it divides; as far as is known, it is here."""
    sequence = draft.new_sequence()
    expected = tuple(
        Replica(member.node_id, member.replica_id >> REPLICA_SEQUENCE_BITS << REPLICA_SEQUENCE_BITS | sequence)
        for member in parent.members
    )
    return Shard(
        shard_id=shard_name(index),
        table=parent.table,
        group_id=draft.new_group_id(),
        shard_index=index,
        shard_count=shard_count,
        epoch=1,
        phase=Phase.AWAITED,
        birth=(),
        members=expected,
        parent=parent.shard_id,
        sequence=sequence,
    )


def _check_way(table: Table, num_shards: int, multiple: int) -> None:
    """The way goes over the least common multiple, which is a number of shards as any other."""
    if multiple <= checks.SHARDS_MAX:
        return
    fit = [one for one in range(1, checks.SHARDS_MAX + 1) if math.lcm(table.num_shards, one) <= checks.SHARDS_MAX]
    near = sorted(sorted(fit, key=lambda one: abs(one - num_shards))[:NUMBERS_SHOWN])
    raise _unmet(
        "num_shards",
        f"num_shards: the way from {table.num_shards} to {num_shards} shards goes over {multiple}, more than there can "
        f"be; near it are {', '.join(map(str, near))}, or go there in two steps",
    )


def _check_at_rest(draft: Draft, parents: list[Shard]) -> None:
    base = draft.base
    copies = [job for job in base.jobs.values() if job.kind in COPIES and job.status is JobStatus.RUNNING]
    if copies:
        raise _unmet("num_shards", f"num_shards: operation {copies[0].number}, {copies[0].text}, is under way")
    for shard in parents:
        if shard.phase is not Phase.ACTIVE:
            raise _unmet("num_shards", f"num_shards: {shard.shard_id} is still being created")
        if shard.parent:
            raise _unmet(
                "num_shards",
                f"num_shards: {shard.shard_id} was born of {shard.parent} and does not have all of its replicas yet",
            )
        if shard.moving:
            raise _unmet("num_shards", f"num_shards: {shard.shard_id} is moving; wait for it, or cancel the move")
        living = sum(_is_living(base, member) for member in shard.members)
        if not has_quorum(living, len(shard.members)):
            raise _unmet("num_shards", f"num_shards: {shard.shard_id} has lost its quorum")


def _is_living(state: ClusterState, member: Replica) -> bool:
    node = state.nodes.get(member.node_id)
    return node is not None and node.status is not NodeStatus.DEAD


def _unmet(field: str, message: str) -> Refused:
    return Refused(RejectCode.FAILED_PRECONDITION, field, message)
