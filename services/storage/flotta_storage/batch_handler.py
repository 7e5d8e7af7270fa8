"""Takes batches of operations and answers them, whatever transport they came by.

`handle` returns at once; answers go to the batch's reply callback, in one or more lists, every operation exactly
once. Operations are grouped by shard and checked: writes of a shard are proposed in one call, STRONG reads of a loop
turn share one barrier and one multi-get (`reading.py`). Nothing of a refused operation reaches a log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from flotta_consensus.api import Committed, Outcome, ReadDone, RoleChange
from flotta_consensus.core.waiters import ProposeManyDone
from flotta_proto.flotta.storage_pb2 import DELETE, GET, PUT, SCAN, Operation, Reply

from flotta_storage import replies
from flotta_storage.answers import Answers, Observer, ReplyCallback
from flotta_storage.budget import Budget
from flotta_storage.core import limits as checks
from flotta_storage.core.limits import CONSISTENCIES, KEY_BYTES_MAX, READ_MODES, Limits, Refusal
from flotta_storage.core.scans import check_scan
from flotta_storage.core.shard_state import ShardState
from flotta_storage.core.writes import write_payload
from flotta_storage.hints import Hints
from flotta_storage.replica_table import Replica, ReplicaTable
from flotta_storage.stamping import StampSource
from flotta_storage.tracing import OperationTracer

OVERHEAD_BYTES: Final = 256  # what an operation takes beside its key and value, roughly
_DEADLINE_BUCKET_MS: Final = 128  # operations whose deadlines are this close wait together
_NO_CONDITIONS: Final = (0, 0, False, "")

NOT_SERVING: Final = "the storage node is starting or stopping"


class Groups(Protocol):
    """What the request path needs of a `GroupHost`."""

    def propose_many_with(
        self, group: int, payloads: Sequence[bytes], done: ProposeManyDone, timeout_ms: int
    ) -> None: ...

    def read_barrier_with(self, group: int, done: ReadDone, timeout_ms: int) -> None: ...

    def role(self, group: int) -> RoleChange | None: ...

    def fresh_ms(self, group: int) -> int | None: ...

    def now_ms(self) -> int: ...


Admitted = tuple[Operation, int]
"""An operation, and what it took of the budget."""


class Reads(Protocol):
    """Where checked reads go."""

    def add(self, replica: Replica, reads: Sequence[Admitted], answers: Answers) -> None: ...


class Scans(Protocol):
    """Where checked scans go."""

    def add(self, replica: Replica, scans: Sequence[Admitted], answers: Answers) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Deadlines:
    default_ms: int = 5_000
    longest_ms: int = 60_000

    def of(self, operation: Operation) -> int:
        return min(operation.deadline_ms or self.default_ms, self.longest_ms)

    def bucket(self, operation: Operation) -> int:
        """A timeout for all operations that end about when this one does: not before it, and hardly after."""
        return (self.of(operation) // _DEADLINE_BUCKET_MS + 1) * _DEADLINE_BUCKET_MS


def check_operation(operation: Operation, limits: Limits) -> Refusal | None:
    """What is wrong with an operation on the face of it."""
    kind = operation.kind
    if kind == SCAN:
        refusal = check_scan(operation.scan) or checks.check_shard_id(operation.shard_id)
        return refusal or checks.check_read(operation.consistency, operation.read_mode)
    refusal = checks.check_key(operation.key) or checks.check_shard_id(operation.shard_id)
    if refusal is not None:
        return refusal
    if kind == GET:
        return checks.check_read(operation.consistency, operation.read_mode)
    if kind == PUT:
        refusal = checks.check_value(operation.value, limits)
    elif kind == DELETE:
        refusal = checks.check_delete(operation.ttl_ms, operation.if_not_exists, operation.value)
    else:
        return Refusal("kind", f"kind is {kind}, it must be GET, PUT, DELETE or SCAN")
    return refusal or checks.check_conditions(
        operation.ttl_ms, operation.if_version_equals, operation.if_not_exists, operation.request_id
    )


class _Writes:
    """Admitted writes of one shard that are proposed together: those whose deadlines are close."""

    __slots__ = ("operations", "payloads", "size")

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.payloads: list[bytes] = []
        self.size = 0


class _Stamp:
    """The stamp of a batch: clocks are compared once, and only if something is to be written."""

    __slots__ = ("_source", "_stamp_ms")

    def __init__(self, source: StampSource) -> None:
        self._source = source
        self._stamp_ms: int | None = None

    def ms(self) -> int:
        if self._stamp_ms is None:
            self._stamp_ms = self._source()
        return self._stamp_ms


class BatchHandler:
    """See the module. Until `attach` and after `detach` everything is UNAVAILABLE."""

    def __init__(
        self,
        replicas: ReplicaTable,
        hints: Hints,
        stamp_ms: StampSource,
        budget: Budget,
        limits: Limits,
        deadlines: Deadlines,
        observer: Observer,
        tracer: OperationTracer | None = None,
    ) -> None:
        self._replicas = replicas
        self._hints = hints
        self._stamp_ms = stamp_ms
        self._budget = budget
        self._limits = limits
        self._deadlines = deadlines
        self._observer = observer
        self._tracer = tracer
        self._target: tuple[Groups, Reads, Scans] | None = None

    def attach(self, groups: Groups, reads: Reads, scans: Scans) -> None:
        self._target = (groups, reads, scans)

    def detach(self) -> None:
        """What is in work is still answered; of scans, that they were not done."""
        if self._target is not None:
            self._target[2].close()
        self._target = None

    def handle(self, operations: Sequence[Operation], reply: ReplyCallback) -> None:
        self._observer.batch(len(operations))
        if self._tracer is not None:
            reply = self._tracer.around(operations, reply)
        answers = Answers(self._budget, self._observer, reply)
        target = self._target
        if target is None:
            answers.refuse([replies.unavailable(operation, NOT_SERVING) for operation in operations])
            return
        groups, to_read, to_scan = target
        by_shard: dict[str, list[Operation]] = {}
        for operation in operations:
            by_shard.setdefault(operation.shard_id, []).append(operation)
        refused: list[Reply] = []
        stamp = _Stamp(self._stamp_ms)
        for shard_id, ours in by_shard.items():
            replica = self._replicas.of_shard(shard_id)
            state = replica.state() if replica is not None else None
            if replica is None or state is None:
                refused += [self._refusal(operation, None) for operation in ours]
                continue
            dividing = state.sealed or replica.division() is not None
            role = groups.role(replica.group)
            reads, scans, writes = self._sort(ours, state, role, stamp, refused, dividing=dividing)
            if reads:
                to_read.add(replica, reads, answers)
            if scans:
                to_scan.add(replica, scans, answers)
            for timeout_ms, batch in writes.items():
                groups.propose_many_with(replica.group, batch.payloads, self._proposed(batch, answers), timeout_ms)
        if refused:
            answers.refuse(refused)

    def _sort(
        self,
        operations: Sequence[Operation],
        state: ShardState,
        role: RoleChange | None,
        stamp: _Stamp,
        refused: list[Reply],
        *,
        dividing: bool,
    ) -> tuple[list[Admitted], list[Admitted], dict[int, _Writes]]:
        """Check the operations of one shard, and admit them: reads, scans, and writes by the time they may take."""
        reads: list[Admitted] = []
        scans: list[Admitted] = []
        writes: dict[int, _Writes] = {}
        leads = role is not None and role.is_leader
        keys = [operation.key for operation in operations]
        for operation, key, owned in zip(operations, keys, state.own(keys), strict=True):
            kind, value, epoch = operation.kind, operation.value, operation.epoch
            if kind == SCAN:
                self._admit_scan(operation, state, scans, refused)
                continue
            conditions = _NO_CONDITIONS
            if kind == GET:
                plain = operation.consistency in CONSISTENCIES and operation.read_mode in READ_MODES
            else:
                conditions = (
                    operation.ttl_ms,
                    operation.if_version_equals,
                    operation.if_not_exists,
                    operation.request_id,
                )
                plain = kind == PUT and len(value) <= self._limits.value_bytes_max and conditions == _NO_CONDITIONS
            plain = plain and 0 < len(key) <= KEY_BYTES_MAX
            size = len(key) + len(value) + OVERHEAD_BYTES
            fits = plain or check_operation(operation, self._limits) is None
            if not fits or not owned or (epoch and epoch != state.epoch):
                refused.append(self._refusal(operation, state, dividing=dividing))
            elif kind != GET and not leads:
                refused.append(replies.not_leader(operation, self._hints, role.leader if role is not None else 0))
            elif not self._budget.take(size):
                refused.append(replies.rate_limited(operation))
            elif kind == GET:
                reads.append((operation, size))
            else:
                batch = writes.get(timeout_ms := self._deadlines.bucket(operation))
                if batch is None:
                    batch = writes[timeout_ms] = _Writes()
                batch.operations.append(operation)
                batch.payloads.append(write_payload(stamp.ms(), key, value, kind == DELETE, epoch, *conditions))
                batch.size += size
        return reads, scans, writes

    def _admit_scan(self, operation: Operation, state: ShardState, scans: list[Admitted], refused: list[Reply]) -> None:
        """A scan owns no key: its epoch is what routed it, and without one it tells what the shard owned."""
        epoch, scan = operation.epoch, operation.scan
        size = OVERHEAD_BYTES + (scan.bytes_max or self._limits.value_bytes_max)
        if check_operation(operation, self._limits) is not None or (epoch and epoch != state.epoch) or state.sealed:
            refused.append(self._refusal(operation, state))
        elif not self._budget.take_of_half(size):
            refused.append(replies.rate_limited(operation))
        else:
            scans.append((operation, size))

    def _refusal(self, operation: Operation, state: ShardState | None, *, dividing: bool = False) -> Reply:
        """What to tell an operation that this replica cannot take; without a `state` there is no replica. While the
        shard is `dividing`, a key that is not its own may be one of its children's."""
        refusal = check_operation(operation, self._limits)
        if refusal is not None:
            return replies.refused(operation, refusal)
        if state is None or not state.admits(operation.epoch, operation.key) or dividing:
            return replies.moved(operation, self._hints)
        return replies.refused(operation, Refusal("shard_id", "shard_id does not match key's resolved shard"))

    def _proposed(self, batch: _Writes, answers: Answers) -> ProposeManyDone:
        def done(outcomes: list[Outcome]) -> None:
            found = [
                replies.written(operation, outcome.result, self._hints)
                if isinstance(outcome, Committed)
                else replies.without_result(operation, outcome, self._hints)
                for operation, outcome in zip(batch.operations, outcomes, strict=True)
            ]
            answers.give(found, batch.size)

        return done
