from __future__ import annotations

from collections.abc import Sequence

from flotta_consensus.api import Members, replica_id
from flotta_storage.core.moves import (
    Change,
    ChangeMembers,
    Intent,
    LeaderView,
    Progress,
    Settled,
    TransferLeader,
    Wait,
    best_heir,
    next_step,
    progress_of,
    second_replicas,
)
from hypothesis import given, settings
from hypothesis import strategies as st

LAST = 10_000


def leader(
    replica: int,
    voters: Sequence[int],
    learners: Sequence[int] = (),
    outgoing: Sequence[int] = (),
    behind: Sequence[int] = (),
    silent: Sequence[int] = (),
    snapshots: Sequence[int] = (),
) -> LeaderView:
    everybody = {*voters, *learners}
    return LeaderView(
        group=10,
        replica=replica,
        members=Members(tuple(voters), tuple(learners), tuple(outgoing)),
        last_index=LAST,
        matched={other: LAST - (5000 if other in behind else 0) for other in everybody if other != replica},
        active={other: other not in silent for other in everybody if other != replica},
        snapshots=frozenset(snapshots),
    )


def test_a_settled_shard_needs_nothing() -> None:
    assert next_step(leader(1, [1, 2, 3]), Intent()) == Settled()
    assert next_step(leader(1, [1, 2, 3]), Intent(frozenset({1, 2, 3}))) == Settled()


def test_a_follower_is_replaced_in_three_steps() -> None:
    intent = Intent(frozenset({1, 2, 4}))
    assert next_step(leader(1, [1, 2, 3]), intent) == ChangeMembers((("learner", 4),))
    assert isinstance(next_step(leader(1, [1, 2, 3], [4], behind=[4]), intent), Wait)
    assert isinstance(next_step(leader(1, [1, 2, 3], [4], silent=[4]), intent), Wait)
    assert isinstance(next_step(leader(1, [1, 2, 3], [4], snapshots=[4]), intent), Wait)
    assert next_step(leader(1, [1, 2, 3], [4]), intent) == ChangeMembers((("voter", 4), ("remove", 3)))
    assert isinstance(next_step(leader(1, [1, 2, 4], outgoing=[1, 2, 3]), intent), Wait)
    assert next_step(leader(1, [1, 2, 4]), intent) == Settled()


def test_a_leader_that_leaves_hands_over_first() -> None:
    intent = Intent(frozenset({2, 3, 4}))
    assert next_step(leader(1, [1, 2, 3], [4], behind=[2]), intent) == TransferLeader(3)
    assert isinstance(next_step(leader(1, [1, 2, 3], [4], behind=[2, 3]), intent), Wait)
    assert next_step(leader(3, [1, 2, 3], [4]), intent) == ChangeMembers((("voter", 4), ("remove", 1)))


def test_all_voters_can_be_replaced() -> None:
    intent = Intent(frozenset({4, 5, 6}))
    step = next_step(leader(1, [1, 2, 3], [4, 5, 6]), intent)
    assert step == ChangeMembers((("voter", 4), ("voter", 5), ("voter", 6), ("remove", 2), ("remove", 3)))
    assert next_step(leader(1, [1, 4, 5, 6]), intent) == TransferLeader(4)
    assert next_step(leader(5, [1, 4, 5, 6]), intent) == ChangeMembers((("remove", 1),))


def test_shrinking_waits_for_a_majority_of_those_that_stay() -> None:
    intent = Intent(frozenset({1, 2, 3}))
    assert isinstance(next_step(leader(1, [1, 2, 3, 4, 5], behind=[2, 3]), intent), Wait)
    assert next_step(leader(1, [1, 2, 3, 4, 5], behind=[2]), intent) == ChangeMembers((("remove", 4), ("remove", 5)))


def test_stray_learners_go() -> None:
    assert next_step(leader(1, [1, 2, 3], [7]), Intent()) == ChangeMembers((("remove", 7),))
    intent = Intent(frozenset({1, 2, 4}))
    assert next_step(leader(1, [1, 2, 3], [4, 7]), intent) == ChangeMembers((("remove", 7),))


def test_a_stray_learner_goes_before_its_node_is_given_another_replica() -> None:
    """Until it is removed, its node keeps it, and does not make the new one."""
    step = next_step(leader(1, [1, 2, 3], [4]), Intent(frozenset({1, 2, 5})))
    assert step == ChangeMembers((("remove", 4),))
    assert next_step(leader(1, [1, 2, 3]), Intent(frozenset({1, 2, 5}))) == ChangeMembers((("learner", 5),))


