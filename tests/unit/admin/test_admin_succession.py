"""Which coordinator goes on alone, and when none does."""

from __future__ import annotations

import pytest
from flotta_admin.core.succession import READABLE, SILENT, UNREADABLE, Held, Succession, choose, leading

LOST = {"c1": READABLE, "c2": READABLE, "c3": SILENT, "c4": SILENT, "c5": SILENT}
GONE = ("c3", "c4", "c5")


def held(name: str, last_term: int = 3, last_index: int = 100, **fields: object) -> Held:
    values: dict[str, object] = {"replica": 1, "generation": 0, "recovered_ms": 0, "term": 7, "leader_id": ""}
    values |= {"applied_index": last_index, "map_version": 9, "voters": ("c1", "c2", "c3", "c4", "c5")} | fields
    return Held(node_id=name, last_term=last_term, last_index=last_index, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "second", "best"),
    [
        (held("c1"), held("c2", last_index=101), "c2"),
        (held("c1", last_term=4), held("c2", last_index=900), "c1"),
        (held("c1"), held("c2"), "c1"),
        (held("c1", applied_index=90), held("c2"), "c2"),
        (held("c1", last_index=900), held("c2", generation=1, recovered_ms=5), "c2"),
        (held("c1", replica=0), held("c2"), "c2"),
    ],
)
def test_the_most_complete_log_wins(first: Held, second: Held, best: str) -> None:
    choice = choose([first, second], LOST, GONE)
    assert isinstance(choice, Succession)
    assert choice.best.node_id == best and choice.others == tuple({"c1", "c2"} - {best})


def test_the_term_is_the_greatest_that_anybody_knows() -> None:
    choice = choose([held("c1", term=5), held("c2", last_index=200, term=4)], LOST, GONE)
    assert isinstance(choice, Succession) and choice.seen_term == 5


@pytest.mark.parametrize(
    ("survivors", "states", "gone", "words"),
    [
        ([held("c1"), held("c2")], LOST, ("c3", "c4"), "c5 does not answer"),
        ([held("c1"), held("c2")], LOST, ("c3",), "c4, c5 do not answer"),
        ([held("c1"), held("c2")], LOST, (*GONE, "c2"), "c2 is not lost"),
        ([held("c1"), held("c2")], LOST, (*GONE, "c9"), "there is no coordinator c9"),
        ([held("c1"), held("c2", leader_id="c3")], LOST, GONE, "c2 is in touch with c3"),
        ([held("c1")], LOST | {"c2": UNREADABLE}, GONE, "c2 answers, but not what it holds"),
        ([held("c1", replica=0)], {"c1": READABLE, "c2": SILENT}, ("c2",), "has anything of the cluster"),
        ([held("c1"), held("c2"), held("c3")], LOST | {"c3": READABLE}, ("c4", "c5"), "are a quorum"),
        ([held("c1", voters=("c1",))], {"c1": READABLE, "c2": SILENT}, ("c2",), "are a quorum"),
    ],
)
def test_refusal_is_the_rule(survivors: list[Held], states: dict[str, str], gone: tuple[str, ...], words: str) -> None:
    choice = choose(survivors, states, gone)
    assert isinstance(choice, str) and words in choice


def test_the_leader_is_that_of_the_latest_term() -> None:
    behind, ahead, unsure = held("c1", term=4, leader_id="c5"), held("c2", term=7, leader_id="c3"), held("c4", term=9)
    assert leading([behind, ahead, unsure]) == "c3" and leading([unsure]) == "" and leading([]) == ""
