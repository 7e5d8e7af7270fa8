"""The coordinators' own recovery: one of them goes on alone, or is given up while the others have a quorum, and others
are admitted in the places of the lost.

Giving up one of a quorum loses nothing. But when the quorum was lost, what only the lost ones had is unknown: numbers
they gave out, versions of the map they showed. So every counter leaps over more than they can have given, and the map's
version over more than anybody can have seen, so that nobody ever holds the new map for an old one. Invariant: a node
number belongs to one data directory for ever; those that are given here are above all configured ones, and say which
place they fill.
"""

from __future__ import annotations

from dataclasses import replace

from flotta_coordinator.core import checks
from flotta_coordinator.core.commands import AdmitCoordinator, RecoverCoordinators, ReplaceCoordinator
from flotta_coordinator.core.draft import Draft
from flotta_coordinator.core.results import Applied, Refused, RejectCode
from flotta_coordinator.core.state import Counters, Numbers, Roster, Seat
from flotta_coordinator.core.wording import count, some

PLACES = 16
"""Node numbers of coordinators go round: the first so many are the configured places, and each later round is, too."""

VERSION_LEAP = 1 << 32
GROUP_LEAP = 1 << 20
SEQUENCE_LEAP = 1 << 20  # of 2^32
NODE_LEAP = 1 << 16  # of 2^32
JOB_LEAP = 1 << 10


def place_of(node_num: int) -> int:
    """The configured place, from 1, that a coordinator's number fills."""
    return (node_num - 1) % PLACES + 1


def is_founder(node_num: int) -> bool:
    """Was it a member from the beginning?"""
    return node_num <= PLACES


def holder_of(roster: Roster, node_id: str, place: int) -> int:
    """The number of the data directory that a configured coordinator has; 0 while an empty one may take its place."""
    for seat in roster.seats:
        if seat.node_id == node_id:
            return seat.node_num
    given_up = roster.generation or any(place_of(number) == place for number in roster.replaced)
    return 0 if given_up else place


def recover_coordinators(draft: Draft, command: RecoverCoordinators) -> Applied:
    """Never refused: it was decided by whoever seized the log, and is committed with that."""
    base = draft.base
    seat = Seat(command.node_id, command.node_num, command.store_id)
    first = draft.counters.node_num
    draft.counters = _leapt(draft.counters)
    unseen = (*base.roster.unseen, Numbers(first, draft.counters.node_num - 1))
    draft.roster = Roster(base.roster.generation + 1, draft.now_ms, base.roster.admitted, (seat,), unseen)
    draft.leap_to = max(base.map_version, command.seen_map_version) + VERSION_LEAP
    missed = max(0, command.seen_map_version - base.map_version)
    lacks = f"; {count(missed, 'change')} of the map that storage nodes have seen {_are(missed)} lost" if missed else ""
    others = f", and {some(command.given_up)} {_are(len(command.given_up))} given up" if command.given_up else ""
    draft.decide(
        "coordinators-recovered",
        command.node_id,
        f"an operator ordered it: {command.node_id} goes on alone, whose log ended at index {command.last_index}: "
        f"{some(command.gone)} {_are(len(command.gone))} lost{others}{lacks}",
    )
    return draft.finish("recovered")


def replace_coordinator(draft: Draft, command: ReplaceCoordinator) -> Applied:
    """A repeat changes nothing."""
    checks.check_id("node_id", command.node_id)
    checks.check_range("place", command.place, 1, PLACES)
    name, roster = command.node_id, draft.roster
    holder = holder_of(roster, name, command.place)
    if not holder or command.node_num in roster.replaced:
        return draft.finish(f"{name} is given up already: start it with an empty data directory")
    if holder != command.node_num:
        raise _refused(f"{name} has another data directory by now (number {holder}): ask again")
    seats = tuple(seat for seat in roster.seats if seat.node_id != name)
    draft.roster = replace(roster, seats=seats, replaced=(*roster.replaced, holder))
    draft.decide(
        "coordinator-given-up",
        name,
        f"an operator ordered it: {name} is lost for good, so its data directory (number {holder}) takes part no more, "
        "and an empty one may take its place",
    )
    return draft.finish(f"{name} is given up: start it with an empty data directory, and it is taken in again")


def admit_coordinator(draft: Draft, command: AdmitCoordinator) -> Applied:
    """A repeat answers the same number."""
    checks.check_id("node_id", command.node_id)
    checks.check_id("store_id", command.store_id, checks.STORE_ID_CHARS_MAX)
    checks.check_range("place", command.place, 1, PLACES)
    roster = draft.roster
    known = next((seat for seat in roster.seats if seat.node_id == command.node_id), None)
    if known is not None and known.store_id == command.store_id:
        return draft.finish("welcome", node_num=known.node_num)
    if holder_of(roster, command.node_id, command.place):
        store = f" (store {known.store_id})" if known is not None else ""
        raise _refused(
            f"{command.node_id} is known with another data directory{store}; "
            "a coordinator that lost its directory cannot come back under its old name, "
            f"{unless_replaced(command.node_id)}"
        )
    admitted = roster.admitted + 1
    seat = Seat(command.node_id, command.place + PLACES * admitted, command.store_id)
    draft.roster = replace(roster, admitted=admitted, seats=(*roster.seats, seat))
    draft.decide(
        "coordinator-admitted",
        seat.node_id,
        f"{seat.node_id} came with an empty data directory, and takes part again as number {seat.node_num}",
    )
    return draft.finish("welcome", node_num=seat.node_num)


def unless_replaced(node_id: str) -> str:
    """What an operator does who has lost the directory for good."""
    return f"unless it is given up first: flotta recover coordinators --replace {node_id}"


def _leapt(counters: Counters) -> Counters:
    return replace(
        counters,
        node_num=counters.node_num + NODE_LEAP,
        group_id=counters.group_id + GROUP_LEAP,
        replica_sequence=counters.replica_sequence + SEQUENCE_LEAP,
        job=counters.job + JOB_LEAP,
    )


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _refused(message: str) -> Refused:
    return Refused(RejectCode.FAILED_PRECONDITION, "node_id", f"node_id: {message}")
