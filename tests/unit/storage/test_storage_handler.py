"""The batch handler over a scripted Raft host: what is asked of the host, and what each outcome becomes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from flotta_consensus.api import (
    Committed,
    Entry,
    EntryKind,
    Members,
    Outcome,
    ReadOutcome,
    ReadReady,
    Rejected,
    RejectReason,
    RoleChange,
    Unknown,
)
from flotta_consensus.core.clock_bounds import PeerClocks
from flotta_embedded.machine import Machine
from flotta_embedded.simulated import SimEngine
from flotta_proto.flotta import storage_pb2 as pb
from flotta_proto.kvdb import coordinator_pb2, gateway_pb2
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.clock import ManualClock
from flotta_runtime.tracing import Tracer
from flotta_storage.batch_handler import BatchHandler, Deadlines
from flotta_storage.budget import Budget
from flotta_storage.core.commands import birth_rows, new_registry
from flotta_storage.core.limits import Limits
from flotta_storage.hints import Hints
from flotta_storage.map_model import MapModel
from flotta_storage.reading import ReadBatcher
from flotta_storage.replica_table import Replica, ReplicaTable
from flotta_storage.scanning import Scanner
from flotta_storage.stamping import NO_STAMP, Stamps
from flotta_storage.tracing import OperationTracer


class ScriptedGroups:
    """Commits at once by default; `outcome` and `read_outcome` script anything else."""

    def __init__(self, machine: Machine, clock: ManualClock) -> None:
        self.machine = machine
        self.clock = clock
        self.proposals: list[tuple[int, int]] = []  # (payloads, timeout_ms) per call
        self.barriers: list[int] = []
        self.outcome: Outcome | None = None
        self.read_outcome: ReadOutcome | None = None
        self.leads = True
        self.fresh: int | None = None
        self.on_barrier: Callable[[], object] = lambda: None  # what is applied while a barrier is under way

    def propose_many_with(self, group: int, payloads: Sequence[bytes], done: Any, timeout_ms: int) -> None:
        self.proposals.append((len(payloads), timeout_ms))
        if self.outcome is not None:
            done([self.outcome] * len(payloads))
            return
        at = self.machine.applied_index()
        entries = [Entry(at + 1 + n, 2, EntryKind.NORMAL, payload) for n, payload in enumerate(payloads)]
        results = self.machine.apply_many(entries)
        done([Committed(entry.index, 2, result) for entry, result in zip(entries, results, strict=True)])

    def read_barrier_with(self, group: int, done: Any, timeout_ms: int) -> None:
        self.barriers.append(timeout_ms)
        self.on_barrier()
        done(self.read_outcome or ReadReady(self.machine.applied_index()))

    def role(self, group: int) -> RoleChange:
        return RoleChange(group, self.leads, 2, (1 if self.leads else 2) << 32 | 1)

    def fresh_ms(self, group: int) -> int | None:
        return self.fresh

    def now_ms(self) -> int:
        return self.clock.monotonic_ms()


class Silent:
    def batch(self, operations: int) -> None:
        self.batches = operations

    def answered(self, replies: Sequence[pb.Reply]) -> None:
        self.replies = replies


class Setup:
    def __init__(self, operations_max: int = 100, bytes_max: int = 1 << 20) -> None:
        self.clock = ManualClock()
        self.peers = PeerClocks()
        self.stamps = Stamps(self.clock, self.peers, 500, "node-1")
        engine = SimEngine()
        rows = birth_rows("shard-0", "default", 0, 1)
        machine = Machine.create(engine, "g", new_registry(), members=Members((1 << 32 | 1,)), rows=rows)
        self.groups = ScriptedGroups(machine, self.clock)
        self.budget = Budget(operations_max, bytes_max)
        self.turn: list[Callable[[], None]] = []
        replicas = ReplicaTable()
        replicas.add(Replica("shard-0", 100, 1 << 32 | 1, machine))
        hints = Hints(self.model(), "node-1")
        deadlines = Deadlines(5_000, 60_000)
        self.spans: list[bytes] = []
        self.tracer = Tracer(self.spans.append, "storage")
        self.handler = BatchHandler(
            *(replicas, hints, self.stamps.now_ms, self.budget, Limits(64), deadlines, Silent()),
            OperationTracer(self.tracer),
        )
        self.reads = ReadBatcher(self.groups, hints, self.stamps.now_ms, self.budget, deadlines, self.turn.append)
        self.passes: list[Callable[[], None]] = []
        self.scans = Scanner(self.groups, hints, self.stamps.now_ms, deadlines, self.passes.append)
        self.handler.attach(self.groups, self.reads, self.scans)

    @staticmethod
    def model() -> MapModel:
        model = MapModel()
        nodes = {
            f"node-{n}": coordinator_pb2.NodeRecord(
                node_id=f"node-{n}", address=f"host-{n}:1", detail=coordinator_pb2.NodeDetail(node_num=n)
            )
            for n in (1, 2)
        }
        state = coordinator_pb2.ClusterState(map_version=1, cluster_id="c", nodes=nodes)
        state.shards["shard-9"].CopyFrom(coordinator_pb2.ShardRecord(shard_id="shard-9", leader="node-2"))
        model.take_state(state)
        return model

    def run(self, *operations: pb.Operation) -> list[pb.Reply]:
        """Handle one batch and end the turn; the replies in call order."""
        found: list[pb.Reply] = []
        for call, operation in enumerate(operations):
            operation.call = call
            operation.shard_id = operation.shard_id or "shard-0"
        self.handler.handle(operations, found.extend)
        while self.turn:
            self.turn.pop(0)()
        return sorted(found, key=lambda reply: reply.call)


def put(key: bytes = b"k", value: bytes = b"v", **fields: Any) -> pb.Operation:
    return pb.Operation(kind=pb.PUT, key=key, value=value, **fields)


def get(key: bytes = b"k", **fields: Any) -> pb.Operation:
    return pb.Operation(kind=pb.GET, key=key, **fields)


def test_a_batch_is_one_proposal_call_one_barrier_and_one_multi_get() -> None:
    setup = Setup()
    assert [one.code for one in setup.run(*(put(b"%d" % n) for n in range(30)))] == [Status.OK] * 30
    assert [count for count, _ in setup.groups.proposals] == [30]
    assert [one.value for one in setup.run(*(get(b"%d" % n) for n in range(30)))] == [b"v"] * 30
    assert len(setup.groups.barriers) == 1
    assert (setup.budget.operations, setup.budget.bytes) == (0, 0)


def test_reads_of_several_batches_of_a_turn_share_a_barrier() -> None:
    setup = Setup()
    found: list[pb.Reply] = []
    for call in range(5):
        operation = get()
        operation.call, operation.shard_id = call, "shard-0"
        setup.handler.handle([operation], found.extend)
    assert found == []
    setup.turn.pop()()
    assert len(setup.groups.barriers) == 1
    assert sorted(one.call for one in found) == list(range(5))


def test_operations_keep_their_own_deadlines() -> None:
    setup = Setup()
    setup.run(put(deadline_ms=100), put(), put(deadline_ms=120), put(deadline_ms=10_000_000))
    timeouts = {timeout: count for count, timeout in setup.groups.proposals}
    assert sorted(timeouts.values()) == [1, 1, 2]
    assert [120 <= timeout <= 256 for timeout in sorted(timeouts)] == [True, False, False]
    assert max(timeouts) <= 60_000 + 128


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Unknown("deadline"), Status.TIMEOUT),
        (Rejected(RejectReason.NOT_LEADER, 2 << 32 | 1), Status.NOT_LEADER),
        (Rejected(RejectReason.NO_LEADER), Status.NOT_LEADER),
        (Rejected(RejectReason.LOST), Status.NOT_LEADER),
        (Rejected(RejectReason.UNKNOWN_GROUP), Status.SHARD_MOVED),
        (Rejected(RejectReason.OVERLOADED), Status.RATE_LIMITED),
        (Rejected(RejectReason.CLOSED), Status.UNAVAILABLE),
        (Rejected(RejectReason.INVALID), Status.UNAVAILABLE),
    ],
)
def test_only_the_unknown_is_called_unknown(outcome: Outcome, code: int) -> None:
    setup = Setup()
    setup.groups.outcome = outcome
    setup.groups.read_outcome = outcome if not isinstance(outcome, Committed) else None
    write, read = setup.run(put(), get())
    assert (write.code, read.code) == (code, code)
    assert ("may have happened" in write.message) is (code == Status.TIMEOUT)
    if outcome == Rejected(RejectReason.NOT_LEADER, 2 << 32 | 1):
        assert write.leader_hint == "host-2:1"
    assert (setup.budget.operations, setup.budget.bytes) == (0, 0)


def test_a_follower_takes_no_writes_and_serves_reads() -> None:
    setup = Setup()
    setup.groups.leads = False
    write, read = setup.run(put(), get())
    assert (write.code, write.leader_hint) == (Status.NOT_LEADER, "host-2:1")
    assert setup.groups.proposals == []
    assert read.code == Status.NOT_FOUND


def test_an_unknown_shard_is_moved_with_a_hint() -> None:
    setup = Setup()
    known, unknown = setup.run(get(shard_id="shard-9"), get(shard_id="shard-77"))
    assert (known.code, known.new_node_hint, known.shard_id) == (Status.SHARD_MOVED, "host-2:1", "shard-9")
    assert (unknown.code, unknown.new_node_hint) == (Status.SHARD_MOVED, "")


def test_an_overdue_row_is_expired_before_a_strong_read_is_answered() -> None:
    setup = Setup()
    setup.run(put(ttl_ms=1_000))
    assert setup.run(get())[0].code == Status.OK
    setup.clock.advance(1_000)
    eventual = get(consistency=gateway_pb2.EVENTUAL)
    assert setup.run(eventual)[0].code == Status.OK, "group time has not moved yet"
    setup.groups.leads = False
    assert setup.run(get())[0].code == Status.NOT_LEADER
    setup.groups.leads = True
    before = len(setup.groups.proposals)
    assert setup.run(get())[0].code == Status.NOT_FOUND
    assert len(setup.groups.proposals) == before + 1
    assert setup.groups.machine.group_time_ms() == setup.clock.wall_ms()
    assert setup.run(get())[0].code == Status.NOT_FOUND
    assert len(setup.groups.proposals) == before + 1
    assert setup.run(get(consistency=gateway_pb2.EVENTUAL))[0].code == Status.NOT_FOUND


def hear(setup: Setup, *behind_ms: int) -> None:
    """Peers say what their clocks show: this much less than the node's."""
    for number, behind in enumerate(behind_ms):
        setup.peers.heard(number, setup.clock.wall_ms() - behind, setup.clock.monotonic_ms())


