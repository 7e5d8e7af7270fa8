"""Proposals and read barriers: every waiter is answered exactly once, with what is certain."""

from __future__ import annotations

import pytest
from consensus_fakes import CODES, Bench, FakeMembership, FakeStatus, ListMachine
from flotta_consensus.api import (
    Committed,
    Members,
    ReadReady,
    Rejected,
    RejectReason,
    RoleChange,
    Unknown,
)
from flotta_consensus.core.driver import DriverLimits
from flotta_consensus.core.group import InvariantError


def test_proposals_of_a_turn_cross_in_one_call_and_answer_after_apply() -> None:
    bench = Bench()
    bench.propose(b"a")
    bench.propose(b"b")
    bench.driver.turn(0)
    assert len(bench.host.called("propose_many")) == 1
    first, second = bench.proposed_ids()
    seen_at_answer = []
    bench.driver.propose(bench.group, b"c", lambda outcome: seen_at_answer.append(list(bench.machine.rows)), 1_000)
    bench.driver.turn(1)
    third = bench.proposed_ids()[-1]
    bench.commit((first, b"a"), (0, b"foreign"), (second, b"b"), (third, b"c"))
    bench.driver.turn(2)
    assert bench.outcomes == [Committed(2, 1, (2, b"a")), Committed(4, 1, (4, b"b"))]
    assert seen_at_answer == [[b"a", b"foreign", b"b", b"c"]]
    assert len(bench.machine.batches) == 1
    assert bench.driver.waiting() == 0


def test_a_batch_answers_once_in_its_own_order() -> None:
    bench = Bench()
    answers: list[object] = []
    bench.driver.propose_many(bench.group, [b"a", b"b", b"c"], answers.append, 1_000)
    bench.driver.turn(0)
    one, two, three = bench.proposed_ids()
    bench.host.batch.dropped.append((bench.group, two, CODES.DROP_LOST, 9))
    bench.commit((one, b"a"))
    bench.driver.turn(1)
    assert answers == []
    bench.commit((three, b"c"))
    bench.driver.turn(2)
    assert answers == [[Committed(2, 1, (2, b"a")), Rejected(RejectReason.LOST, 9), Committed(3, 1, (3, b"c"))]]


def test_an_empty_batch_is_answered_at_once() -> None:
    bench = Bench()
    answers: list[object] = []
    bench.driver.propose_many(bench.group, [], answers.append, 1_000)
    assert answers == [[]]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (CODES.DROP_NOT_LEADER, RejectReason.NOT_LEADER),
        (CODES.DROP_OVERLOADED, RejectReason.OVERLOADED),
        (CODES.DROP_UNKNOWN_GROUP, RejectReason.UNKNOWN_GROUP),
        (CODES.DROP_CONF_PENDING, RejectReason.CONF_PENDING),
        (CODES.DROP_LOST, RejectReason.LOST),
        (CODES.DROP_NO_LEADER, RejectReason.NO_LEADER),
        (CODES.DROP_INVALID, RejectReason.INVALID),
    ],
)
def test_what_the_host_drops_is_a_certain_rejection_with_a_hint(code: int, reason: RejectReason) -> None:
    bench = Bench()
    bench.propose()
    bench.driver.turn(0)
    bench.host.batch.dropped.append((bench.group, bench.proposed_ids()[0], code, 33))
    bench.driver.turn(1)
    assert bench.outcomes == [Rejected(reason, 33)]


def test_a_deadline_makes_it_unknown_and_a_later_commit_is_not_answered_again() -> None:
    bench = Bench()
    bench.propose(b"late", deadline_ms=100)
    bench.driver.turn(0)
    bench.driver.turn(100)
    assert bench.outcomes == []
    bench.driver.turn(200)
    assert bench.outcomes == [Unknown("deadline")]
    bench.commit((bench.proposed_ids()[0], b"late"))
    bench.driver.turn(201)
    assert bench.machine.rows == [b"late"]
    assert len(bench.outcomes) == 1


def test_news_count_before_the_deadline_so_a_stall_makes_nothing_unknown() -> None:
    bench = Bench()
    bench.propose(b"x", deadline_ms=100)
    bench.driver.turn(0)
    bench.commit((bench.proposed_ids()[0], b"x"))
    bench.driver.turn(60_000)
    assert bench.outcomes == [Committed(2, 1, (2, b"x"))]


