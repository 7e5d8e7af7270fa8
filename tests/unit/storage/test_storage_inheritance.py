"""Which replicas of children a node makes of the rows of a shard that divided here, and which begin empty."""

from __future__ import annotations

from dataclasses import replace

from flotta_consensus.api import replica_id
from flotta_embedded.simulated import SimEngine
from flotta_storage.core import inheritance
from flotta_storage.core.divisions import Child, Division, decode_division, encode_division
from flotta_storage.core.inheritance import Inheritance, Local
from flotta_storage.core.replicas import Create, LocalReplica, LocalState, MapView, Origin, ShardView, decide
from flotta_storage.core.shard_state import ShardState
from flotta_storage.records import NodeRecords

PARENT, CHILD, OTHER = 10, 21, 22
VOTERS = (replica_id(1, 4), replica_id(2, 5), replica_id(3, 6))
CHILDREN = (Child("shard-1", CHILD, 1, 50), Child("shard-2", OTHER, 2, 51))
DIVISION = Division(3, 77, 1_000, VOTERS, CHILDREN)
BEFORE = ShardState("shard-0", "t", 4, 0, 1, 2)
AFTER = replace(BEFORE, epoch=5, shard_count=3)
DIVIDED = Local(PARENT, AFTER, DIVISION)


def node(number: int, *replicas: LocalReplica, tombstones: frozenset[int] = frozenset()) -> LocalState:
    kept = {one.group: one for one in replicas}
    return LocalState(f"node-{number}", number, "c", replicas=kept, tombstones=tombstones)


def made(
    number: int, group: int, sequence: int, origin: Origin = Origin.SPLIT, *, is_made: bool = True
) -> LocalReplica:
    voters = tuple(replica_id(one, sequence) for one in (1, 2, 3)) if origin is Origin.SPLIT else ()
    index = {CHILD: 1, OTHER: 2}[group]
    parent = PARENT if origin is Origin.SPLIT else 0
    return LocalReplica(
        group, replica_id(number, sequence), f"shard-{index}", origin, voters, "t", index, 3, 77, is_made, parent
    )


def test_a_division_survives_its_row() -> None:
    for division in (DIVISION, replace(DIVISION, cursor=b"dx\x00")):
        assert decode_division(encode_division(division)) == division


def test_each_first_voter_here_is_made_once_with_all_its_facts() -> None:
    found = inheritance.due([DIVIDED], node(2))
    wanted = (made(2, CHILD, 50, is_made=False), made(2, OTHER, 51, is_made=False))
    assert found == Inheritance({PARENT: wanted})
    assert inheritance.due([DIVIDED], node(2, *wanted)).made_of == {PARENT: wanted}, "recorded, and not made yet"
    assert inheritance.due([DIVIDED], node(2, made(2, CHILD, 50))).made_of == {PARENT: wanted[1:]}
    gone = frozenset({replica_id(2, 50)})
    assert inheritance.due([DIVIDED], node(2, tombstones=gone)).made_of == {PARENT: wanted[1:]}
    assert inheritance.due([DIVIDED], node(2, made(2, CHILD, 99, Origin.EMPTY))).made_of == {PARENT: wanted[1:]}
    assert not inheritance.due([DIVIDED], node(4)).made_of, "a learner's node is none of the voters'"


def test_rows_that_are_being_pruned_make_nothing() -> None:
    for parent in (
        replace(DIVIDED, division=replace(DIVISION, cursor=b"dx")),
        Local(PARENT, AFTER, None),
        Local(PARENT, BEFORE, None),
        Local(PARENT, None, None),
    ):
        assert inheritance.due([parent], node(2)) == Inheritance({})


def test_a_replica_that_cannot_be_made_any_more_begins_empty_but_not_before_that_is_certain() -> None:
    begun = made(2, CHILD, 50, is_made=False)
    empty = replace(begun, origin=Origin.EMPTY, voters=(), parent=0)
    waits = Local(PARENT, BEFORE, None)  # a power cut took the division back; the log will bring it again
    assert inheritance.due([waits], node(2, begun)) == Inheritance({})
    for parents in ([], [Local(PARENT, AFTER, None)], [replace(DIVIDED, division=replace(DIVISION, cursor=b"d"))]):
        assert inheritance.due(parents, node(2, begun)) == Inheritance({}, (empty,))
    assert inheritance.due([], node(2, made(2, CHILD, 50))) == Inheritance({}), "made is made"


def view(**fields: object) -> MapView:
    members = {replica_id(one, 50): f"node-{one}" for one in (1, 2, 3)}
    child = ShardView("shard-1", CHILD, False, 1, 3, "t", parent="shard-0", sequence=50, members=members)
    child = replace(child, **fields)  # type: ignore[arg-type]
    parent = ShardView("shard-0", PARENT, False, 0, 1, "t", members={one: f"node-{one >> 32}" for one in VOTERS})
    return MapView("c", 5, {PARENT: parent, CHILD: child}, {f"node-{one}": "h:1" for one in (1, 2, 3, 4)})


def kept_parent(number: int) -> LocalReplica:
    return LocalReplica(PARENT, VOTERS[number - 1], "shard-0", Origin.BIRTH, made=True)


def actions(parent: Local, number: int, found: MapView) -> list[object]:
    local = node(number, *([kept_parent(number)] if number < 4 else []))
    return list(decide(found, local, inheritance.heirs(found, [parent], local.node_id)))


def test_nobody_makes_an_awaited_child_by_the_map() -> None:
    awaited = view(awaited=True)
    assert actions(Local(PARENT, BEFORE, None), 2, awaited) == []
    assert list(decide(awaited, node(2, kept_parent(2), made(2, CHILD, 50)))) == []


def test_a_first_voter_waits_for_the_rows_that_may_still_come_and_begins_empty_when_they_cannot() -> None:
    for parent in (Local(PARENT, BEFORE, None), DIVIDED):
        assert actions(parent, 2, view()) == []
    for parent in (Local(PARENT, AFTER, None), replace(DIVIDED, division=replace(DIVISION, cursor=b"d")),
                   Local(PARENT, None, None)):  # fmt: skip
        (action,) = actions(parent, 2, view())
        assert isinstance(action, Create)
        assert (action.replica.origin, action.replica.replica) == (Origin.EMPTY, replica_id(2, 50))


def test_a_replica_that_is_no_first_voter_waits_for_nothing() -> None:
    later = view(targets={replica_id(1, 50): "node-1", replica_id(4, 60): "node-4"})
    (action,) = actions(Local(PARENT, BEFORE, None), 4, later)
    assert isinstance(action, Create) and action.replica.origin is Origin.EMPTY
    assert inheritance.heirs(view(parent=""), [DIVIDED], "node-2") == frozenset()


def test_records_keep_where_a_replica_came_from_and_read_those_of_before() -> None:
    engine = SimEngine(1)

    def opened() -> NodeRecords:
        return NodeRecords.open(engine, node_id="node-2", node_num=2, cluster_id="c", formed=False)

    records = opened()
    child = made(2, CHILD, 50, is_made=False)
    records.intend([child], 0)
    records.mark_made(CHILD)
    assert opened().state.replicas == {CHILD: replace(child, made=True)}
    assert opened().state.acted_version == 0
