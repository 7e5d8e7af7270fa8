"""Commands about shards: creation, the operator's intents, and what shards report of themselves.

The coordinator records what a shard committed and stores what it should become; it never changes a membership.
A report is taken only when its (epoch, term, configuration index) is greater than what is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flotta_coordinator.core import checks, merge_transitions, split_transitions
from flotta_coordinator.core.commands import (
    InitShards,
    ReportShardLeader,
    ReportShards,
    SetShardLeader,
    SetShardReplicas,
    ShardReport,
)
from flotta_coordinator.core.draft import REPLICA_SEQUENCE_BITS, Draft
from flotta_coordinator.core.jobs import running
from flotta_coordinator.core.placement import awaited, candidates, place, shared_zones
from flotta_coordinator.core.results import Applied, Refused, RejectCode
from flotta_coordinator.core.state import (
    DEFAULT_TABLE,
    ClusterState,
    Heir,
    JobKind,
    JobStatus,
    Node,
    NodeStatus,
    Phase,
    Purpose,
    Replica,
    Shard,
    Table,
    shard_name,
)


def init_shards(draft: Draft, command: InitShards) -> Applied:
    """Create the default table, once. The same numbers again are a success that changes nothing."""
    checks.check_range("num_shards", command.num_shards, 1, checks.SHARDS_MAX)
    checks.check_range("replication_factor", command.replication_factor, 1, checks.REPLICATION_FACTOR_MAX)
    known = draft.base.partitioning
    if known is not None:
        _check_same_numbers(known, command)
        return draft.finish("Shards initialized successfully")
    node_ids = candidates(draft.base.nodes.values())
    _check_nodes_ready(draft, command, node_ids)
    draft.put_table(Table(DEFAULT_TABLE, command.num_shards, command.replication_factor))
    copies = min(command.replication_factor, len(node_ids))
    capped = (
        f", capped from {command.replication_factor} because there are only {copies} nodes"
        if copies < command.replication_factor
        else ""
    )
    zones = {node_id: draft.base.nodes[node_id].zone for node_id in node_ids}
    order = "round robin over"
    if shared_zones(zones.values()):
        order = f"spread over the zones {', '.join(sorted(set(zones.values())))}, on"
    draft.decide(
        "table-created",
        DEFAULT_TABLE,
        f"{command.num_shards} shards of {copies} replicas{capped}, {order} {', '.join(node_ids)}",
    )
    for index, chosen in enumerate(place(node_ids, command.num_shards, command.replication_factor, zones)):
        birth = tuple(draft.new_replica(draft.node(node_id)) for node_id in chosen)
        shard = Shard(
            shard_id=shard_name(index),
            table=DEFAULT_TABLE,
            group_id=draft.new_group_id(),
            shard_index=index,
            shard_count=command.num_shards,
            epoch=1,
            phase=Phase.CREATING,
            birth=birth,
            members=birth,
            target_leader=chosen[0],
            revision_base=command.revision_base,
            birth_shard_count=command.num_shards,
        )
        draft.put_shard(shard)
        draft.decide(
            "shard-created",
            shard.shard_id,
            f"{shard.shard_id} is placed on {', '.join(chosen)}; {chosen[0]} should lead it",
        )
    return draft.finish("Shards initialized successfully")


def set_shard_replicas(draft: Draft, command: SetShardReplicas) -> Applied:
    """Say which nodes should hold the shard, the first of them as its leader. Nodes that stay keep their replica;
    the shard itself moves, and its epoch rises when it has."""
    checks.check_id("shard_id", command.shard_id)
    wanted = _check_replica_list(command.replicas)
    shard = draft.shard(command.shard_id)
    split_transitions.check_not_dividing(draft.base, shard)
    if shard.phase is not Phase.ACTIVE:
        raise _unmet(
            "shard_id", f"shard_id: {shard.shard_id} is still being created and has no leader that could move it"
        )
    check_not_recovered(shard)
    if not shard.moving and sorted(wanted) == sorted(member.node_id for member in shard.members):
        leader = "" if wanted[0] == shard.leader else taking(draft, wanted[0], "replicas").node_id
        after = replace(shard, target_leader=leader, replicas_pinned=True, leader_pinned=True)
        if draft.put_shard(after):
            if leader not in ("", shard.target_leader):
                kind, sentence = "shard-leader-wanted", f"an operator wants {leader} to lead {shard.shard_id}"
            else:
                kind, sentence = "shard-pinned", f"an operator wants {shard.shard_id} to stay on {', '.join(wanted)}"
            draft.decide(kind, shard.shard_id, sentence)
        job = _leadership(draft, shard, leader)
        return draft.finish("Shard replicas updated", new_epoch=shard.epoch, job=job)
    kept = {replica.node_id: replica for replica in (*shard.targets, *shard.members)}
    targets: list[Replica] = []
    for node_id in wanted:
        node = draft.node(node_id, "replicas")
        targets.append(kept.get(node_id) or draft.new_replica(taking(draft, node.node_id, "replicas")))
    hopeless = draft.node(wanted[0], "replicas").status is NodeStatus.DEAD
    leader = "" if hopeless or wanted[0] == shard.leader else wanted[0]
    if draft.put_shard(moved_by_hand(shard, tuple(targets), leader)):
        now_on = ", ".join(member.node_id for member in shard.members)
        draft.decide(
            "shard-move", shard.shard_id, f"an operator moves {shard.shard_id} from {now_on} to {', '.join(wanted)}"
        )
    text = f"the placement of {shard.shard_id} on {', '.join(wanted)}"
    job = _chosen(draft, JobKind.PLACEMENT, shard.shard_id, text, len({*targets} ^ {*shard.members}), ",".join(wanted))
    return draft.finish("Shard replicas updated", new_epoch=shard.epoch + 1, job=job)


def set_shard_leader(draft: Draft, command: SetShardLeader) -> Applied:
    """Say which member should lead; the shard's leader hands over. The epoch must be the one the operator saw."""
    checks.check_id("shard_id", command.shard_id)
    checks.check_id("leader_node_id", command.leader_node_id)
    shard = draft.shard(command.shard_id)
    if command.epoch != shard.epoch:
        raise _unmet("epoch", f"epoch: {shard.shard_id} is at epoch {shard.epoch}, not {command.epoch}")
    check_not_recovered(shard)
    draft.node(command.leader_node_id, "leader_node_id")
    if shard.member_on(command.leader_node_id) is None:
        members = ", ".join(member.node_id for member in shard.members)
        raise _unmet(
            "leader_node_id",
            f"leader_node_id: {command.leader_node_id} is not a replica of {shard.shard_id} ({members})",
        )
    taking(draft, command.leader_node_id, "leader_node_id")
    wanted = "" if shard.leader == command.leader_node_id else command.leader_node_id
    if draft.put_shard(replace(shard, target_leader=wanted, leader_pinned=True)):
        already = "" if wanted else ", which it does"
        sentence = f"an operator wants {command.leader_node_id} to lead {shard.shard_id}{already}"
        draft.decide("shard-leader-wanted", shard.shard_id, sentence)
    return draft.finish("Shard leader updated", job=_leadership(draft, shard, wanted))


