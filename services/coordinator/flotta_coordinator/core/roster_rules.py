"""Whether a coordinator may go on alone, or without one of the others, and who was given up by that. Pure.

Going on alone is refused wherever a quorum could still come back: every other member must either be known to be lost
for good, and then be silent, or answer, and then hold no more than the one that goes on. Of two recoveries the later
one counts. Giving up one of a quorum is refused unless those that stay and answer are a quorum with it and without it:
with it they commit its removal, without it they go on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flotta_coordinator.core.quorum import has_quorum
from flotta_coordinator.core.state import Roster


@dataclass(frozen=True, slots=True)
class Asker:
    """Who a data directory says it is, and the newest recovery that it knows of."""

    cluster_id: str
    node_num: int  # 0: none yet
    store_id: str
    generation: int
    recovered_ms: int


@dataclass(frozen=True, slots=True)
class Holding:
    """What a coordinator that answers has."""

    generation: int
    recovered_ms: int
    last_term: int
    last_index: int
    leader_id: str
    voters: tuple[str, ...]

    @property
    def rank(self) -> tuple[int, int, int, int]:
        """The most complete one is the greatest, as in an election."""
        return self.generation, self.recovered_ms, self.last_term, self.last_index


SILENT = None
UNREADABLE = ""  # something answers, but not as a coordinator of this version with this token
Heard = Holding | str | None


def is_given_up(roster: Roster, cluster_id: str, asker: Asker) -> bool:
    """Did the coordinators go on without this data directory?"""
    if not asker.node_num or asker.cluster_id != cluster_id:
        return False
    if any((seat.node_num, seat.store_id) == (asker.node_num, asker.store_id) for seat in roster.seats):
        return False
    mine, theirs = (roster.generation, roster.recovered_ms), (asker.generation, asker.recovered_ms)
    return mine > theirs or (mine == theirs and asker.node_num in roster.replaced)


def why_not_alone(
    name: str, mine: Holding, heard: Mapping[str, Heard], gone: Collection[str], given_up: Collection[str]
) -> str:
    """Why `name` must not go on alone, as it hears the others itself; empty if it may."""
    if mine.leader_id:
        return f"the coordinators have a quorum: {name} is in touch with {mine.leader_id}, which leads"
    for other, said in sorted(heard.items()):
        if other in gone and said is not SILENT:
            return f"{other} is not lost: it answers {name}"
        if other not in gone and said is SILENT:
            return f"{other} does not answer {name}; if it is lost for good, say so"
        if other in given_up and isinstance(said, Holding):
            if said.leader_id:
                return f"the coordinators have a quorum: {other} is in touch with {said.leader_id}, which leads"
            if said.rank > mine.rank:
                return f"{other} has more of the log than {name} by now: ask again"
        elif other not in gone and isinstance(said, Holding):
            return f"{other} answers {name} by now: ask again"
        elif other not in gone:
            return f"{other} answers {name}, but not what it holds: start it as the others, or stop it for good"
    answering = {name, *(other for other, said in heard.items() if said is not SILENT)}
    if has_quorum(sum(voter in answering for voter in mine.voters), len(mine.voters)):
        return "the coordinators that answer are a quorum: they will elect a leader by themselves"
    return ""


@dataclass(frozen=True, slots=True)
class Standing:
    """How the coordinators stand, as their leader sees them, when one of them is to be given up."""

    leader: str
    voters: int  # how many vote now
    staying: frozenset[str]  # those of them that were not given up before
    in_touch: frozenset[str]  # those that follow the leader, and itself
    answers: bool  # the one in question, with the data directory that it is known with
    heard: bool  # it was heard of lately, though it does not answer


def why_not_replaced(name: str, standing: Standing) -> str:
    """Why `name` must not be given up now; empty if it may."""
    leader = standing.leader
    if name == leader:
        return f"{name} is not lost: it leads the coordinators"
    if standing.answers:
        return f"{name} is not lost: it answers {leader}"
    if standing.heard:
        return f"{leader} has heard of {name} a moment ago: ask again in some seconds, if it stays silent"
    staying = standing.staying - {name}
    here = staying & standing.in_touch
    if has_quorum(len(here), len(staying)) and has_quorum(len(here), standing.voters):
        return ""
    silent = ", ".join(sorted(staying - here))
    return f"without {name} those that answer are no quorum: start {silent} first"