def test_a_leader_whose_clock_is_out_of_bounds_stamps_nothing() -> None:
    setup = Setup()
    machine = setup.groups.machine
    hear(setup, 0, 0)
    (written,) = setup.run(put(ttl_ms=1_000))
    stamped_ms = machine.group_time_ms()
    assert stamped_ms == setup.clock.wall_ms()
    setup.clock.advance(5)
    setup.clock.jump_wall(3_600_000)
    assert setup.run(put(b"other"))[0].code == Status.OK
    assert machine.group_time_ms() == stamped_ms, "group time stands still"
    proposals = len(setup.groups.proposals)
    found = setup.run(get())[0]
    assert (found.code, found.version) == (Status.OK, written.version), "overdue only by the clock that is wrong"
    assert len(setup.groups.proposals) == proposals
    assert setup.stamps.now_ms() == NO_STAMP
    assert "more than 500 ms" in setup.stamps.problem
    setup.clock.jump_wall(-3_600_000)
    setup.clock.advance(1_000)
    assert setup.run(get())[0].code == Status.NOT_FOUND, "in bounds again, it is overdue and expired first"
    assert machine.group_time_ms() == setup.clock.wall_ms()
    assert setup.stamps.problem == ""


def test_a_change_of_the_clock_is_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    setup = Setup()
    hear(setup, 501, 501, 0)
    for _ in range(3):
        assert setup.stamps.now_ms() == NO_STAMP
    hear(setup, 500, 500, 0)
    for _ in range(3):
        assert setup.stamps.now_ms() == setup.clock.wall_ms()
    said = capsys.readouterr()
    assert (said.out + said.err).count("no time is stamped") == 1
    assert (said.out + said.err).count("agrees with most peers again") == 1


