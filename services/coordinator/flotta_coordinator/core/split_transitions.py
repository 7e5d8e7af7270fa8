"""The number of shards of a table, changed while it serves: n to k·n, each shard dividing into k by residue.

The order makes the children known, AWAITED: their ids, groups and residue classes. Each shard divides by an entry of
its own log, on its own; nobody creates a child by the map. From the report of a shard that it has divided, routers find
its children by its own `shard_count`; the table's number follows once every shard has divided and every child has a
leader.

Invariants: an order is taken only when every shard is at rest and has a quorum, one at a time; shards never grow
together again, so it cannot be called off; `shard_count` of a shard only grows, and is what the shard reported.
"""

from __future__ import annotations

from dataclasses import replace

from flotta_coordinator.core import checks
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

MULTIPLES_SHOWN = 4


def set_shard_count(draft: Draft, command: SetShardCount) -> Applied:
    """Let every shard of a table divide."""
    checks.check_id("table", command.table)
    checks.check_range("num_shards", command.num_shards, 1, checks.SHARDS_MAX)
    table = draft.base.tables.get(command.table)
    if table is None:
        raise Refused(RejectCode.NOT_FOUND, "table", f"table: there is no table {checks.shown(command.table)}")
    job = running(draft.base, (JobKind.SHARD_COUNT,), table.name)
    if job is not None and job.target == str(command.num_shards):
        return draft.finish(f"{table.name} is being divided into {command.num_shards} shards already", job=job.number)
    if job is not None:
        raise _unmet("num_shards", f"num_shards: operation {job.number}, {job.text}, is under way; one at a time")
    if command.num_shards == table.num_shards:
        return draft.finish(f"{table.name} has {count(table.num_shards, 'shard')} already")
    _check_multiple(table, command.num_shards)
    parents = sorted((one for one in draft.base.shards.values() if one.table == table.name), key=_by_index)
    _check_at_rest(draft, parents)
    for parent in parents:
        for index in range(parent.shard_index + table.num_shards, command.num_shards, table.num_shards):
            draft.put_shard(_awaited(draft, parent, index, command.num_shards))
    factor = command.num_shards // table.num_shards
    draft.decide(
        "shard-count",
        table.name,
        f"an operator wants {command.num_shards} shards of {table.name} instead of {table.num_shards}: each divides "
        f"into {factor}",
    )
    text = f"the division of {table.name} from {table.num_shards} into {command.num_shards} shards"
    target = str(command.num_shards)
    job = draft.begin_job(
        JobKind.SHARD_COUNT, table.name, text, command.num_shards, before=table.num_shards, target=target
    )
    message = f"each of the {count(table.num_shards, 'shard')} of {table.name} divides into {factor}"
    return draft.finish(message, job=job.number)


def divided(state: ClusterState, before: Shard, after: Shard, report: ShardReport) -> Shard:
    """What a report that was found true says of a division: `after`, with it."""
    if report.shard_count > after.shard_count and _is_ordered(state, after, report.shard_count):
        after = replace(after, shard_count=report.shard_count)
    if report.whole and before.phase is Phase.ACTIVE and before.parent:
        after = replace(after, parent="")
    return after


def tell_divided(draft: Draft, before: Shard, after: Shard) -> None:
    if after.shard_count == before.shard_count:
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
        table = draft.base.tables[name]
        wanted = max(shard.shard_count for shard in draft.shards.values() if shard.table == name)
        if wanted == table.num_shards:
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


def _check_multiple(table: Table, num_shards: int) -> None:
    if num_shards > table.num_shards and num_shards % table.num_shards == 0:
        return
    possible = [str(table.num_shards * factor) for factor in range(2, 2 + MULTIPLES_SHOWN)]
    possible = [one for one in possible if int(one) <= checks.SHARDS_MAX]
    ways = f"can become a multiple, as {', '.join(possible)}" if possible else "cannot grow further"
    raise _unmet(
        "num_shards",
        f"num_shards: shards divide, so the {count(table.num_shards, 'shard')} of {table.name} {ways}, not "
        f"{num_shards}; for any other number back the cluster up and restore it into a new one of that size",
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
            raise _unmet("num_shards", f"num_shards: {shard.shard_id} has lost its quorum and cannot divide")


def _is_living(state: ClusterState, member: Replica) -> bool:
    node = state.nodes.get(member.node_id)
    return node is not None and node.status is not NodeStatus.DEAD


def _unmet(field: str, message: str) -> Refused:
    return Refused(RejectCode.FAILED_PRECONDITION, field, message)