def test_waiters_are_bounded() -> None:
    bench = Bench(DriverLimits(waiters_max=2, reads_max=1))
    for _ in range(3):
        bench.propose()
    assert bench.outcomes == [Rejected(RejectReason.OVERLOADED)]
    answers: list[object] = []
    bench.driver.propose_many(bench.group, [b"a"], answers.append, 1_000)
    bench.driver.read_barrier(bench.group, answers.append, 1_000)
    bench.driver.read_barrier(bench.group, answers.append, 1_000)
    assert answers == [[Rejected(RejectReason.OVERLOADED)], Rejected(RejectReason.OVERLOADED)]
    bench.driver.turn(5_000)
    bench.driver.turn(5_100)
    assert bench.driver.waiting() == 0
    bench.driver.read_barrier(bench.group, answers.append, 9_000)
    assert len(answers) == 3  # the two above and the expired barrier: there is room again


def test_unknown_groups_are_refused_at_once() -> None:
    bench = Bench()
    bench.driver.propose(99, b"x", bench.outcomes.append, 1_000)
    bench.driver.read_barrier(99, bench.outcomes.append, 1_000)
    bench.driver.change_membership(99, [("learner", 5)], bench.outcomes.append, 1_000)
    assert bench.outcomes == [Rejected(RejectReason.UNKNOWN_GROUP)] * 3
    with pytest.raises(ValueError, match="no group 99"):
        bench.driver.transfer_leader(99, 1)
    assert bench.host.calls == []


def test_payloads_the_host_would_not_take_never_reach_it() -> None:
    bench = Bench(DriverLimits(entry_bytes_max=3))
    bench.propose(b"")
    bench.propose(b"four")
    answers: list[object] = []
    bench.driver.propose_many(bench.group, [b"ok", b"four", b"ok"], answers.append, 1_000)
    assert bench.outcomes == [Rejected(RejectReason.INVALID)] * 2
    assert answers == [[Rejected(RejectReason.INVALID)] * 3]
    bench.propose(b"fit")
    bench.driver.turn(0)
    assert len(bench.proposed_ids()) == 1


def test_closing_tells_what_is_certain() -> None:
    bench = Bench()
    bench.propose(b"submitted")
    bench.driver.turn(0)
    bench.propose(b"queued")
    bench.driver.read_barrier(bench.group, bench.outcomes.append, 1_000)
    bench.driver.close()
    assert bench.outcomes == [
        Rejected(RejectReason.CLOSED),
        Unknown("closed"),
        Rejected(RejectReason.CLOSED),
    ]
    bench.propose()
    assert bench.outcomes[-1] == Rejected(RejectReason.CLOSED)
    assert bench.driver.waiting() == 0


def test_messages_leave_before_anything_is_applied() -> None:
    bench = Bench()
    applied_when_sent = []
    bench.driver._send = lambda node, frame: applied_when_sent.append((node, frame, bench.machine.index))  # type: ignore[method-assign, unused-ignore]
    bench.host.batch.messages.append((3, b"frame"))
    bench.commit((0, b"x"))
    bench.driver.turn(0)
    assert applied_when_sent == [(3, b"frame", 1)]
    assert bench.machine.index == 2


def test_replayed_entries_are_skipped_and_gaps_are_fatal() -> None:
    bench = Bench()
    bench.commit((0, b"a"), (0, b"b"))
    bench.driver.turn(0)
    bench.commit((0, b"a"), (0, b"b"), (0, b"c"), first=2)
    bench.driver.turn(1)
    assert bench.machine.rows == [b"a", b"b", b"c"]
    bench.commit((0, b"e"), first=6)
    with pytest.raises(InvariantError, match="entry 6 delivered, 5 expected"):
        bench.driver.turn(2)


def test_entries_for_a_group_without_a_machine_are_fatal() -> None:
    bench = Bench()
    bench.host.batch.applies.append((99, 2, 1, 0, CODES.APPLY_NORMAL, b"x"))
    with pytest.raises(InvariantError, match="no state machine"):
        bench.driver.turn(0)


def test_apply_runs_are_bounded() -> None:
    bench = Bench(DriverLimits(apply_entries_max=2))
    bench.driver.propose_many(bench.group, [b"1", b"2", b"3", b"4", b"5"], bench.outcomes.append, 1_000)
    bench.driver.turn(0)
    bench.commit(*((number, b"x") for number in bench.proposed_ids()))
    bench.driver.turn(1)
    assert [len(batch) for batch in bench.machine.batches] == [2, 2, 1]
    assert [outcome.index for outcome in bench.outcomes[0]] == [2, 3, 4, 5, 6]


