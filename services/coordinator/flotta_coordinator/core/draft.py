"""The next state in the making: collects what a transition changes, and numbers it at the end.

Invariant: a draft without a change finishes as the very state it began with, so a repeated command is never logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from flotta_coordinator.core.jobs import left
from flotta_coordinator.core.results import Applied, Refused, RejectCode, Reply
from flotta_coordinator.core.state import (
    DECISIONS_MAX,
    JOBS_MAX,
    ClusterState,
    Decision,
    Job,
    JobKind,
    JobStatus,
    Node,
    Note,
    Replica,
    Shard,
    Table,
)

REPLICA_SEQUENCE_BITS = 32

V = TypeVar("V")


class Draft:
    def __init__(self, base: ClusterState, now_ms: int) -> None:
        self.base = base
        self.now_ms = now_ms
        self.cluster_id = base.cluster_id
        self.counters = base.counters
        self.nodes: dict[str, Node] = {}  # changed records only
        self.shards: dict[str, Shard] = {}
        self.tables: dict[str, Table] = {}
        self._gone: set[str] = set()  # nodes that are removed
        self._merged: set[str] = set()  # shards that are no more
        self._recalled: set[str] = set()  # nodes that were removed, and are not after all
        self._jobs: dict[int, Job | None] = {}  # None: dropped
        self._notes: dict[str, Note | None] = {}  # None: it stands no more
        self._decisions: list[tuple[str, str, str]] = []
        self.roster = base.roster
        self.leap_to = 0  # the version of the map that this makes, if not the next one

    def node(self, node_id: str, field: str = "node_id") -> Node:
        """The node as it now is; Refused when there is none."""
        found = self.nodes.get(node_id) or self.base.nodes.get(node_id)
        if found is None:
            raise Refused(RejectCode.NOT_FOUND, field, f"{field}: no node is registered as {node_id!r}")
        return found

    def shard(self, shard_id: str) -> Shard:
        """The shard as it now is; Refused when there is none."""
        found = self.shards.get(shard_id) or self.base.shards.get(shard_id)
        if found is None:
            raise Refused(RejectCode.NOT_FOUND, "shard_id", f"shard_id: there is no shard {shard_id!r}")
        return found

    def put_node(self, node: Node) -> bool:
        """Record a node if it differs (its time apart); tells whether it did."""
        old = self.nodes.get(node.node_id) or self.base.nodes.get(node.node_id)
        if old is not None and replace(node, changed_ms=old.changed_ms) == old:
            return False
        self.nodes[node.node_id] = replace(node, changed_ms=self.now_ms)
        return True

    def remove_node(self, node_id: str) -> None:
        self._gone.add(node_id)

    def recall_node(self, node: Node) -> None:
        """Put a node that was removed back on the map."""
        self._recalled.add(node.node_id)
        self.put_node(node)

    def put_note(self, note: Note) -> bool:
        """Let a note stand, from now; tells whether it says something new."""
        old = self.base.notes.get(note.key)
        if old is not None and old.text == note.text:
            return False
        self._notes[note.key] = replace(note, since_ms=self.now_ms)
        return True

    def drop_note(self, key: str) -> None:
        if key in self.base.notes:
            self._notes[key] = None

    def put_shard(self, shard: Shard) -> bool:
        old = self.shards.get(shard.shard_id) or self.base.shards.get(shard.shard_id)
        if old == shard:
            return False
        self.shards[shard.shard_id] = shard
        return True

    def remove_shard(self, shard_id: str) -> None:
        """Another has its keys."""
        self.shards.pop(shard_id, None)
        self._merged.add(shard_id)

    def is_gone(self, shard: Shard) -> bool:
        return shard.shard_id in self._merged

    def put_table(self, table: Table) -> None:
        self.tables[table.name] = table

    def decide(self, kind: str, subject: str, reason: str) -> None:
        """Keep why. `reason` is one sentence."""
        self._decisions.append((kind, subject, reason))

    def begin_job(
        self, kind: JobKind, subject: str, text: str, steps: int, *, before: int = 0, target: str = ""
    ) -> Job:
        """Long work begins. The longest ended one is forgotten for it when there are too many."""
        if len(self.base.jobs) >= JOBS_MAX:
            ended = [job for job in self.base.jobs.values() if job.status is not JobStatus.RUNNING]
            if not ended:
                message = f"kind: {JOBS_MAX} operations are under way, the most there can be; cancel one, or wait"
                raise Refused(RejectCode.FAILED_PRECONDITION, "kind", message)
            self._jobs[min(ended, key=lambda job: (job.ended_ms, job.number)).number] = None
        number = self.counters.job
        self.counters = replace(self.counters, job=number + 1)
        job = Job(number, kind, subject, text, steps, self.now_ms, before=before, target=target)
        self._jobs[number] = job
        return job

    def put_job(self, job: Job) -> None:
        """It is further than it was."""
        self._jobs[job.number] = job

    def end_job(self, job: Job, status: JobStatus, outcome: str) -> None:
        undone = 0 if status is JobStatus.DONE else left(self.base, job)
        self._jobs[job.number] = replace(job, status=status, outcome=outcome, ended_ms=self.now_ms, left=undone)
        word = status.value.lower()
        is_so = "has failed" if status is JobStatus.FAILED else f"is {word}"
        self.decide(f"operation-{word}", job.subject, f"operation {job.number}, {job.text}, {is_so}: {outcome}")

    def has_job(self, number: int) -> bool:
        """Was this job begun or ended here?"""
        return number in self._jobs

    def new_node_num(self) -> int:
        number = self.counters.node_num
        self.counters = replace(self.counters, node_num=number + 1)
        return number

    def new_group_id(self) -> int:
        number = self.counters.group_id
        self.counters = replace(self.counters, group_id=number + 1)
        return number

    def new_replica(self, node: Node) -> Replica:
        """A replica id that was never used before, on a node that has its number."""
        if node.node_num == 0:
            raise Refused(
                RejectCode.FAILED_PRECONDITION,
                "replicas",
                f"replicas: node {node.node_id} is registered but has never reported, so it cannot take a replica",
            )
        return Replica(node.node_id, node.node_num << REPLICA_SEQUENCE_BITS | self.new_sequence())

    def new_sequence(self) -> int:
        """The low half of replica ids that were never used before, whatever their node."""
        sequence = self.counters.replica_sequence
        self.counters = replace(self.counters, replica_sequence=sequence + 1)
        return sequence

    def finish(self, message: str, *, node_num: int = 0, new_epoch: int = 0, taken: int = 0, job: int = 0) -> Applied:
        base = self.base
        visible = bool(self.nodes or self.shards or self.tables or self._gone or self._merged or self.leap_to)
        changed = visible or bool(self._decisions or self._notes or self._jobs) or self.cluster_id != base.cluster_id
        version = self.leap_to or base.map_version + (1 if visible else 0)
        reply = Reply(message, version, node_num=node_num, new_epoch=new_epoch, taken=taken, job=job)
        if not changed:
            return Applied(base, reply)
        first = self.counters.decision
        made = tuple(
            Decision(first + offset, self.now_ms, version, kind, subject, reason)
            for offset, (kind, subject, reason) in enumerate(self._decisions)
        )
        nodes = _with(base.nodes, self.nodes)
        if self._gone:
            nodes = {node_id: node for node_id, node in nodes.items() if node_id not in self._gone}
        shards = _with(base.shards, self.shards)
        if self._merged:
            shards = {shard_id: shard for shard_id, shard in shards.items() if shard_id not in self._merged}
        state = ClusterState(
            cluster_id=self.cluster_id,
            map_version=version,
            sequence=base.sequence + 1,
            counters=replace(self.counters, decision=first + len(made)),
            nodes=nodes,
            tables=_with(base.tables, self.tables),
            shards=shards,
            decisions=(*base.decisions, *made)[-DECISIONS_MAX:] if made else base.decisions,
            notes=self._noted(),
            jobs=self._jobs_now(),
            gone=self._removed(),
            roster=self.roster,
        )
        return Applied(
            state,
            reply,
            changed=True,
            nodes=tuple(sorted({*self.nodes, *self._gone})),
            shards=tuple(sorted({*self.shards, *self._merged})),
            tables=tuple(sorted(self.tables)),
            notes=tuple(sorted(self._notes)),
            jobs=tuple(sorted(self._jobs)),
            decisions=len(made),
            roster=self.roster != base.roster,
            leap=bool(self.leap_to),
        )

    def _removed(self) -> Mapping[str, Node]:
        if not self._gone and not self._recalled:
            return self.base.gone
        gone = _with(self.base.gone, {node_id: self.base.nodes[node_id] for node_id in self._gone})
        return {node_id: node for node_id, node in gone.items() if node_id not in self._recalled}

    def _jobs_now(self) -> Mapping[int, Job]:
        if not self._jobs:
            return self.base.jobs
        known = {**self.base.jobs, **self._jobs}
        return {number: job for number, job in known.items() if job is not None}

    def _noted(self) -> Mapping[str, Note]:
        if not self._notes:
            return self.base.notes
        stand = {**self.base.notes, **self._notes}
        return {key: note for key, note in sorted(stand.items()) if note is not None}


def _with(base: Mapping[str, V], changed: Mapping[str, V]) -> Mapping[str, V]:
    """In the order of the keys, as a member that restarts reads its rows: transitions go through them, and must say the
    same in the same order everywhere."""
    if not changed:
        return base
    now = {**base, **changed}
    return now if len(now) == len(base) else dict(sorted(now.items()))
