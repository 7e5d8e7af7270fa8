from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from flotta_consensus.api import replica_id
from flotta_storage.core.replicas import (
    AskMembership,
    Complain,
    Create,
    Heir,
    LocalReplica,
    LocalState,
    MapView,
    MembershipAnswer,
    Origin,
    ShardView,
    decide,
    may_remove,
)
from hypothesis import given, settings
from hypothesis import strategies as st

NODES = {f"node-{n}": f"localhost:{8000 + n}" for n in range(1, 6)}


def rid(node: int, sequence: int) -> int:
    return replica_id(node, sequence)


def placed(*replicas: int) -> dict[int, str]:
    return {replica: f"node-{replica >> 32}" for replica in replicas}


BIRTH = placed(rid(1, 1), rid(2, 2), rid(3, 3))


def shard(**fields: object) -> ShardView:
    base = ShardView("shard-0", 10, True, 0, 1, birth=BIRTH)
    return replace(base, **fields)  # type: ignore[arg-type]


def cluster(*shards: ShardView, version: int = 5, cluster_id: str = "c") -> MapView:
    return MapView(cluster_id, version, {view.group: view for view in shards}, NODES)


def node(number: int, *replicas: LocalReplica, **fields: object) -> LocalState:
    state = LocalState(f"node-{number}", number, "c", replicas={kept.group: kept for kept in replicas})
    return replace(state, **fields)  # type: ignore[arg-type]


def kept(replica: int, group: int = 10, origin: Origin = Origin.BIRTH) -> LocalReplica:
    return LocalReplica(group, replica, "shard-0", origin, made=True)


def test_a_birth_voter_is_created_with_all_its_facts_and_only_once() -> None:
    view = cluster(shard(shard_index=3, shard_count=8, revision_base=77, table="t"))
    (action,) = decide(view, node(1))
    assert isinstance(action, Create)
    assert action.replica == LocalReplica(
        10, rid(1, 1), "shard-0", Origin.BIRTH, tuple(BIRTH), "t", 3, 8, revision_base=77
    )
    assert decide(view, node(1, action.replica)) == []
    assert decide(view, node(4)) == []


ACTIVE = shard(creating=False, members=BIRTH, shard_count=8, birth_shard_count=8, revision_base=77)


def test_a_voter_that_missed_its_birth_is_born_late_with_its_vote() -> None:
    """Else the shard is without a leader for good once it has lost one node more."""
    (action,) = decide(cluster(ACTIVE), node(1))
    assert isinstance(action, Create)
    assert action.replica == LocalReplica(
        10, rid(1, 1), "shard-0", Origin.BIRTH, tuple(BIRTH), shard_index=0, shard_count=8, revision_base=77
    )
    assert decide(cluster(ACTIVE), node(1, action.replica)) == []
    leaving = replace(ACTIVE, targets=placed(rid(2, 2), rid(3, 3), rid(4, 9)))
    assert decide(cluster(leaving), node(1)) == [action], "it counts until the shard does without it"


def test_a_late_voter_begins_as_it_would_have_at_the_birth() -> None:
    """The shard has divided since: its log says so, and is applied to what there was at the birth."""
    (action,) = decide(cluster(replace(ACTIVE, shard_count=24)), node(1))
    assert isinstance(action, Create)
    assert (action.replica.origin, action.replica.shard_count) == (Origin.BIRTH, 8)


def test_no_voter_is_born_late_that_was_here_or_that_the_shard_did_without() -> None:
    (action,) = decide(cluster(ACTIVE), node(1, tombstones=frozenset({rid(1, 1)})))
    assert isinstance(action, Complain), "it took part"
    moved_on = replace(ACTIVE, members=placed(rid(2, 2), rid(3, 3), rid(4, 4)))
    assert decide(cluster(moved_on), node(1)) == []
    new = replace(ACTIVE, members=placed(rid(1, 9), rid(2, 2), rid(3, 3)))
    (action,) = decide(cluster(new), node(1))
    assert isinstance(action, Create) and action.replica.origin is Origin.EMPTY, "another id than at the birth"


def test_no_voter_is_born_late_into_a_shard_that_is_taken_over() -> None:
    heir = Heir("node-2", rid(2, 9), rid(2, 2), 5, 6)
    (action,) = decide(cluster(replace(ACTIVE, heir=heir, replica_floor=9)), node(1))
    assert isinstance(action, Create) and action.replica.origin is Origin.EMPTY


def test_a_missed_birth_begins_empty_where_nothing_says_with_what() -> None:
    (action,) = decide(cluster(replace(ACTIVE, birth_shard_count=0)), node(1))
    assert isinstance(action, Create)
    assert action.replica.origin is Origin.EMPTY
    assert action.replica.voters == ()


def test_a_target_begins_empty() -> None:
    targets = placed(rid(1, 1), rid(2, 2), rid(4, 9))
    (action,) = decide(cluster(shard(creating=False, members=BIRTH, targets=targets)), node(4))
    assert isinstance(action, Create)
    assert (action.replica.replica, action.replica.origin) == (rid(4, 9), Origin.EMPTY)
    assert decide(cluster(shard(creating=False, members=BIRTH, targets=targets)), node(3, kept(rid(3, 3)))) == []