def test_a_node_that_has_a_voter_gets_no_second_replica() -> None:
    """The shard has committed a move that the map gave up a moment before, and asks for another one since."""
    one, two, other, early = replica_id(1, 1), replica_id(2, 2), replica_id(3, 3), replica_id(3, 7)
    assert second_replicas(Members((one, two, other)), {one, two, early}) == [early]
    assert second_replicas(Members((one, two), outgoing=(one, other)), {one, two, early}) == [early]
    assert second_replicas(Members((one, two, other)), {one, two, other}) == []
    assert second_replicas(Members((one, two)), {one, early}) == []
    assert second_replicas(Members((one, two), learners=(other,)), {one, early}) == [], "it is removed first"


def test_a_wanted_leader_gets_it_when_it_is_close() -> None:
    assert next_step(leader(1, [1, 2, 3]), Intent(leader=2)) == TransferLeader(2)
    assert isinstance(next_step(leader(1, [1, 2, 3], silent=[2]), Intent(leader=2)), Wait)
    assert next_step(leader(2, [1, 2, 3]), Intent(leader=2)) == Settled()
    assert next_step(leader(1, [1, 2, 3]), Intent(leader=9)) == Settled()


def test_the_best_heir_is_the_closest_voter() -> None:
    assert best_heir(leader(1, [1, 2, 3], behind=[2])) == 3
    assert best_heir(leader(1, [1, 2, 3], silent=[2, 3])) == 0
    assert best_heir(leader(1, [1])) == 0


def apply(members: Members, changes: Sequence[Change]) -> list[Members]:
    """The configurations that a change goes through, as Raft does it."""
    voters, learners = set(members.voters), set(members.learners)
    for kind, replica in changes:
        voters.discard(replica)
        learners.discard(replica)
        if kind != "remove":
            (voters if kind == "voter" else learners).add(replica)
    after = Members(tuple(sorted(voters)), tuple(sorted(learners)))
    if len(changes) > 1:
        return [Members(after.voters, after.learners, members.voters), after]
    return [after]


REPLICAS = range(1, 8)


@settings(max_examples=300, deadline=None)
@given(
    voters=st.sets(st.sampled_from(REPLICAS), min_size=1, max_size=5),
    learners=st.sets(st.sampled_from(REPLICAS), max_size=2),
    targets=st.sets(st.sampled_from(REPLICAS), min_size=1, max_size=5),
    data=st.data(),
)
def test_every_move_ends_at_its_targets_and_never_by_an_untried_voter(
    voters: set[int], learners: set[int], targets: set[int], data: st.DataObject
) -> None:
    members = Members(tuple(sorted(voters)), tuple(sorted(learners - voters)))
    now_leads = min(voters)
    for _ in range(12):
        late = data.draw(st.sets(st.sampled_from(REPLICAS), max_size=2))
        for behind in (late, set()):  # whoever was late catches up in the end
            view = leader(now_leads, members.voters, members.learners, behind=sorted(behind))
            step = next_step(view, Intent(frozenset(targets)))
            if not isinstance(step, Wait):
                break
        if isinstance(step, Settled):
            break
        if isinstance(step, TransferLeader):
            assert step.to_replica in members.voters
            now_leads = step.to_replica
            continue
        assert isinstance(step, ChangeMembers)
        for kind, replica in step.changes:
            if kind == "voter":
                assert replica in members.learners, "only a learner that caught up becomes a voter"
            assert (kind, replica) != ("remove", now_leads), "a leader never removes itself"
        for after in apply(members, step.changes):
            members = after
            if members.outgoing:
                joint = leader(now_leads, members.voters, members.learners, members.outgoing)
                assert isinstance(next_step(joint, Intent(frozenset(targets))), Wait)
    assert set(members.voters) == targets
    assert members.learners == ()
    assert isinstance(step, Settled)


def test_a_move_under_way_says_what_its_new_replicas_lack_and_what_it_waits_for() -> None:
    intent = Intent(frozenset({1, 2, 4}))
    view = leader(1, [1, 2, 3], [4], behind=[4], snapshots=[4])
    told = progress_of(view, intent, next_step(view, intent))
    assert told == Progress({4: 5_000}, copying=True, waits_for="replicas [4] are still catching up")
    close = leader(1, [1, 2, 3], [4])
    assert progress_of(close, intent, next_step(close, intent)) == Progress({4: 0})
    there = leader(1, [1, 2, 4])
    assert progress_of(there, intent, next_step(there, intent)) is None


def test_a_shard_whose_new_replica_was_not_made_yet_lacks_the_whole_log_there() -> None:
    intent = Intent(frozenset({1, 2, 4}))
    view = leader(1, [1, 2, 3])
    assert progress_of(view, intent, next_step(view, intent)) == Progress({4: LAST})
