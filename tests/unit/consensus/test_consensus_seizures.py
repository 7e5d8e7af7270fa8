"""A replica that goes on alone, as the driver sees it: one call to the host, and an end to what was begun before."""

from __future__ import annotations

import pytest
from consensus_fakes import CODES, Bench, FakeBatch, FakeMembership
from flotta_consensus.api import EntryKind, Members, Rejected, RejectReason, Seizure, Unknown

SEIZURE = Seizure(from_replica=1, replica=9, term_min=7, payloads=(b"one", b"two"))


def test_it_is_done_once_the_host_has_it_durably_and_its_log_goes_on() -> None:
    bench = Bench()
    done: list[str] = []
    bench.host.batch = FakeBatch(roles=[(bench.group, CODES.ROLE_LEADER, 3, 1)])
    bench.driver.turn(0)
    bench.driver.seize_group(bench.group, SEIZURE, lambda: done.append("seized"))
    assert bench.host.called("seize_group") == [(bench.group, 1, 9, 7, (b"one", b"two"))]
    assert bench.driver.role(bench.group) is None
    bench.driver.turn(1)
    assert not done
    bench.host.batch = FakeBatch(
        events=[(bench.group, "seized", 9, "")],
        applies=[
            (bench.group, 2, 8, 0, CODES.APPLY_CONF, FakeMembership([9])),
            (bench.group, 3, 8, 0, CODES.APPLY_NORMAL, b"one"),
        ],
        roles=[(bench.group, CODES.ROLE_FOLLOWER, 8, 0)],
    )
    bench.driver.turn(2)
    assert done == ["seized"]
    assert bench.machine.members() == Members(voters=(9,))
    assert [entry.kind for entry in bench.machine.batches[-1]] == [EntryKind.CONF, EntryKind.NORMAL]
    role = bench.driver.role(bench.group)
    assert role is not None and (role.is_leader, role.term) == (False, 8)


def test_what_was_proposed_before_it_is_unknown_and_what_is_proposed_after_it_goes_through() -> None:
    bench = Bench()
    bench.propose(b"before")
    bench.driver.turn(0)
    (before,) = bench.proposed_ids()
    bench.driver.seize_group(bench.group, SEIZURE, lambda: None)
    bench.host.batch = FakeBatch(events=[(bench.group, "outcome_unknown", before, "the group was seized here")])
    bench.driver.turn(1)
    assert bench.outcomes == [Unknown("the group was seized here")]
    bench.propose(b"after")
    bench.driver.turn(2)
    bench.commit((bench.proposed_ids()[-1], b"after"))
    bench.driver.turn(3)
    assert bench.machine.rows[-1] == b"after"


def test_a_refusal_changes_nothing() -> None:
    bench = Bench()
    with pytest.raises(ValueError, match="no group 8"):
        bench.driver.seize_group(8, SEIZURE, lambda: None)
    bench.host.fail_next = ValueError("a snapshot that is not installed yet")
    with pytest.raises(ValueError, match="not installed yet"):
        bench.driver.seize_group(bench.group, SEIZURE, lambda: None)
    bench.driver.close()
    bench.propose()
    assert bench.outcomes == [Rejected(RejectReason.CLOSED)]
