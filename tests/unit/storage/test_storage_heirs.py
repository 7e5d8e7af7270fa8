"""Going on alone: what the node decides, records and writes behind its log."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flotta_consensus.api import replica_id
from flotta_embedded.simulated import SimEngine
from flotta_storage.core import keys
from flotta_storage.core.replicas import (
    AskMembership,
    Create,
    Heir,
    LocalReplica,
    LocalState,
    MapView,
    Origin,
    Retire,
    ShardView,
    TakeOver,
    decide,
)
from flotta_storage.core.shard_state import birth_state, decode_state
from flotta_storage.core.takeover import REVISIONS_SKIPPED, apply_takeovers, takeover_payloads
from flotta_storage.records import NodeRecords
from storage_support import ShardModel

NODES = {f"node-{n}": f"localhost:{8000 + n}" for n in range(1, 6)}
OLD = {replica_id(n, n): f"node-{n}" for n in (1, 2, 3)}
HEIR = Heir("node-3", replica_id(3, 9), replica_id(3, 3), term_min=7, epoch_min=4)


def map_of(**fields: object) -> MapView:
    shard = ShardView("shard-0", 10, False, 0, 1, members=OLD, replica_floor=9, heir=HEIR)
    return MapView("c", 5, {10: replace(shard, **fields)}, NODES)  # type: ignore[arg-type]


def node(number: int, *replicas: int) -> LocalState:
    kept = [LocalReplica(10, replica, "shard-0", Origin.BIRTH, made=True) for replica in replicas]
    return LocalState(f"node-{number}", number, "c", replicas={one.group: one for one in kept})


def test_the_heirs_node_takes_over_once() -> None:
    assert decide(map_of(), node(3, replica_id(3, 3))) == [TakeOver(10, HEIR)]
    assert decide(map_of(), node(3, replica_id(3, 9))) == []
    reported = map_of(members={HEIR.replica: "node-3"}, heir=None)
    assert decide(reported, node(3, replica_id(3, 9))) == []


def test_all_others_of_before_retire_and_ask_whether_they_are_members() -> None:
    question = AskMembership(10, replica_id(1, 1), "shard-0", ("node-2", "node-3"))
    assert decide(map_of(), node(1, replica_id(1, 1))) == [Retire(10, replica_id(1, 1)), question]
    reported = map_of(members={HEIR.replica: "node-3"}, heir=None)
    question = AskMembership(10, replica_id(1, 1), "shard-0", ("node-3",))
    assert decide(reported, node(1, replica_id(1, 1))) == [Retire(10, replica_id(1, 1)), question]


def test_a_node_gets_a_new_replica_only_after_the_old_one_is_gone() -> None:
    targets = {HEIR.replica: "node-3", replica_id(1, 10): "node-1"}
    view = map_of(members={HEIR.replica: "node-3"}, targets=targets, heir=None)
    assert not any(isinstance(action, Create) for action in decide(view, node(1, replica_id(1, 1))))
    (action,) = decide(view, node(1))
    assert isinstance(action, Create) and action.replica.origin is Origin.EMPTY


def test_the_epoch_ends_above_all_that_was_seen_and_replays_to_the_same() -> None:
    model = ShardModel()
    state = replace(birth_state("shard-0", "default", 0, 1), epoch=5)
    for epoch_min, epoch in ((2, 7), (40, 40)):
        raise_revisions, takeover = takeover_payloads(state, epoch_min)
        assert REVISIONS_SKIPPED.to_bytes(8, "big") in raise_revisions
        for _ in range(2):
            model._run(apply_takeovers, [takeover[-8:]], 0)
            assert decode_state(model.rows[keys.SHARD_KEY]).epoch == epoch


@pytest.mark.parametrize("done", [True, False])
def test_records_know_of_a_takeover_that_was_interrupted(done: bool) -> None:
    engine = SimEngine(seed=1)

    def opened() -> NodeRecords:
        return NodeRecords.open(engine, node_id="node-3", node_num=3, cluster_id="c", formed=False)

    records = opened()
    records.intend([LocalReplica(10, replica_id(3, 3), "shard-0", Origin.BIRTH, made=True)], 4)
    records.intend_takeover(10, HEIR.replica, 5)
    if done:
        records.mark_taken_over(10)
    engine.crash()
    found = opened().state
    assert found == records.state
    assert (found.replicas[10].replica, found.replicas[10].heir, found.acted_version) == (
        (HEIR.replica, 0, 5) if done else (replica_id(3, 3), HEIR.replica, 5)
    )
    assert found.tombstones == ({replica_id(3, 3)} if done else set())
