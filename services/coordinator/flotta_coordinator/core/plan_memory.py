"""What one leader remembers between two looks of the planner, and the view that it makes of the replicated state.

Durations are counted by the leader's monotonic clock, so a wall clock that jumps makes nobody impatient. Only what had
begun before this leader's first look is dated by the wall clock, with the group time at which it was recorded.
Nothing here is logged: a new leader begins anew, and is at worst more patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flotta_coordinator.core.plan_view import NodeView, Policy, ShardView, View
from flotta_coordinator.core.state import OUTSIDE, ClusterState, JobStatus, Node, Phase, Shard


@dataclass(frozen=True, slots=True)
class Progress:
    """What the leader of a moving shard says of it."""

    lags: Mapping[int, int]  # new replica -> entries it still lacks
    copying: bool = False  # a snapshot is on its way to one of them
    waits_for: str = ""  # why the next step cannot be taken yet


@dataclass(slots=True)
class _Course:
    """How an intent of a shard is faring."""

    intent: tuple[object, ...]
    since_ms: int  # of the last time it came closer
    lag: int | None = None  # the least there has been
    phases: set[tuple[int, bool]] = field(default_factory=set)


class Memory:
    def __init__(self) -> None:
        self._begun = False
        self._seen: dict[str, tuple[int, int, int]] = {}  # key -> stamp, first seen, age then
        self._before: dict[str, tuple[int, int, int]] = {}  # the same, as of the last look
        self._courses: dict[str, _Course] = {}
        self._progress: dict[str, Progress] = {}
        self._avoid: dict[tuple[str, str], int] = {}  # shard and node -> until

    def reported(self, shard_id: str, progress: Progress | None) -> None:
        """The leader of a shard said how its move fares; None: it said nothing of one."""
        if progress is None:
            self._progress.pop(shard_id, None)
        else:
            self._progress[shard_id] = progress

    def progress(self, shard_id: str) -> Progress | None:
        return self._progress.get(shard_id)

    def gave_up(self, shard: ShardView, policy: Policy, now_ms: int) -> None:
        """An intent of the shard was dropped. Where it had stalled, those it waited for are left out for a while."""
        if shard.idle_ms < policy.stall_ms:
            return
        for node_id in set(shard.targets) - set(shard.members) or {shard.target_leader}:
            self._avoid[shard.shard_id, node_id] = now_ms + policy.avoid_ms

    def view(self, state: ClusterState, policy: Policy, *, now_ms: int, wall_ms: int, ready: bool) -> View:
        """The state as the planner looks at it. `now_ms` is monotonic."""
        self._avoid = {key: until_ms for key, until_ms in self._avoid.items() if until_ms > now_ms}
        avoided: dict[str, set[str]] = {}
        for shard_id, node_id in self._avoid:
            avoided.setdefault(shard_id, set()).add(node_id)
        self._before, self._seen = self._seen, {}  # what is asked for no more is forgotten
        nodes = {
            node.node_id: _node_view(
                node, self._age_ms(f"node/{node.node_id}", node.changed_ms, now_ms, wall_ms), policy
            )
            for node in state.nodes.values()
        }
        dividing = state.dividing()
        shards = tuple(
            replace(
                self._shard_view(state, shard, policy, now_ms, wall_ms, frozenset(avoided.get(shard.shard_id, ()))),
                dividing=shard.shard_id in dividing,
            )
            for shard in sorted(state.shards.values(), key=lambda shard: shard.group_id)
        )
        copies = {
            job.number: self._age_ms(f"job/{job.number}", job.reported_ms or job.begun_ms, now_ms, wall_ms)
            for job in state.jobs.values()
            if job.kind in OUTSIDE and job.status is JobStatus.RUNNING
        }
        self._begun = True
        return View(nodes, shards, {key: note.text for key, note in state.notes.items()}, copies, ready)

    def _age_ms(self, key: str, stamp_ms: int, now_ms: int, wall_ms: int) -> int:
        known = self._before.get(key)
        if known is None or known[0] != stamp_ms:
            known = (stamp_ms, now_ms, 0 if self._begun else max(0, wall_ms - stamp_ms))
        self._seen[key] = known
        return known[2] + now_ms - known[1]

    def _shard_view(
        self, state: ClusterState, shard: Shard, policy: Policy, now_ms: int, wall_ms: int, avoid: frozenset[str]
    ) -> ShardView:
        held = False
        if shard.cancelled_ms:
            held = self._age_ms(f"hold/{shard.shard_id}", shard.cancelled_ms, now_ms, wall_ms) < policy.hold_ms
        progress = self._progress.get(shard.shard_id)
        return ShardView(
            shard_id=shard.shard_id,
            table=shard.table,
            epoch=shard.epoch,
            active=shard.phase is Phase.ACTIVE,
            wanted=state.tables[shard.table].replication_factor,
            members=tuple(member.node_id for member in shard.members),
            leader=shard.leader,
            targets=tuple(target.node_id for target in shard.targets),
            target_ids=tuple(target.replica_id for target in shard.targets),
            target_leader=shard.target_leader,
            purpose=shard.purpose,
            replicas_pinned=shard.replicas_pinned,
            leader_pinned=shard.leader_pinned,
            held=held,
            avoid=avoid,
            idle_ms=self._idle_ms(shard, progress, now_ms),
            copying=progress is not None and progress.copying,
            parent=shard.parent,
            into=shard.into,
            merging=shard.order > 0,
            awaited=shard.phase is Phase.AWAITED,
            heir=shard.heir.node_id if shard.heir is not None else "",
        )

    def _idle_ms(self, shard: Shard, progress: Progress | None, now_ms: int) -> int:
        """Since the intent came closer: a step was taken for the first time, or the distance is less than ever."""
        if not shard.targets and not shard.target_leader:
            self._courses.pop(shard.shard_id, None)
            return 0
        intent = (shard.epoch, shard.targets, shard.target_leader)
        course = self._courses.get(shard.shard_id)
        if course is None or course.intent != intent:
            course = self._courses[shard.shard_id] = _Course(intent, now_ms)
        coming = {target.replica_id for target in shard.targets} - {member.replica_id for member in shard.members}
        lags = [lag for replica, lag in progress.lags.items() if replica in coming] if progress is not None else []
        if progress is not None and lags:
            lag, phase = sum(lags), (len(lags), progress.copying)
            if course.lag is None or lag < course.lag or phase not in course.phases:
                course.lag = lag if course.lag is None else min(lag, course.lag)
                course.phases.add(phase)
                course.since_ms = now_ms
        return now_ms - course.since_ms


def _node_view(node: Node, age_ms: int, policy: Policy) -> NodeView:
    last = node.returns_ms[-1] if node.returns_ms else 0
    return NodeView(
        node_id=node.node_id,
        zone=node.zone,
        status=node.status,
        age_ms=age_ms,
        placeable=node.placeable,
        draining=node.draining,
        flaps=sum(last - back_ms < policy.flap_window_ms for back_ms in node.returns_ms),
    )
