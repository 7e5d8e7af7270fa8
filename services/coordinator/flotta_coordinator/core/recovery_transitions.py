"""A shard that lost its quorum for good goes on from one replica by an operator's order: the one unsafe thing there is.

Writes that only the lost replicas had are gone, acknowledged ones included. So it is refused while a quorum could come
back: while enough members are on nodes that are not DEAD, or not DEAD for long enough. What is ordered is irrevocable,
since the heir may have acted on it: every replica of before is below the shard's new floor, and neither serves nor
reports any more, wherever it comes back.
"""

from __future__ import annotations

from dataclasses import replace

from flotta_coordinator.core import checks
from flotta_coordinator.core.commands import RecoverShard
from flotta_coordinator.core.draft import REPLICA_SEQUENCE_BITS, Draft
from flotta_coordinator.core.jobs import running
from flotta_coordinator.core.merge_transitions import check_not_merging
from flotta_coordinator.core.quorum import has_quorum, quorum
from flotta_coordinator.core.results import Applied, Refused, RejectCode
from flotta_coordinator.core.split_transitions import check_not_dividing
from flotta_coordinator.core.state import Heir, JobKind, JobStatus, Node, NodeStatus, Phase, Purpose, Shard
from flotta_coordinator.core.wording import count, seconds, some


def recover_shard(draft: Draft, command: RecoverShard) -> Applied:
    """Give the shard to one heir, under an id that nobody has ever met."""
    checks.check_id("shard_id", command.shard_id)
    checks.check_id("node_id", command.node_id)
    shard = draft.shard(command.shard_id)
    survivor = draft.node(command.node_id)
    lost = _lost(draft, shard, command)
    _check_survivor(draft, shard, survivor, command)
    earlier = running(draft.base, (JobKind.RECOVER,), shard.shard_id)
    if earlier is not None:
        draft.end_job(earlier, JobStatus.FAILED, f"{earlier.target} is lost too, so {survivor.node_id} is to go on")
    floor = draft.counters.replica_sequence
    heir = Heir(
        survivor.node_id,
        draft.new_replica(survivor).replica_id,
        command.replica_id,
        max(command.seen_term, shard.leader_term),
        max(command.seen_epoch, shard.epoch, shard.heir.epoch_min if shard.heir is not None else 0) + 1,
    )
    after = replace(
        shard,
        heir=heir,
        replica_floor=floor,
        leader="",
        targets=(),
        target_leader="",
        purpose=Purpose.NONE,
        replicas_pinned=False,
        leader_pinned=False,
    )
    draft.put_shard(after)
    what = (
        f"{shard.shard_id} goes on from its replica on {survivor.node_id} alone, whose log ends at index "
        f"{command.last_index}: {some(lost)} {'is' if len(lost) == 1 else 'are'} lost, and with "
        f"{'it' if len(lost) == 1 else 'them'} every write that is not in that log, acknowledged ones included"
    )
    draft.decide("shard-recovered", shard.shard_id, f"an operator ordered it: {what}")
    text = f"the recovery of {shard.shard_id} from {survivor.node_id}"
    job = draft.begin_job(JobKind.RECOVER, shard.shard_id, text, 1, target=survivor.node_id)
    return draft.finish(what, new_epoch=heir.epoch_min, job=job.number)


def _lost(draft: Draft, shard: Shard, command: RecoverShard) -> list[str]:
    """The members that nobody waits for; Refused when the others are, or could be, a quorum."""
    if shard.phase is not Phase.ACTIVE:
        raise _unmet("shard_id", f"{shard.shard_id} is still being created, so there is nothing to recover")
    check_not_dividing(draft.base, shard)
    check_not_merging(draft.base, shard)
    if shard.parent:
        raise _unmet("shard_id", f"{shard.shard_id} is being born of {shard.parent}, which still has its rows")
    if command.epoch != shard.epoch:
        raise _unmet("epoch", f"{shard.shard_id} is at epoch {shard.epoch} by now, not {command.epoch}: ask again")
    if shard.heir is not None and not _is_lost(draft, shard.heir.node_id, command):
        raise _unmet("shard_id", f"{shard.shard_id} is being recovered already, from {shard.heir.node_id}")
    members = [member.node_id for member in shard.members]
    lost = [node_id for node_id in members if _is_lost(draft, node_id, command)]
    there = [node_id for node_id in members if node_id not in lost]
    if has_quorum(len(there), len(members)):
        how = ", ".join(_condition(draft, node_id, command) for node_id in there)
        raise _unmet(
            "shard_id",
            f"{shard.shard_id} needs {quorum(len(members))} of its {count(len(members), 'replica')} and can still "
            f"have them: {how}; bring them back, which loses nothing",
        )
    return lost


def _is_lost(draft: Draft, node_id: str, command: RecoverShard) -> bool:
    node = draft.base.nodes.get(node_id)
    if node is None:
        return True
    long_enough = draft.now_ms - node.changed_ms >= command.lost_after_ms and node_id not in command.unsure
    return node.status is NodeStatus.DEAD and long_enough


def _condition(draft: Draft, node_id: str, command: RecoverShard) -> str:
    node = draft.base.nodes[node_id]
    if node.status is not NodeStatus.DEAD:
        return f"{node_id} is {node.status.name}"
    return f"{node_id} is DEAD for less than {seconds(command.lost_after_ms)}"


def _check_survivor(draft: Draft, shard: Shard, survivor: Node, command: RecoverShard) -> None:
    sequence = command.replica_id & ((1 << REPLICA_SEQUENCE_BITS) - 1)
    known = 0 < sequence < draft.counters.replica_sequence
    if command.replica_id >> REPLICA_SEQUENCE_BITS != survivor.node_num or not known:
        raise _unmet("replica_id", f"{command.replica_id} is no replica of {shard.shard_id} on {survivor.node_id}")
    if survivor.status is NodeStatus.DEAD:
        raise _unmet("node_id", f"{survivor.node_id} is DEAD")
    for field, value in (("last_index", command.last_index), ("seen_term", command.seen_term)):
        checks.check_range(field, value, 1, 1 << 62)
    checks.check_range("seen_epoch", command.seen_epoch, 1, 1 << 62)


def _unmet(field: str, message: str) -> Refused:
    return Refused(RejectCode.FAILED_PRECONDITION, field, f"{field}: {message}")