def test_weaker_reads_need_no_barrier_as_long_as_the_state_is_good_enough() -> None:
    setup = Setup()
    (written,) = setup.run(put())
    eventual = gateway_pb2.EVENTUAL
    session = {"consistency": eventual, "read_mode": gateway_pb2.READ_YOUR_WRITES}
    assert setup.run(get(consistency=eventual))[0].guarantee == pb.ANY
    assert setup.run(get(**session, session_revision=written.revision))[0].guarantee == pb.SESSION
    assert setup.groups.barriers == []
    setup.run(get(**session, session_revision=written.revision + 1))
    assert len(setup.groups.barriers) == 1
    setup.run(get(consistency=eventual, max_staleness_ms=50))
    assert len(setup.groups.barriers) == 2, "nothing is known to be fresh"
    setup.groups.fresh = setup.clock.monotonic_ms()
    setup.clock.advance(50)
    assert setup.run(get(consistency=eventual, max_staleness_ms=50))[0].guarantee == pb.BOUNDED
    assert len(setup.groups.barriers) == 2
    setup.clock.advance(1)
    setup.run(get(consistency=eventual, max_staleness_ms=50))
    assert len(setup.groups.barriers) == 3


def test_a_session_revision_that_the_shard_never_reached_is_refused_after_a_barrier() -> None:
    setup = Setup()
    (written,) = setup.run(put())
    session = {"consistency": gateway_pb2.EVENTUAL, "read_mode": gateway_pb2.READ_YOUR_WRITES}
    for key in (b"k", b"absent"):
        (reply,) = setup.run(get(key, **session, session_revision=written.revision + 1))
        assert (reply.code, reply.value) == (Status.PRECONDITION_FAILED, b"")
        assert f"session_revision is {written.revision + 1}" in reply.message and str(written.revision) in reply.message
    assert len(setup.groups.barriers) == 2
    assert setup.budget.operations == 0


