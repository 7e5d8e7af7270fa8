"""Takes batches of operations and answers them, whatever transport they came by.

`handle` returns at once; answers go to the batch's reply callback, in one or more lists, every operation exactly
once. Operations are checked, then grouped by shard: writes of a shard are proposed in one call, STRONG reads of a
loop turn share one barrier and one multi-get (`reading.py`). Nothing of a refused operation reaches a log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from flotta_consensus.api import Committed, Outcome, ReadDone, RoleChange
from flotta_consensus.core.waiters import ProposeManyDone
from flotta_proto.flotta.storage_pb2 import DELETE, GET, PUT, Operation, Reply

from flotta_storage import replies
from flotta_storage.budget import Budget
from flotta_storage.core import limits as checks
from flotta_storage.core.limits import Limits, Refusal
from flotta_storage.core.writes import Write, encode_payload, encode_write, fingerprint
from flotta_storage.hints import Hints
from flotta_storage.replica_table import Replica, ReplicaTable
from flotta_storage.stamping import StampSource

ReplyCallback = Callable[[list[Reply]], None]

OVERHEAD_BYTES: Final = 256  # what an operation takes beside its key and value, roughly
_DEADLINE_BUCKET_MS: Final = 128  # operations whose deadlines are this close wait together

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


class Reads(Protocol):
    """Where checked reads go."""

    def add(self, replica: Replica, operations: Sequence[Operation], reply: ReplyCallback) -> None: ...


@dataclass(frozen=True, slots=True)
class Deadlines:
    default_ms: int = 5_000
    longest_ms: int = 60_000

    def of(self, operation: Operation) -> int:
        return min(operation.deadline_ms or self.default_ms, self.longest_ms)

    def bucket(self, operation: Operation) -> int:
        """A timeout for all operations that end about when this one does: not before it, and hardly after."""
        return (self.of(operation) // _DEADLINE_BUCKET_MS + 1) * _DEADLINE_BUCKET_MS


def size_of(operation: Operation) -> int:
    return len(operation.key) + len(operation.value) + OVERHEAD_BYTES


def check_operation(operation: Operation, limits: Limits) -> Refusal | None:
    """What is wrong with an operation on the face of it."""
    refusal = checks.check_key(operation.key) or checks.check_shard_id(operation.shard_id)
    kind = operation.kind
    if refusal is not None:
        return refusal
    if kind == GET:
        return checks.check_read(operation.consistency, operation.read_mode)
    if kind == PUT:
        refusal = checks.check_value(operation.value, limits)
    elif kind == DELETE:
        refusal = checks.check_delete(operation.ttl_ms, operation.if_not_exists, operation.value)
    else:
        return Refusal("kind", f"kind is {kind}, it must be GET, PUT or DELETE")
    return refusal or checks.check_conditions(
        operation.ttl_ms, operation.if_version_equals, operation.if_not_exists, operation.request_id
    )


class Observer(Protocol):
    """Counts, once per batch."""

    def batch(self, operations: int) -> None: ...

    def answered(self, replies: Sequence[Reply]) -> None: ...


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
    ) -> None:
        self._replicas = replicas
        self._hints = hints
        self._stamp_ms = stamp_ms
        self._budget = budget
        self._limits = limits
        self._deadlines = deadlines
        self._observer = observer
        self._target: tuple[Groups, Reads] | None = None

    def attach(self, groups: Groups, reads: Reads) -> None:
        self._target = (groups, reads)

    def detach(self) -> None:
        """What is in work is still answered."""
        self._target = None

    def handle(self, operations: Sequence[Operation], reply: ReplyCallback) -> None:
        self._observer.batch(len(operations))
        target = self._target
        if target is None:
            self._reply([replies.unavailable(operation, NOT_SERVING) for operation in operations], reply)
            return
        by_shard: dict[str, list[Operation]] = {}
        for operation in operations:
            by_shard.setdefault(operation.shard_id, []).append(operation)
        answers: list[Reply] = []
        for shard_id, ours in by_shard.items():
            self._route(target, self._replicas.of_shard(shard_id), ours, reply, answers)
        if answers:
            self._reply(answers, reply)

    def _reply(self, found: list[Reply], reply: ReplyCallback) -> None:
        self._observer.answered(found)
        reply(found)

    def _route(
        self,
        target: tuple[Groups, Reads],
        replica: Replica | None,
        operations: list[Operation],
        reply: ReplyCallback,
        answers: list[Reply],
    ) -> None:
        groups, to_read = target
        state = replica.state() if replica is not None else None
        reads: list[Operation] = []
        writes: list[Operation] = []
        for operation in operations:
            refusal = check_operation(operation, self._limits)
            if refusal is not None:
                answers.append(replies.refused(operation, refusal))
            elif state is None or not state.admits(operation.epoch, operation.key):
                answers.append(replies.moved(operation, self._hints))
            elif not state.owns(operation.key):
                refusal = Refusal("shard_id", "shard_id does not match key's resolved shard")
                answers.append(replies.refused(operation, refusal))
            elif not self._budget.take(size_of(operation)):
                answers.append(replies.rate_limited(operation))
            else:
                (reads if operation.kind == GET else writes).append(operation)
        if replica is not None and reads:
            to_read.add(replica, reads, self._returning(reads, reply))
        if replica is not None and writes:
            self._propose(groups, replica, writes, self._returning(writes, reply))

    def _returning(self, operations: list[Operation], reply: ReplyCallback) -> ReplyCallback:
        """The callback that also gives back what these operations took of the budget."""
        sizes: dict[int, int] = {}
        for operation in operations:  # a sender that uses a call number twice must not bend the sums
            sizes[operation.call] = sizes.get(operation.call, 0) + size_of(operation)

        def answered(found: list[Reply]) -> None:
            self._budget.give_back(len(found), sum(sizes.pop(one.call, 0) for one in found))
            self._reply(found, reply)

        return answered

    def _propose(self, groups: Groups, replica: Replica, writes: list[Operation], reply: ReplyCallback) -> None:
        role = groups.role(replica.group)
        if role is None or not role.is_leader:
            leader = role.leader if role is not None else 0
            reply([replies.not_leader(operation, self._hints, leader) for operation in writes])
            return
        stamp_ms = self._stamp_ms()
        buckets: dict[int, list[Operation]] = {}
        for operation in writes:
            buckets.setdefault(self._deadlines.bucket(operation), []).append(operation)
        for timeout_ms, ours in buckets.items():
            payloads = [encode_payload(stamp_ms, encode_write(_write_of(operation))) for operation in ours]
            groups.propose_many_with(replica.group, payloads, self._proposed(ours, reply), timeout_ms)

    def _proposed(self, operations: list[Operation], reply: ReplyCallback) -> ProposeManyDone:
        def done(outcomes: list[Outcome]) -> None:
            reply(
                [
                    replies.written(operation, outcome.result, self._hints)
                    if isinstance(outcome, Committed)
                    else replies.without_result(operation, outcome, self._hints)
                    for operation, outcome in zip(operations, outcomes, strict=True)
                ]
            )

        return done


def _write_of(operation: Operation) -> Write:
    write = Write(
        operation.key,
        operation.value,
        operation.kind == DELETE,
        operation.epoch,
        operation.ttl_ms,
        operation.if_version_equals,
        operation.if_not_exists,
        operation.request_id.encode(),
    )
    return write._replace(fingerprint=fingerprint(write)) if write.request_id else write
