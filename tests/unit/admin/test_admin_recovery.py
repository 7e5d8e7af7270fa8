"""From which replica a shard without a quorum goes on, and when from none."""

from __future__ import annotations

import pytest
from flotta_admin.core.recovery import Choice, Survivor, choose


def survivor(node: int, last_term: int = 3, last_index: int = 100, **fields: object) -> Survivor:
    values = {"term": 7, "applied_index": last_index, "epoch": 2, "voters": (1, 2, 3, 4, 5)} | fields
    return Survivor(f"node-{node}", node, last_term=last_term, last_index=last_index, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("survivors", "best"),
    [
        ([survivor(1), survivor(2, last_index=101)], "node-2"),
        ([survivor(1, last_term=4), survivor(2, last_index=900)], "node-1"),
        ([survivor(2), survivor(1)], "node-1"),
        ([survivor(1, applied_index=90), survivor(2)], "node-2"),
        ([survivor(1), survivor(2, epoch=0, last_index=0)], "node-1"),
    ],
)
def test_the_longest_log_wins_as_in_an_election(survivors: list[Survivor], best: str) -> None:
    choice = choose("shard-0", survivors, ())
    assert isinstance(choice, Choice) and choice.best.node_id == best


def test_figures_are_the_greatest_that_anybody_knows() -> None:
    choice = choose("shard-0", [survivor(1, term=5, epoch=4), survivor(2, last_index=200, term=4)], ())
    assert isinstance(choice, Choice)
    assert (choice.best.node_id, choice.seen_term, choice.seen_epoch) == ("node-2", 5, 4)


@pytest.mark.parametrize(
    ("survivors", "dead", "words"),
    [
        ([], (), "no node that is left"),
        ([survivor(1, epoch=0)], (), "no node that is left"),
        ([survivor(1), survivor(2)], ("node-2", "node-3"), "node-2 answers"),
        ([survivor(1, behind=True)], (), "as it is now"),
        ([survivor(1, leader_replica=4)], (), "has a leader"),
        ([survivor(1), survivor(2), survivor(3)], (), "are a quorum"),
        ([survivor(1, voters=(1,))], (), "are a quorum"),
        ([survivor(1, voters=(1, 2, 3), outgoing=(1, 2, 4)), survivor(2, voters=())], (), "are a quorum"),
    ],
)
def test_nobody_goes_on_while_there_is_another_way(
    survivors: list[Survivor], dead: tuple[str, ...], words: str
) -> None:
    answer = choose("shard-0", survivors, dead)
    assert isinstance(answer, str) and words in answer


def test_both_halves_of_a_joint_change_need_a_quorum() -> None:
    halves = [survivor(1, voters=(1, 2, 3), outgoing=(1, 4, 5)), survivor(2, voters=(1, 2, 3), outgoing=(1, 4, 5))]
    choice = choose("shard-0", halves, ())
    assert isinstance(choice, Choice) and choice.best.node_id == "node-1"


def test_a_quorum_of_those_that_were_given_up_is_none_and_may_be_all_that_is_left() -> None:
    old = [survivor(1, voters=(1, 2, 3), given_up=True), survivor(2, voters=(1, 2, 3), given_up=True, leader_replica=1)]
    choice = choose("shard-0", old, ())
    assert isinstance(choice, Choice) and choice.best.node_id == "node-1"
    choice = choose("shard-0", [*old, survivor(3, last_term=9, last_index=50, voters=(8, 9))], ())
    assert isinstance(choice, Choice) and choice.best.node_id == "node-3"
