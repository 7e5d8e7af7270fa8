"""When a coordinator may go on alone, who was given up by that, and what is given out afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flotta_consensus.api import Members, replica_id
from flotta_coordinator.core.codec import from_plain, to_plain
from flotta_coordinator.core.commands import (
    AdmitCoordinator,
    FoundCluster,
    HelloNode,
    InitShards,
    NodeObservation,
    ObserveNodes,
    RecoverCoordinators,
    ReplaceCoordinator,
    decode_batch,
    encode_batch,
)
from flotta_coordinator.core.deltas import Change, History
from flotta_coordinator.core.results import Applied, Rejection
from flotta_coordinator.core.roster_rules import (
    SILENT,
    UNREADABLE,
    Asker,
    Heard,
    Holding,
    Standing,
    is_given_up,
    why_not_alone,
    why_not_replaced,
)
from flotta_coordinator.core.roster_transitions import PLACES, VERSION_LEAP, holder_of, is_founder, place_of
from flotta_coordinator.core.state import ClusterState, Roster, Seat
from flotta_coordinator.core.transitions import apply
from flotta_coordinator.group import Coordinators
from flotta_coordinator.roster_duties import leaving, missing, next_change

MINE = Holding(0, 0, 3, 100, "", ("c1", "c2", "c3"))
RECOVER = RecoverCoordinators("c1", 1, "s1", 100, ("c2", "c3"), (), 0)


@pytest.mark.parametrize(
    ("heard", "gone", "given_up", "words"),
    [
        ({"c2": SILENT, "c3": SILENT}, ("c2", "c3"), (), ""),
        ({"c2": SILENT, "c3": SILENT}, ("c2",), (), "c3 does not answer c1"),
        ({"c2": MINE, "c3": SILENT}, ("c2", "c3"), (), "c2 is not lost"),
        ({"c2": UNREADABLE, "c3": SILENT}, ("c2", "c3"), (), "c2 is not lost"),
        ({"c2": UNREADABLE, "c3": SILENT}, ("c3",), ("c2",), "but not what it holds"),
        ({"c2": MINE, "c3": SILENT}, ("c3",), (), "c2 answers c1 by now: ask again"),
        ({"c2": MINE, "c3": SILENT}, ("c3",), ("c2",), "are a quorum"),
        ({"c2": replace(MINE, last_index=101), "c3": SILENT}, ("c3",), ("c2",), "c2 has more of the log"),
        ({"c2": replace(MINE, leader_id="c3"), "c3": SILENT}, ("c3",), ("c2",), "in touch with c3"),
    ],
)
def test_alone_only_when_no_quorum_can_come_back(
    heard: dict[str, Heard], gone: tuple[str, ...], given_up: tuple[str, ...], words: str
) -> None:
    found = why_not_alone("c1", MINE, heard, gone, given_up)
    assert (words in found) if words else not found


def test_two_of_five_are_no_quorum_and_whoever_is_led_does_not_go_alone() -> None:
    mine = replace(MINE, voters=("c1", "c2", "c3", "c4", "c5"))
    heard: dict[str, Heard] = {"c2": replace(mine, last_index=90), "c3": SILENT, "c4": SILENT, "c5": SILENT}
    assert not why_not_alone("c1", mine, heard, ("c3", "c4", "c5"), ("c2",))
    assert "has more" in why_not_alone(
        "c1", mine, heard | {"c2": replace(mine, generation=1)}, ["c3", "c4", "c5"], ["c2"]
    )
    assert "c4, which leads" in why_not_alone("c1", replace(mine, leader_id="c4"), heard, (), ())


def made(*commands: object, state: ClusterState | None = None, now_ms: int = 1_000) -> ClusterState:
    state = state or ClusterState()
    for command in decode_batch(encode_batch(commands)):  # type: ignore[arg-type]
        result = apply(state, command, now_ms)
        assert isinstance(result, Applied), result
        state = result.state
    return state


def grown() -> ClusterState:
    alive = ObserveNodes((NodeObservation("n1", 1, 0, 0),))
    return made(FoundCluster("x"), HelloNode("n1", "n1:1", "", "store-1", ""), alive, InitShards(2, 1))


def test_nothing_is_given_out_that_the_lost_ones_may_have_given() -> None:
    before = grown()
    after = made(replace(RECOVER, seen_map_version=before.map_version + 7), state=before)
    assert after.map_version == before.map_version + 7 + VERSION_LEAP
    assert after.shards == before.shards and after.nodes == before.nodes
    for name in ("node_num", "group_id", "replica_sequence", "job"):
        assert getattr(after.counters, name) > getattr(before.counters, name) + 1_000
    assert (after.roster.generation, after.roster.seats) == (1, (Seat("c1", 1, "s1"),))
    (said,) = [one.reason for one in after.decisions if one.kind == "coordinators-recovered"]
    assert "7 changes of the map" in said and "c2, c3 are lost" in said
    history = History(before.map_version)
    history.record(Change(after.map_version, (), (), partitioning=False))
    assert all(history.since(version) is None for version in (before.map_version, before.map_version + 7))


def test_a_node_that_only_the_lost_ones_had_welcomed_keeps_its_number() -> None:
    before = grown()
    number = before.counters.node_num + 3
    hello = HelloNode("n7", "n7:1", "", "store-7", "x", number)
    for state in (before, made(RECOVER, state=before)):
        foreign = apply(state, replace(hello, node_num=1 << 20), 2_000)
        assert isinstance(foreign, Rejection) and "never welcomed" in foreign.message
    assert isinstance(apply(before, hello, 2_000), Rejection)
    after = made(RECOVER, hello, HelloNode("n8", "n8:1", "", "store-8", ""), state=before)
    assert after.nodes["n7"].node_num == number and after.nodes["n8"].node_num > number
    again = apply(after, hello, 3_000)
    assert isinstance(again, Applied) and again.reply.node_num == number
    other = apply(after, replace(hello, node_id="n9", store_id="store-9"), 3_000)
    assert isinstance(other, Rejection) and "never welcomed" in other.message


def test_each_directory_gets_a_number_of_its_own_in_its_place() -> None:
    state = made(RECOVER, AdmitCoordinator("c3", 3, "new"), AdmitCoordinator("c3", 3, "new"), state=grown())
    number = state.roster.seats[-1].node_num
    assert place_of(number) == 3 and not is_founder(number) and is_founder(3)
    assert len(state.roster.seats) == 2
    refused = apply(state, AdmitCoordinator("c3", 3, "other"), 2_000)
    assert isinstance(refused, Rejection) and "another data directory" in refused.message
    again = made(replace(RECOVER, node_id="c3", node_num=number, store_id="new"), state=state, now_ms=5_000)
    assert again.roster.generation == 2
    later = made(AdmitCoordinator("c1", 1, "third"), state=again).roster.seats[-1].node_num
    assert place_of(later) == 1 and later not in (1, number)
    members = Coordinators((("c1", "h:1"), ("c2", "h:2"), ("c3", "h:3")), "c1")
    assert (members.name(number), members.address(later), members.address(PLACES)) == ("c3", "h:1", None)


def test_nobody_is_admitted_where_nothing_was_lost() -> None:
    refused = apply(grown(), AdmitCoordinator("c3", 3, "new"), 2_000)
    assert isinstance(refused, Rejection) and "recover coordinators --replace c3" in refused.message


STANDING = Standing("c1", 3, frozenset({"c1", "c2", "c3"}), frozenset({"c1", "c2"}), answers=False, heard=False)
FIVE = frozenset({"c1", "c2", "c3", "c4", "c5"})


@pytest.mark.parametrize(
    ("standing", "words"),
    [
        (STANDING, ""),
        (replace(STANDING, leader="c3"), "it leads the coordinators"),
        (replace(STANDING, answers=True), "c3 is not lost: it answers c1"),
        (replace(STANDING, heard=True), "heard of c3 a moment ago"),
        (replace(STANDING, in_touch=frozenset({"c1"})), "start c2 first"),
        (replace(STANDING, voters=2, staying=frozenset({"c1", "c3"}), in_touch=frozenset({"c1"})), "are no quorum"),
        (replace(STANDING, voters=2, staying=frozenset({"c1", "c2"})), ""),  # c3 has no vote yet
        (replace(STANDING, voters=5, staying=FIVE, in_touch=frozenset({"c1", "c2", "c4"})), ""),
        (replace(STANDING, voters=5, staying=FIVE, in_touch=frozenset({"c1", "c2"})), "start c4, c5 first"),
        (replace(STANDING, voters=5, staying=FIVE - {"c5"}, in_touch=frozenset({"c1", "c2"})), "start c4 first"),
        (replace(STANDING, voters=5, staying=FIVE - {"c5"}, in_touch=frozenset({"c1", "c2", "c4"})), ""),
    ],
)
def test_one_is_given_up_only_when_the_others_go_on(standing: Standing, words: str) -> None:
    found = why_not_replaced("c3", standing)
    assert (words in found) if words else not found


def test_a_place_is_open_once_its_directory_is_given_up() -> None:
    before = grown()
    assert holder_of(before.roster, "c3", 3) == 3
    give_up = ReplaceCoordinator("c3", 3, 3)
    open_ = made(give_up, state=before)
    assert holder_of(open_.roster, "c3", 3) == 0 and holder_of(open_.roster, "c2", 2) == 2
    assert (open_.map_version, open_.counters.node_num) == (before.map_version, before.counters.node_num)
    assert open_.roster.generation == 0
    (said,) = [one.reason for one in open_.decisions if one.kind == "coordinator-given-up"]
    assert "c3 is lost for good" in said and "number 3" in said
    refused = apply(open_, AdmitCoordinator("c2", 2, "new"), 2_000)
    assert isinstance(refused, Rejection) and "c2 is known with another" in refused.message
    taken = made(AdmitCoordinator("c3", 3, "new"), state=open_)
    assert holder_of(taken.roster, "c3", 3) == 3 + PLACES
    for state in (open_, taken):  # asked twice, or late
        again = apply(state, give_up, 2_000)
        assert isinstance(again, Applied) and not again.changed and "already" in again.reply.message
    wrong = apply(taken, replace(give_up, node_num=7), 2_000)
    assert isinstance(wrong, Rejection) and "another data directory by now" in wrong.message
    third = made(
        ReplaceCoordinator("c3", 3, 3 + PLACES),
        ReplaceCoordinator("c1", 1, 1),
        AdmitCoordinator("c1", 1, "third"),
        AdmitCoordinator("c3", 3, "fourth"),
        state=taken,
    )
    assert [seat.node_num for seat in third.roster.seats] == [1 + 2 * PLACES, 3 + 3 * PLACES]
    assert third.roster.replaced == (3, 3 + PLACES, 1)


def test_a_recovery_and_a_replacement_may_follow_each_other() -> None:
    state = made(ReplaceCoordinator("c3", 3, 3), RECOVER, state=grown())
    assert (state.roster.replaced, holder_of(state.roster, "c2", 2)) == ((), 0)
    state = made(AdmitCoordinator("c2", 2, "s2"), ReplaceCoordinator("c2", 2, 2 + PLACES), state=state)
    assert holder_of(state.roster, "c2", 2) == 0
    roster = state.roster
    given_up = Asker("x", 2 + PLACES, "s2", 1, roster.recovered_ms)
    assert is_given_up(roster, "x", given_up)
    assert not is_given_up(roster, "x", replace(given_up, node_num=1, store_id="s1"))
    assert not is_given_up(roster, "x", replace(given_up, generation=2))


def test_whoever_was_replaced_is_told_and_nobody_else() -> None:
    roster = made(ReplaceCoordinator("c3", 3, 3), AdmitCoordinator("c3", 3, "new"), state=grown()).roster
    assert is_given_up(roster, "x", Asker("x", 3, "s3", 0, 0))
    for number, store in ((1, "s1"), (2, "s2"), (3 + PLACES, "new")):
        assert not is_given_up(roster, "x", Asker("x", number, store, 0, 0))


def test_a_roster_of_before_is_read_as_it_was() -> None:
    plain = to_plain(Roster(1, 500, 0, (Seat("c1", 1, "s1"),)))
    del plain["replaced"]
    assert from_plain(Roster, plain) == Roster(1, 500, 0, (Seat("c1", 1, "s1"),))


def test_whoever_was_given_up_is_told_by_the_later_recovery_only() -> None:
    roster = Roster(2, 500, 1, (Seat("c1", 1, "s1"), Seat("c2", 18, "s2")))
    old = Asker("x", 3, "s3", 0, 0)
    assert is_given_up(roster, "x", old) and is_given_up(roster, "x", replace(old, generation=2, recovered_ms=400))
    for other in (
        replace(old, cluster_id="y"),
        replace(old, node_num=0),
        replace(old, node_num=18, store_id="s2"),
        replace(old, generation=2, recovered_ms=500),
        replace(old, generation=2, recovered_ms=600),
        replace(old, generation=3),
    ):
        assert not is_given_up(roster, "x", other)
    assert is_given_up(roster, "x", replace(old, node_num=1, store_id="of another directory"))
    assert not is_given_up(Roster(), "x", old)


def test_the_admitted_come_in_one_after_the_other() -> None:
    roster = Roster(1, 0, 2, (Seat("c1", 1, "s1"), Seat("c2", 18, "s2"), Seat("c3", 35, "s3")))
    heir, second, third = replica_id(1, 2), replica_id(18, 1), replica_id(35, 1)
    alone = Members((heir,))
    assert missing(roster, alone) == [second, third]
    assert next_change([], [second, third], alone, []) == ("learner", second)
    assert next_change([], [second, third], Members((heir,), (second,)), []) == ("learner", third)
    assert next_change([], [second, third], Members((heir,), (second, third)), []) is None
    assert next_change([], [second, third], Members((heir,), (second, third)), [third]) == ("voter", third)
    assert missing(roster, Members((heir, second, third))) == []


def test_the_replaced_go_before_anybody_comes() -> None:
    roster = Roster(seats=(Seat("c3", 35, "s"),), replaced=(3, 19))
    one, two, three, lost, new = (replica_id(number, 1) for number in (1, 2, 3, 19, 35))
    members = Members((one, two, three), (lost,))
    assert leaving(roster, members) == [three, lost] and missing(roster, members) == [new]
    assert next_change([three, lost], [new], members, []) == ("remove", three)
    assert leaving(roster, Members((one, two), (new,))) == []
