"""Which coordinator goes on alone when most of them are lost for good, judged by what those that answer say. Pure.

Refused wherever a quorum could still come back: whoever does not answer must be named as lost, and whoever is named
must not answer. The most complete log wins: of the later recovery, then as in an election.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

READABLE = "answers"
SILENT = "silent"
UNREADABLE = "unreadable"  # something answers there, but not as a coordinator of this version


@dataclass(frozen=True, slots=True)
class Held:
    """What a coordinator that answers has."""

    node_id: str
    replica: int  # 0: it is not part of the cluster yet
    generation: int
    recovered_ms: int
    term: int
    last_term: int
    last_index: int
    applied_index: int
    map_version: int
    leader_id: str
    voters: tuple[str, ...]

    @property
    def rank(self) -> tuple[int, int, int, int, int]:
        return self.generation, self.recovered_ms, self.last_term, self.last_index, self.applied_index


@dataclass(frozen=True, slots=True)
class Succession:
    """`best` goes on; `others` answer too, and are given up."""

    best: Held
    others: tuple[str, ...]
    seen_term: int


def leading(held: Sequence[Held]) -> str:
    """The leader that those know who answer, of the latest term; empty if they know none."""
    led = [one for one in held if one.leader_id]
    return max(led, key=lambda one: one.term).leader_id if led else ""


def choose(held: Sequence[Held], states: Mapping[str, str], gone: Collection[str]) -> Succession | str:
    """Who goes on, or a sentence why nobody should. `states`: every configured coordinator, and how it answers."""
    for name in sorted(gone):
        if name not in states:
            return f"there is no coordinator {name}: they are {', '.join(sorted(states))}"
        if states[name] != SILENT:
            return f"{name} is not lost: it answers"
    led = next((one for one in held if one.leader_id), None)
    if led is not None:
        return f"the coordinators have a quorum: {led.node_id} is in touch with {led.leader_id}, which leads"
    unreadable = sorted(name for name, state in states.items() if state == UNREADABLE)
    if unreadable:
        return f"{', '.join(unreadable)} answers, but not what it holds: start it as the others, or stop it for good"
    able = [one for one in held if one.replica and one.last_index]
    if not able:
        return "no coordinator that answers has anything of the cluster: start one that does, or restore a backup"
    answering = {one.node_id for one in able}
    best = min(able, key=lambda one: ([-figure for figure in one.rank], one.node_id))
    if sum(voter in answering for voter in best.voters) > len(best.voters) // 2:
        return "the coordinators that answer are a quorum: they will elect a leader by themselves"
    waiting = sorted(name for name, state in states.items() if state == SILENT and name not in gone)
    if waiting:
        verb = "does" if len(waiting) == 1 else "do"
        return (
            f"{', '.join(waiting)} {verb} not answer: bring them back, or say of each that is lost for good that it is"
        )
    others = tuple(sorted(one.node_id for one in held if one is not best))
    return Succession(best, others, max(one.term for one in held))