def test_a_session_read_is_answered_once_the_barrier_brought_its_revision() -> None:
    """A follower that lags: the revision is there when the barrier has completed, so it is no error."""
    setup = Setup()
    (first,) = setup.run(put())
    newer = put(value=b"newer", shard_id="shard-0")
    setup.groups.on_barrier = lambda: setup.handler.handle([newer], lambda replies: None)
    session = {"consistency": gateway_pb2.EVENTUAL, "read_mode": gateway_pb2.READ_YOUR_WRITES}
    (reply,) = setup.run(get(**session, session_revision=first.revision + 1))
    assert (reply.code, reply.value, reply.guarantee) == (Status.OK, b"newer", pb.SESSION)


def test_overload_is_refused_at_the_door() -> None:
    setup = Setup(operations_max=3)
    codes = [one.code for one in setup.run(*(put(b"%d" % n) for n in range(5)))]
    assert codes == [Status.OK] * 3 + [Status.RATE_LIMITED] * 2
    assert setup.budget.operations == 0
    small = Setup(bytes_max=700)
    answers = small.run(put(b"a", b"v" * 64), put(b"b", b"v" * 64), put(b"c", b"v" * 64))
    assert [one.code for one in answers] == [Status.OK, Status.OK, Status.RATE_LIMITED]
    small.budget.hold(10_000)  # a client that does not read its answers
    assert small.run(get(b"a"))[0].code == Status.RATE_LIMITED
    small.budget.sent(10_000)
    assert small.run(get(b"a"))[0].code == Status.OK


def test_call_numbers_used_twice_do_not_bend_the_budget() -> None:
    setup = Setup()
    one, two = put(b"a"), put(b"bb")
    one.shard_id = two.shard_id = "shard-0"
    found: list[pb.Reply] = []
    setup.handler.handle([one, two], found.extend)
    assert len(found) == 2
    assert (setup.budget.operations, setup.budget.bytes) == (0, 0)


def test_a_detached_handler_says_that_nothing_happened() -> None:
    setup = Setup()
    setup.handler.detach()
    assert [one.code for one in setup.run(put(), get())] == [Status.UNAVAILABLE] * 2
    assert setup.groups.proposals == []


def test_values_over_the_limit_are_too_large() -> None:
    setup = Setup()
    fits, large = setup.run(put(value=b"v" * 64), put(value=b"v" * 65))
    assert fits.code == Status.OK
    assert (large.code, large.message) == (Status.PAYLOAD_TOO_LARGE, "value has 65 bytes, the limit is 64")


async def test_operations_with_a_sampled_trace_context_leave_a_span() -> None:
    setup = Setup()
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    sampled = f"00-{trace}-{parent}-01"
    setup.run(put(traceparent=sampled), get(b"absent", traceparent=sampled), get(traceparent="nonsense"), get())
    await setup.tracer.flush()
    (body,) = [json.loads(text) for text in setup.spans]
    spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert {(span["name"].rpartition("/")[2], span["status"].get("message", "")) for span in spans} == {
        ("Put", ""),
        ("Get", "NOT_FOUND"),
    }
    assert {(span["traceId"], span["parentSpanId"]) for span in spans} == {(trace, parent)}


def test_clocks_are_compared_once_a_batch_and_only_for_writes() -> None:
    setup = Setup()
    looks: list[int] = []
    walls_ms = setup.peers.walls_ms
    setup.peers.walls_ms = lambda at_ms: looks.append(at_ms) or walls_ms(at_ms)  # type: ignore[method-assign,func-returns-value]
    writes = [pb.Operation(kind=pb.PUT, key=b"key-%d" % n, value=b"1", deadline_ms=n * 1_000) for n in (1, 2, 3)]
    assert [reply.code for reply in setup.run(*writes)] == [Status.OK] * 3
    assert len(setup.groups.proposals) == 3
    assert len(looks) == 1
    read = pb.Operation(kind=pb.GET, key=b"key-1", consistency=gateway_pb2.EVENTUAL)
    setup.run(read)
    setup.run(*writes)
    assert len(looks) == 2
