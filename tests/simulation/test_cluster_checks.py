"""The checks of whole clusters against small cases: each bad one differs from a good one in a single fact."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from campaign import CLUSTER, Campaign
from cluster_checks import MapRules, ShardRules, Views
from cluster_history import Effects, check_keys, check_outcomes
from flotta_consensus.api import Entry, EntryKind, Members, replica_id
from flotta_consensus.sim.checkers import AppliedEntry, SafetyViolation
from flotta_consensus.sim.history import History, Operation, Verdict
from flotta_coordinator.core.state import ClusterState, Node, NodeStatus, Phase, Purpose, Replica, Shard
from shard_model import Answer

NODES = {
    name: Node(name, f"{name}:1", "local", NodeStatus.ALIVE, node_num=number) for number, name in enumerate("abcd", 1)
}


def replicas(names: str, sequence: int = 1) -> tuple[Replica, ...]:
    return tuple(Replica(name, replica_id(NODES[name].node_num, sequence)) for name in names)


SHARD = Shard("shard-0", "default", 1, 0, 1, 5, Phase.ACTIVE, replicas("abc"), replicas("abc"), leader="a")
START = ClusterState(map_version=7, sequence=7, nodes=NODES, shards={"shard-0": SHARD})


def looked_at(*states: ClusterState) -> MapRules:
    """The rules after these states of a coordinator's, one after the other."""
    current: list[ClusterState] = [START]
    cluster: Any = SimpleNamespace(coordinators=[SimpleNamespace(state=lambda: current[0])])
    rules = MapRules(cluster)
    for state in (START, *states):
        current[0] = state
        rules.applied(1, 1, ())
    return rules


def after(sequence: int = 8, version: int = 8, **changes: Any) -> ClusterState:
    return replace(START, map_version=version, sequence=sequence, shards={"shard-0": replace(SHARD, **changes)})


def test_a_move_of_the_planner_is_fine() -> None:
    moving = after(targets=(*replicas("ab"), *replicas("d", 2)), purpose=Purpose.DEAD)
    moved = after(9, 9, members=(*replicas("ab"), *replicas("d", 2)), epoch=6)
    assert looked_at(moving, moved).decided == 1


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (after(version=6), "went back from version"),
        (after(epoch=4), "went back from epoch"),
        (after(members=replicas("abd")), "same epoch"),
        (after(targets=(*replicas("ab"), *replicas("c", 2)), purpose=Purpose.DEAD), "two replicas on c"),
    ],
)
def test_what_breaks_a_rule_of_the_map(bad: ClusterState, told: str) -> None:
    with pytest.raises(SafetyViolation, match=told):
        looked_at(bad)


def test_the_planner_may_not_count_on_the_dead() -> None:
    nodes = {**NODES, **{name: replace(NODES[name], status=NodeStatus.DEAD) for name in "bc"}}
    moving = replace(after(targets=(*replicas("ab"), *replicas("d", 2)), purpose=Purpose.DEAD), nodes=nodes)
    with pytest.raises(SafetyViolation, match="1 living members of 3"):
        looked_at(moving)
    by_hand = after(targets=(*replicas("ab"), *replicas("d", 2)), purpose=Purpose.OPERATOR)
    assert looked_at(replace(by_hand, nodes=nodes)).decided == 0


def changed(rules: ShardRules, index: int, members: Members) -> None:
    rules.applied(1, 1, [Entry(index, 1, EntryKind.CONF, b"", members)])


def numbered(*nodes: int) -> tuple[int, ...]:
    return tuple(replica_id(node, 1) for node in nodes)


def test_a_shard_has_one_replica_a_node_and_keeps_its_quorum() -> None:
    gone: set[int] = set()
    cluster: Any = SimpleNamespace(gone_numbers=lambda: gone)
    rules = ShardRules(cluster)
    changed(rules, 2, Members(numbered(1, 2, 3)))
    changed(rules, 3, Members(numbered(1, 2, 3), numbered(4)))
    with pytest.raises(SafetyViolation, match="two replicas on one node"):
        changed(rules, 4, Members(numbered(1, 2, 3), (replica_id(3, 9),)))
    gone.add(1)
    changed(rules, 5, Members(numbered(2, 3, 4)))
    changed(rules, 6, Members(numbered(1, 2, 3)))
    with pytest.raises(SafetyViolation, match="lost its quorum"):
        changed(rules, 7, Members(numbered(1, 2)))


def test_a_gateways_map_only_moves_forward() -> None:
    route = SimpleNamespace(shard_id="shard-0", epoch=3)
    detail = SimpleNamespace(group_id=7)
    current = SimpleNamespace(version=5, routes=[route], shards={"shard-0": SimpleNamespace(detail=detail)})
    gateway = SimpleNamespace(alive=True, maps=SimpleNamespace(current=current), name="g", incarnation=1)
    cluster: Any = SimpleNamespace(gateways=[gateway], storages=[])
    views = Views(cluster)
    views.look()
    route.epoch = 2
    with pytest.raises(SafetyViolation, match="went back"):
        views.look()
    detail.group_id = 8  # a shard that has the name of one that is no more
    views.look()
    route.epoch = 1
    gateway.incarnation = 2  # who starts anew knows nothing
    views.look()
    current.version = 4
    with pytest.raises(SafetyViolation, match="from version 5 to 4"):
        views.look()


def story(verdict: Verdict, result: Any = None) -> tuple[Operation, Effects]:
    """One put, and that it happened at index 4."""
    operation = History().call(1, 0, "put", b"k", (b"v1", 0), 10)
    operation.verdict, operation.result, operation.returned_us = verdict, result, 30
    answer = Answer("OK", 4, 4)
    return operation, {b"v1": [(AppliedEntry(4, 1, 0, b"", 20, 1), answer)]}


def test_what_clients_are_told_of_writes() -> None:
    operation, effects = story(Verdict.OK, Answer("OK", 4, 4))
    check_outcomes(1, [operation], effects)
    check_outcomes(1, [story(Verdict.UNKNOWN)[0]], effects)
    check_outcomes(1, [story(Verdict.UNKNOWN)[0]], {})
    with pytest.raises(SafetyViolation, match="lost"):
        check_outcomes(1, [operation], {})
    with pytest.raises(SafetyViolation, match="more than once"):
        check_outcomes(1, [operation], {b"v1": effects[b"v1"] * 2})
    with pytest.raises(SafetyViolation, match="refused write happened"):
        check_outcomes(1, [story(Verdict.REJECTED)[0]], effects)
    with pytest.raises(SafetyViolation, match="came to"):
        check_outcomes(1, [story(Verdict.OK, Answer("OK", 5, 5))[0]], effects)


def test_a_read_that_misses_an_acknowledged_write_is_not_linearizable() -> None:
    operation, effects = story(Verdict.OK, Answer("OK", 4, 4))
    read = replace(operation, number=2, kind="get", called_us=40, returned_us=50, result=(b"v1", 4))
    assert check_keys([operation, read], effects, frozenset()) == (1, 0)
    read.result = None
    with pytest.raises(SafetyViolation, match="not linearizable"):
        check_keys([operation, read], effects, frozenset())


def test_a_campaign_in_which_no_cluster_changed_fails() -> None:
    missing = Campaign(CLUSTER).missing()
    assert {"moves of the planner", "machines destroyed", "drains", "connections cut"} <= set(missing)