def test_membership_changes_are_applied_in_order_and_answer_with_the_members() -> None:
    bench = Bench()
    bench.driver.change_membership(bench.group, [("learner", 5)], bench.outcomes.append, 1_000)
    ((group, request_id, changes),) = bench.host.called("change_membership")
    assert (group, changes) == (bench.group, [("learner", 5)])
    bench.commit((0, b"before"))
    bench.host.batch.applies.append((bench.group, 3, 1, request_id, CODES.APPLY_CONF, FakeMembership([2, 1], [5], [])))
    bench.host.batch.applies.append((bench.group, 4, 1, 0, CODES.APPLY_EMPTY, b""))
    bench.driver.turn(0)
    members = Members(voters=(1, 2), learners=(5,))
    assert bench.outcomes == [Committed(3, 1, members)]
    assert [entry.members for entry in bench.machine.batches[0]] == [None, members, None]
    assert bench.machine.members() == members


def test_membership_changes_that_the_host_refuses_are_invalid() -> None:
    bench = Bench()
    bench.host.fail_next = ValueError("no")
    bench.driver.change_membership(bench.group, [("remove", 5)], bench.outcomes.append, 1_000)
    assert bench.outcomes == [Rejected(RejectReason.INVALID)]
    with pytest.raises(ValueError, match="changes must not be empty"):
        bench.driver.change_membership(bench.group, [], bench.outcomes.append, 1_000)
    assert bench.driver.waiting() == 0


def test_roles_are_told_after_what_came_with_them() -> None:
    bench = Bench()
    bench.commit((0, b"x"))
    bench.host.batch.roles.append((bench.group, CODES.ROLE_LEADER, 4, 1))
    effects = bench.driver.turn(0)
    assert effects.roles == [RoleChange(bench.group, True, 4, 1)]
    assert bench.driver.role(bench.group) == RoleChange(bench.group, True, 4, 1)
    assert bench.machine.index == 2
    bench.host.batch.roles.append((bench.group, CODES.ROLE_FOLLOWER, 5, 0))
    bench.driver.turn(1)
    assert bench.driver.role(bench.group) == RoleChange(bench.group, False, 5, 0)


def test_barriers_of_a_turn_share_one_request() -> None:
    bench = Bench()
    for _ in range(5):
        bench.driver.read_barrier(bench.group, bench.outcomes.append, 1_000)
    bench.driver.turn(0)
    assert len(bench.read_ids()) == 1
    bench.driver.read_barrier(bench.group, bench.outcomes.append, 1_000)
    bench.driver.turn(1)
    first, second = bench.read_ids()
    assert first != second
    bench.host.batch.reads.append((bench.group, first, 1))
    bench.driver.turn(2)
    assert bench.outcomes == [ReadReady(1)] * 5  # the sixth began after the first request was issued


def test_a_barrier_waits_for_apply() -> None:
    bench = Bench()
    bench.driver.read_barrier(bench.group, bench.outcomes.append, 1_000)
    bench.driver.turn(0)
    bench.host.batch.reads.append((bench.group, bench.read_ids()[0], 3))
    bench.driver.turn(1)
    bench.commit((0, b"x"))
    bench.driver.turn(2)
    assert bench.outcomes == []
    assert bench.driver.fresh_ms(bench.group) is None
    bench.commit((0, b"y"))
    bench.driver.turn(3)
    assert bench.outcomes == [ReadReady(3)]
    assert bench.driver.fresh_ms(bench.group) == 0  # when it was issued, not when it was answered


def test_a_vanished_barrier_travels_again_under_a_fresh_id() -> None:
    bench = Bench()
    bench.driver.read_barrier(bench.group, bench.outcomes.append, 3_000)
    bench.driver.turn(0)
    bench.driver.turn(399)
    assert len(bench.read_ids()) == 1
    bench.driver.turn(400)
    bench.driver.turn(401)
    first, second = bench.read_ids()
    assert first != second
    bench.driver.turn(900)  # the second attempt gets twice the time
    bench.driver.turn(901)
    assert len(bench.read_ids()) == 2
    bench.host.batch.reads.append((bench.group, first, 1))  # too late, and harmless
    bench.host.batch.reads.append((bench.group, second, 1))
    bench.driver.turn(902)
    assert bench.outcomes == [ReadReady(1)]


def test_a_barrier_without_a_leader_waits_for_one_until_its_deadline() -> None:
    bench = Bench()
    bench.driver.read_barrier(bench.group, bench.outcomes.append, 500)
    bench.driver.turn(0)
    bench.host.batch.dropped.append((bench.group, bench.read_ids()[0], CODES.DROP_NO_LEADER, 0))
    bench.driver.turn(1)
    bench.driver.turn(20)
    assert len(bench.read_ids()) == 1  # not at once
    bench.driver.turn(60)
    assert len(bench.read_ids()) == 2
    bench.host.batch.dropped.append((bench.group, bench.read_ids()[1], CODES.DROP_NO_LEADER, 0))
    bench.driver.turn(61)
    bench.driver.turn(501)
    assert bench.outcomes == [Rejected(RejectReason.NO_LEADER)]
    assert bench.driver.waiting() == 0