def _leadership(draft: Draft, shard: Shard, node_id: str) -> int:
    if not node_id:
        return 0
    text = f"the leadership of {node_id} over {shard.shard_id}"
    return _chosen(draft, JobKind.LEADERSHIP, shard.shard_id, text, 1, node_id)


def _chosen(draft: Draft, kind: JobKind, shard_id: str, text: str, steps: int, target: str) -> int:
    """The operation of what an operator chose, new or under way already; an earlier choice of another is over."""
    instead = (kind,) if kind is JobKind.LEADERSHIP else (JobKind.MOVE, JobKind.PLACEMENT)
    earlier = running(draft.base, instead, shard_id)
    if earlier is not None and (earlier.kind, earlier.target) == (kind, target):
        return earlier.number
    if earlier is not None:
        draft.end_job(earlier, JobStatus.CANCELLED, f"an operator chose otherwise: {text}")
    try:
        return draft.begin_job(kind, shard_id, text, steps, target=target).number
    except Refused:
        return 0  # too many are under way to keep one more on record: what was ordered is done all the same


def check_not_recovered(shard: Shard) -> None:
    """Who its members are is open until the heir has reported."""
    if shard.heir is not None:
        raise _unmet(
            "shard_id", f"shard_id: {shard.shard_id} is being recovered from {shard.heir.node_id}; wait for it"
        )


def moved_by_hand(shard: Shard, targets: tuple[Replica, ...], leader: str) -> Shard:
    return replace(
        shard,
        targets=targets,
        target_leader=leader,
        purpose=Purpose.OPERATOR,
        replicas_pinned=True,
        leader_pinned=True,
        cancelled_ms=0,
    )


def called_off(shard: Shard) -> Shard:
    """Without its move. Whoever calls a placement by hand off has not chosen these nodes, and so pins nothing. Nor has
    anybody chosen what a move of all voters may have got to: the new ones are there before the last old one leaves."""
    members, targets = {*shard.members}, {*shard.targets}
    half_way = bool(targets) and (members.isdisjoint(targets) or targets < members)
    pinned = shard.replicas_pinned and shard.purpose is not Purpose.OPERATOR and not half_way
    return replace(shard, targets=(), purpose=Purpose.NONE, replicas_pinned=pinned)


