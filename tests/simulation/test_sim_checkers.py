"""Every invariant checker against a history that keeps the invariant and one that breaks it."""

from __future__ import annotations

import pytest
from flotta_consensus.sim.checkers import (
    CommittedLog,
    ElectionSafety,
    LogMatching,
    Promises,
    SafetyViolation,
    StateEquality,
    fingerprint,
)

NORMAL, EMPTY = 0, 1


def test_election_safety() -> None:
    elections = ElectionSafety()
    assert elections.saw_leader(1, 2, 11)
    assert not elections.saw_leader(1, 2, 11)
    assert elections.saw_leader(1, 3, 12)
    assert elections.saw_leader(2, 2, 12)
    assert len(elections) == 3
    with pytest.raises(SafetyViolation, match="group 1 term 2"):
        elections.saw_leader(1, 2, 12)


def test_log_matching_accepts_overwritten_tails() -> None:
    logs = LogMatching()
    logs.saw_log(1, 1, [(2, 2, EMPTY, b""), (3, 2, NORMAL, b"a")])
    logs.saw_log(2, 1, [(2, 2, EMPTY, b""), (3, 3, EMPTY, b"")])
    logs.saw_log(1, 1, [(2, 2, EMPTY, b""), (3, 3, EMPTY, b""), (4, 3, NORMAL, b"b")])
    assert logs.compared == 7


def test_log_matching_finds_two_entries_at_one_index_and_term() -> None:
    logs = LogMatching()
    logs.saw_log(1, 1, [(3, 2, NORMAL, b"a")])
    with pytest.raises(SafetyViolation, match="index 3 term 2 differs between nodes 1 and 2"):
        logs.saw_log(2, 1, [(3, 2, NORMAL, b"b")])


@pytest.mark.parametrize("log", [[(2, 2, 0, b""), (4, 2, 0, b"")], [(2, 2, 0, b""), (3, 1, 0, b"")]])
def test_log_shape(log: list[tuple[int, int, int, bytes]]) -> None:
    with pytest.raises(SafetyViolation, match="log shape"):
        LogMatching().saw_log(1, 1, log)


def test_committed_log_joins_what_replicas_applied() -> None:
    log = CommittedLog(1)
    log.saw_applied(1, 10, 1, [(2, 2, EMPTY, b""), (3, 2, NORMAL, b"a")])
    log.saw_applied(2, 20, 1, [(2, 2, EMPTY, b"")])
    # A snapshot carried node 3 over index 3.
    log.saw_applied(3, 30, 3, [(4, 2, NORMAL, b"b")])
    assert [entry.payload for entry in log.in_order(2)] == [b"", b"a", b"b"]
    assert [entry.first_applied_us for entry in log.in_order(2)] == [10, 10, 30]


def test_committed_log_refuses_another_entry_at_an_index() -> None:
    log = CommittedLog(1)
    log.saw_applied(1, 10, 1, [(2, 2, NORMAL, b"a")])
    with pytest.raises(SafetyViolation, match="state machine safety"):
        log.saw_applied(2, 11, 1, [(2, 2, NORMAL, b"b")])
    with pytest.raises(SafetyViolation, match="state machine safety"):
        log.saw_applied(3, 11, 1, [(2, 3, NORMAL, b"a")])


@pytest.mark.parametrize("index", [2, 4])
def test_committed_log_refuses_doubles_and_gaps(index: int) -> None:
    log = CommittedLog(1)
    with pytest.raises(SafetyViolation, match="apply order"):
        log.saw_applied(1, 10, 2, [(index, 2, NORMAL, b"a")])


def test_committed_log_refuses_holes() -> None:
    log = CommittedLog(1)
    log.saw_applied(1, 10, 1, [(2, 2, NORMAL, b"a")])
    log.saw_applied(2, 10, 3, [(4, 2, NORMAL, b"c")])
    with pytest.raises(SafetyViolation, match=r"no replica applied: \[3\]"):
        log.in_order(2)


def test_state_equality() -> None:
    states = StateEquality()
    states.saw_state(1, 1, 5, fingerprint(b"x"))
    states.saw_state(2, 1, 5, fingerprint(b"x"))
    states.saw_state(2, 1, 6, fingerprint(b"y"))
    assert states.compared == 1
    with pytest.raises(SafetyViolation, match="index 6"):
        states.saw_state(1, 1, 6, fingerprint(b"z"))
    # A replica that replays to an index it had reached must come to the same bytes.
    with pytest.raises(SafetyViolation, match="between nodes 1 and 1"):
        states.saw_state(1, 1, 5, fingerprint(b"xx"))


def test_promises_outlive_a_restart() -> None:
    promises = Promises()
    promises.kept(1, 11, 0, 0)
    promises.given(1, 11, 4, 12)
    promises.kept(1, 11, 4, 12)
    promises.kept(1, 11, 5, 0)
    promises.given(1, 12, 4, 0)
    promises.kept(1, 12, 4, 13)
    assert promises.compared == 3
    for term, vote in ((3, 12), (4, 0), (4, 13)):
        with pytest.raises(SafetyViolation, match="replica 0xb stood at term 4"):
            promises.kept(1, 11, term, vote)


def test_fingerprint_separates_its_parts() -> None:
    assert fingerprint(b"ab", b"c") != fingerprint(b"a", b"bc")
    assert fingerprint(1, b"") != fingerprint(b"", 1)