def test_a_barrier_that_is_refused_for_good_is_answered_at_once() -> None:
    bench = Bench()
    bench.driver.read_barrier(bench.group, bench.outcomes.append, 500)
    bench.driver.turn(0)
    bench.host.batch.dropped.append((bench.group, bench.read_ids()[0], CODES.DROP_OVERLOADED, 0))
    bench.driver.turn(1)
    assert bench.outcomes == [Rejected(RejectReason.OVERLOADED)]


def test_a_barrier_that_nobody_answers_is_unknown_at_its_deadline() -> None:
    bench = Bench()
    bench.driver.read_barrier(bench.group, bench.outcomes.append, 100)
    bench.driver.turn(0)
    bench.driver.turn(101)
    assert bench.outcomes == [Unknown("deadline")]


def test_callbacks_may_call_back_in() -> None:
    bench = Bench()
    chained: list[object] = []

    def again(outcome: object) -> None:
        chained.append(outcome)
        bench.driver.propose(bench.group, b"second", chained.append, 1_000)

    bench.driver.propose(bench.group, b"first", again, 1_000)
    bench.driver.turn(0)
    bench.commit((bench.proposed_ids()[0], b"first"))
    bench.driver.turn(1)
    bench.driver.turn(2)
    bench.commit((bench.proposed_ids()[1], b"second"))
    bench.driver.turn(3)
    assert chained == [Committed(2, 1, (2, b"first")), Committed(3, 1, (3, b"second"))]


def test_creating_waits_for_durability_and_checks_the_machine() -> None:
    bench = Bench()
    done: list[str] = []
    with pytest.raises(ValueError, match="exists already"):
        bench.driver.create_group(bench.group, 1, [1], ListMachine(), lambda: None)
    with pytest.raises(ValueError, match="index 1 is needed"):
        bench.driver.create_group(8, 1, [1], ListMachine(index=0), lambda: None)
    with pytest.raises(ValueError, match="members"):
        bench.driver.create_group(8, 1, [1, 2], ListMachine(), lambda: None)
    bench.host.fail_next = ValueError("tombstoned")
    with pytest.raises(ValueError, match="tombstoned"):
        bench.driver.create_group(8, 1, [1], ListMachine(), lambda: None)
    assert bench.driver.groups() == [bench.group]
    bench.driver.create_group(8, 1, [1], ListMachine(), lambda: done.append("created"))
    bench.driver.turn(0)
    assert done == []
    bench.host.batch.events.append((8, "created", 1, ""))
    bench.driver.turn(1)
    assert done == ["created"]
    assert bench.host.called("create_group") == [(8, 1, [1])]


def test_removing_answers_tombstones_and_then_destroys() -> None:
    bench = Bench()
    done: list[str] = []
    bench.propose()
    bench.driver.turn(0)
    bench.driver.read_barrier(bench.group, bench.outcomes.append, 1_000)
    bench.driver.remove_group(bench.group, lambda: done.append("removed"))
    assert bench.outcomes == [Unknown("the replica was removed"), Rejected(RejectReason.UNKNOWN_GROUP)]
    bench.commit((0, b"ignored"))
    bench.driver.turn(1)
    assert not bench.machine.destroyed and bench.machine.rows == []
    bench.propose()
    assert bench.outcomes[-1] == Rejected(RejectReason.UNKNOWN_GROUP)
    with pytest.raises(ValueError, match="exists already"):
        bench.driver.create_group(bench.group, 1, [1], ListMachine(), lambda: None)
    bench.host.batch.events.append((bench.group, "removed", 1, ""))
    effects = bench.driver.turn(2)
    assert bench.machine.destroyed and done == ["removed"]
    assert bench.driver.groups() == []
    assert (bench.group, 0) in [*effects.superseded, *bench.driver.turn(3).superseded]
    bench.host.batch.roles.append((bench.group, CODES.ROLE_FOLLOWER, 2, 0))
    assert bench.driver.turn(4).roles == []


def test_an_open_replica_must_be_in_the_log() -> None:
    bench = Bench()
    with pytest.raises(ValueError, match="not in the log"):
        bench.driver.open_group(9, ListMachine())


def test_a_failing_host_fails_the_turn() -> None:
    bench = Bench()
    bench.host.fail_next = RuntimeError("fsync")
    with pytest.raises(RuntimeError, match="fsync"):
        bench.driver.turn(0)


def test_statuses_of_groups_that_are_gone_are_ignored() -> None:
    bench = Bench()
    bench.driver.checked([99], [FakeStatus(99)])
    assert bench.host.calls == []