def report_shards(draft: Draft, command: ReportShards) -> Applied:
    """Take what is news in a node's reports; the rest is passed over, it is only late or repeated."""
    checks.check_id("node_id", command.node_id)
    reporter = draft.base.gone.get(command.node_id) or draft.node(command.node_id)
    taken = 0
    for report in command.reports:
        before = draft.shards.get(report.shard_id) or draft.base.shards.get(report.shard_id)
        after = before and judge(draft.base, before, reporter, report)
        if before is None or after is None:
            continue
        taken += 1
        _recall_needed(draft, after)
        draft.put_shard(_with_fresh_targets(draft, before, after))
        _tell(draft, before, after)
        split_transitions.tell_divided(draft, before, after)
    split_transitions.settle(draft)
    merge_transitions.settle(draft)
    return draft.finish("reported", taken=taken)


def _recall_needed(draft: Draft, shard: Shard) -> None:
    """A move that was called off had been committed a moment before, and the node it went to was then removed as an
    empty one: it is back, to be emptied, until the shard does without it."""
    for member in shard.members:
        gone = draft.base.gone.get(member.node_id)
        if gone is not None and member.node_id not in draft.nodes:
            draft.recall_node(replace(gone, status=NodeStatus.DEAD, draining=True))
            draft.decide(
                "node-recalled",
                gone.node_id,
                f"{gone.node_id} was removed, but {shard.shard_id} had committed a replica there: it is to be emptied",
            )


def report_shard_leader(draft: Draft, command: ReportShardLeader) -> Applied:
    """KvDB's report. It names no membership, so it can only bring a greater term at the recorded epoch."""
    checks.check_id("shard_id", command.shard_id)
    checks.check_id("leader_node_id", command.leader_node_id)
    shard = draft.shard(command.shard_id)
    member = shard.member_on(command.leader_node_id)
    if member is None:
        raise _unmet("leader_node_id", f"leader_node_id: {command.leader_node_id} is not a replica of {shard.shard_id}")
    if shard.heir is not None or command.epoch != shard.epoch or command.term <= shard.leader_term:
        raise _unmet(
            "epoch",
            f"epoch: {shard.shard_id} is known at epoch {shard.epoch}, term {shard.leader_term}; "
            f"epoch {command.epoch}, term {command.term} is not news",
        )
    after = _led_by(shard, member.node_id, command.term)
    draft.put_shard(after)
    _tell(draft, shard, after)
    return draft.finish("reported", taken=1)


def judge(state: ClusterState, shard: Shard, reporter: Node, report: ShardReport) -> Shard | None:
    """The shard as the report makes it, or None when the report says nothing new or cannot be true.

    A move that was given up may have been committed a moment before, and another one asked for since: where that wants
    a new replica on a node that has turned out to have one, it gets the one that is there.
    """
    if report.group_id != shard.group_id or report.leader_replica >> REPLICA_SEQUENCE_BITS != reporter.node_num:
        return None
    if report.leader_replica not in report.voters:
        return None
    if any(_sequence(replica) < shard.replica_floor for replica in report.voters):
        return None  # of before a recovery
    members = _members(state, shard, report.voters)
    if members is None:
        return None
    if shard.heir is not None:
        return _inherited(shard, shard.heir, reporter, report, members)
    said = (report.epoch, report.term, report.conf_index)
    known = (shard.epoch, shard.leader_term, shard.conf_index)
    same_leader = said[:2] == known[:2] and shard.leader == reporter.node_id
    if said[:2] > known[:2] or (same_leader and said > known):
        if report.conf_index < shard.conf_index:
            return None  # a leader that has not applied the configuration it leads under
        after = replace(
            _led_by(shard, reporter.node_id, report.term),
            epoch=report.epoch,
            members=members,
            conf_index=report.conf_index,
        )
    elif same_leader and said == known:
        after = shard
    else:
        return None
    after = replace(after, targets=tuple(after.member_on(item.node_id) or item for item in after.targets))
    if after.targets and not report.moving and set(after.targets) == set(after.members):
        after = replace(after, targets=(), purpose=Purpose.NONE, cancelled_ms=0)
    after = merge_transitions.reported(state, split_transitions.divided(state, shard, after, report), report)
    return after if after != shard else None


def _inherited(
    shard: Shard, heir: Heir, reporter: Node, report: ShardReport, members: tuple[Replica, ...]
) -> Shard | None:
    """The heir has gone on alone. Its log may be shorter than the one that was known, so its own figures count."""
    if report.leader_replica != heir.replica_id or report.epoch < heir.epoch_min or report.term <= heir.term_min:
        return None
    after = _led_by(shard, reporter.node_id, report.term)
    return replace(after, epoch=report.epoch, members=members, conf_index=report.conf_index, heir=None)


def _sequence(replica_id: int) -> int:
    return replica_id & ((1 << REPLICA_SEQUENCE_BITS) - 1)