def test_what_the_map_no_longer_names_is_asked_about_and_never_deleted() -> None:
    members = placed(rid(1, 1), rid(2, 2), rid(4, 9))
    (action,) = decide(cluster(shard(creating=False, members=members)), node(3, kept(rid(3, 3))))
    assert action == AskMembership(10, rid(3, 3), "shard-0", ("node-1", "node-2", "node-4"))
    (gone,) = decide(cluster(), node(3, kept(rid(3, 3))))
    assert gone == AskMembership(10, rid(3, 3), "shard-0", tuple(sorted(NODES)))


def test_a_returning_shard_waits_until_the_old_replica_is_gone() -> None:
    members = placed(rid(1, 1), rid(2, 2), rid(4, 9))
    back = placed(rid(1, 1), rid(2, 2), rid(3, 12))
    view = cluster(shard(creating=False, members=members, targets=back))
    (ask,) = decide(view, node(3, kept(rid(3, 3))))
    assert isinstance(ask, AskMembership) and ask.replica == rid(3, 3)
    (create,) = decide(view, node(3, tombstones=frozenset({rid(3, 3)})))
    assert isinstance(create, Create) and create.replica.replica == rid(3, 12)


@pytest.mark.parametrize(
    ("view", "local"),
    [
        (cluster(shard(), version=4), node(1, acted_version=5)),
        (cluster(shard(), cluster_id="other"), node(1)),
        (cluster(version=0), node(1, kept(rid(1, 1)))),
    ],
)
def test_old_and_foreign_maps_decide_nothing(view: MapView, local: LocalState) -> None:
    assert decide(view, local) == []


@pytest.mark.parametrize(
    ("view", "local", "words"),
    [
        (cluster(shard()), node(1, tombstones=frozenset({rid(1, 1)})), "removed here for good"),
        (cluster(shard(birth=placed(rid(1, 1), rid(1, 2)))), node(1), "on this one node"),
        (cluster(shard(birth={rid(2, 1): "node-1"})), node(1), "not numbered for node 1"),
    ],
)
def test_maps_that_ask_for_harm_are_complained_about(view: MapView, local: LocalState, words: str) -> None:
    (action,) = decide(view, local)
    assert isinstance(action, Complain)
    assert words in action.reason


def test_only_a_leaders_answer_about_this_very_replica_removes_it() -> None:
    local = node(3, kept(rid(3, 3)))
    assert may_remove(MembershipAnswer(10, rid(3, 3), known=True, member=False), local)
    assert not may_remove(MembershipAnswer(10, rid(3, 3), known=False, member=False), local)
    assert not may_remove(MembershipAnswer(10, rid(3, 3), known=True, member=True), local)
    assert not may_remove(MembershipAnswer(10, rid(3, 4), known=True, member=False), local)
    assert not may_remove(MembershipAnswer(11, rid(3, 3), known=True, member=False), local)


def shards_of(group: int) -> st.SearchStrategy[ShardView]:
    ids = [rid(n, group * 10 + s) for n in (1, 2, 3) for s in (1, 2, 3)]
    # Two draws for a set, instead of two for each of its members: drawing is most of what the examples cost.
    sets = [[placed(*chosen) for chosen in itertools.combinations(ids, size)] for size in range(5)]
    some = st.one_of([st.sampled_from(of_one_size) for of_one_size in sets])
    return st.builds(
        ShardView,
        shard_id=st.just(f"shard-{group}"),
        group=st.just(group),
        creating=st.booleans(),
        shard_index=st.just(0),
        shard_count=st.just(1),
        birth=some,
        members=some,
        targets=some,
        birth_shard_count=st.sampled_from([0, 1]),
    )


SHARDS = st.sampled_from([10, 11]).flatmap(shards_of)
MAPS = st.lists(st.tuples(st.lists(SHARDS, max_size=2), st.integers(1, 4), st.booleans()), max_size=25)


@settings(max_examples=300, deadline=None)
@given(MAPS)
def test_no_sequence_of_maps_makes_two_voters_or_brings_a_replica_back(
    maps: list[tuple[list[ShardView], int, bool]],
) -> None:
    """Maps in any order, stale and rolled back ones too; sometimes the leader answers that the replica is out."""
    local = node(1)
    ever: set[int] = set()
    voters_ever: set[int] = set()
    for shards, version, answers in maps:
        view = cluster(*shards, version=version)
        actions = decide(view, local)
        if version < local.acted_version:
            assert actions == []
        for action in actions:
            if isinstance(action, Create):
                made = action.replica
                assert made.replica not in ever
                assert made.group not in local.replicas
                shard_now = view.shards[made.group]
                if made.origin is Origin.BIRTH:
                    assert shard_now.creating or made.replica in shard_now.members
                    assert made.replica in made.voters
                    assert made.replica not in voters_ever
                    voters_ever.add(made.replica)
                else:
                    assert not shard_now.creating
                    assert made.voters == ()
                ever.add(made.replica)
                local = replace(local, replicas={**local.replicas, made.group: made}, acted_version=version)
            elif isinstance(action, AskMembership):
                assert action.replica == local.replicas[action.group].replica
                answer = MembershipAnswer(action.group, action.replica, known=answers, member=False)
                if may_remove(answer, local):
                    left = {group: r for group, r in local.replicas.items() if group != action.group}
                    local = replace(local, replicas=left, tombstones=local.tombstones | {action.replica})
        groups = [replica.group for replica in local.replicas.values()]
        assert len(groups) == len(set(groups))