def _members(state: ClusterState, shard: Shard, voters: Sequence[int]) -> tuple[Replica, ...] | None:
    """Voters as replicas, in the order of the targets they fulfil, else those already known first and in their order;
    None when a voter's node is unknown."""
    replicas: dict[int, Replica] = {}
    for voter in voters:
        node = state.node_by_num(voter >> REPLICA_SEQUENCE_BITS)
        if node is None:
            return None
        replicas[voter] = Replica(node.node_id, voter)
    wanted = {target.replica_id for target in shard.targets} == replicas.keys()
    order = {known.replica_id: place for place, known in enumerate(shard.targets if wanted else shard.members)}
    return tuple(sorted(replicas.values(), key=lambda item: (order.get(item.replica_id, len(order)), item.replica_id)))


def _with_fresh_targets(draft: Draft, before: Shard, after: Shard) -> Shard:
    """A target that names a replica which the shard has just removed (the operator changed his mind while it moved)
    becomes a new replica: a removed one never comes back."""
    removed = set(before.members) - set(after.members)
    if removed.isdisjoint(after.targets):
        return after
    targets = [draft.new_replica(draft.node(item.node_id)) if item in removed else item for item in after.targets]
    return replace(after, targets=tuple(targets))


def _led_by(shard: Shard, node_id: str, term: int) -> Shard:
    wanted = "" if shard.target_leader == node_id else shard.target_leader
    return replace(shard, leader=node_id, leader_term=term, phase=Phase.ACTIVE, target_leader=wanted)


def _tell(draft: Draft, before: Shard, after: Shard) -> None:
    shard_id = after.shard_id
    if after.leader != before.leader:
        was = f"; before it was {before.leader}" if before.leader else ""
        draft.decide("shard-leader", shard_id, f"{after.leader} leads {shard_id} in term {after.leader_term}{was}")
    if after.members != before.members or after.epoch != before.epoch:
        members = ", ".join(member.node_id for member in after.members)
        draft.decide("shard-members", shard_id, f"{shard_id} committed epoch {after.epoch} with the replicas {members}")
    if before.moving and not after.moving:
        draft.decide("shard-moved", shard_id, f"{shard_id} is where it was wanted")


def _check_same_numbers(known: Table, command: InitShards) -> None:
    for field, have, asked in (
        ("num_shards", known.num_shards, command.num_shards),
        ("replication_factor", known.replication_factor, command.replication_factor),
    ):
        if have != asked:
            raise Refused(
                RejectCode.ALREADY_EXISTS,
                field,
                f"{field}: the shards are already initialized with num_shards {known.num_shards} and "
                f"replication_factor {known.replication_factor}, so {asked} is refused",
            )


def _check_nodes_ready(draft: Draft, command: InitShards, node_ids: list[str]) -> None:
    """Refuse to place on too few nodes while announced ones are about to come."""
    if not draft.base.nodes:
        raise _unmet(
            "num_shards", "no node is registered yet: register the storage nodes first, then initialize the shards"
        )
    missing = awaited(draft.base.nodes.values())
    if len(node_ids) < command.replication_factor and missing:
        raise Refused(
            RejectCode.FAILED_PRECONDITION,
            "replication_factor",
            f"only {len(node_ids)} of {len(node_ids) + len(missing)} registered nodes can take replicas yet: "
            f"{', '.join(missing)} never sent a heartbeat; start them, or try again in some seconds "
            "to place without them",
            passing=True,
        )
    if not node_ids:
        raise _unmet(
            "num_shards",
            "no registered node is ALIVE and has sent a heartbeat: start the storage nodes first, "
            "then initialize the shards",
        )


def _check_replica_list(replicas: tuple[str, ...]) -> tuple[str, ...]:
    if not replicas:
        raise checks.invalid("replicas", "must name at least one node")
    if len(replicas) > checks.REPLICATION_FACTOR_MAX:
        raise checks.invalid(
            "replicas", f"must name at most {checks.REPLICATION_FACTOR_MAX} nodes, not {len(replicas)}"
        )
    for position, node_id in enumerate(replicas):
        checks.check_id(f"replicas[{position}]", node_id)
    if len(set(replicas)) != len(replicas):
        twice = sorted({node_id for node_id in replicas if replicas.count(node_id) > 1})
        raise checks.invalid("replicas", f"must name each node once; {', '.join(twice)} is there twice")
    return replicas


def taking(draft: Draft, node_id: str, field: str) -> Node:
    """A node that may be given something new."""
    node = draft.node(node_id, field)
    if node.status is NodeStatus.DEAD:
        raise _unmet(field, f"{field}: {node_id} is DEAD")
    if node.draining:
        raise _unmet(field, f"{field}: {node_id} is being drained and takes nothing new; end the drain first")
    return node


def _unmet(field: str, message: str) -> Refused:
    return Refused(RejectCode.FAILED_PRECONDITION, field, message)
