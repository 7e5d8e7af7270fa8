"""What the leader of a shard proposes next while shards grow together, and what goes when they have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_storage.core.absorptions import Absorption, Source
from flotta_storage.core.follows import Phase
from flotta_storage.core.merge_steps import Step, next_step, wanted
from flotta_storage.core.replicas import (
    AskMembership,
    Drop,
    LocalReplica,
    LocalState,
    MapView,
    Origin,
    ShardView,
    decide,
)
from flotta_storage.core.shard_state import Stage, birth_state
from flotta_storage.hints import Hints
from flotta_storage.map_model import MapModel

FIRST = birth_state("shard-0", "default", 0, 4)
THIRD = birth_state("shard-2", "default", 2, 4)
TAKER = ShardView("shard-0", 10, False, 0, 4, order=7)
SOURCE = ShardView("shard-2", 12, False, 2, 4, order=7, into="shard-0")
ABSORPTION = Absorption(7, 2, (Source("shard-2", 12, 2),))


def step_of(
    stage: Stage,
    shard: ShardView | None,
    sources: tuple[ShardView, ...] = (),
    absorption: Absorption | None = None,
    *,
    noted: bool = False,
    divided: bool = False,
) -> Step:
    state = THIRD if shard is not None and shard.shard_id == "shard-2" else FIRST
    return next_step(replace(state, stage=stage), shard, sources, absorption, noted=noted, divided=divided)


def test_what_gives_its_keys_away() -> None:
    assert step_of(Stage.SERVES, SOURCE) is Step.FOLLOW
    assert step_of(Stage.SERVES, SOURCE, divided=True) is Step.WAIT
    assert step_of(Stage.FOLLOWED, SOURCE, noted=True) is Step.WAIT
    assert step_of(Stage.FOLLOWED, replace(SOURCE, sealing=True), noted=True) is Step.SEAL
    assert step_of(Stage.SEALED, replace(SOURCE, sealing=True), noted=True) is Step.WAIT
    called_off = replace(SOURCE, into="", order=0)
    assert step_of(Stage.FOLLOWED, called_off, noted=True) is Step.UNFOLLOW
    assert step_of(Stage.SERVES, called_off, noted=True) is Step.UNFOLLOW
    assert step_of(Stage.SERVES, called_off) is Step.WAIT


def test_what_takes_them() -> None:
    assert step_of(Stage.SERVES, TAKER, (SOURCE,)) is Step.ABSORB
    assert step_of(Stage.SERVES, TAKER, (SOURCE,), divided=True) is Step.WAIT
    assert step_of(Stage.ABSORBS, TAKER, (SOURCE,), ABSORPTION) is Step.COPY
    whole = replace(ABSORPTION, sources=(replace(ABSORPTION.sources[0], phase=Phase.WHOLE),))
    assert step_of(Stage.ABSORBS, TAKER, (SOURCE,), whole) is Step.MERGE
    assert step_of(Stage.ABSORBS, replace(TAKER, order=0), (), ABSORPTION) is Step.LET_GO
    later = (replace(TAKER, order=8), (replace(SOURCE, order=8),))
    assert step_of(Stage.ABSORBS, *later, ABSORPTION) is Step.LET_GO


@pytest.mark.parametrize("stage", list(Stage))
def test_where_the_map_does_not_have_the_shard_nothing_is_done(stage: Stage) -> None:
    assert step_of(stage, None, (), ABSORPTION, noted=True) is Step.WAIT


def test_nothing_is_wanted_of_a_shard_that_has_taken_them_or_of_sources_that_do_not_fit() -> None:
    assert wanted(FIRST, TAKER, (SOURCE,)) == ABSORPTION
    assert wanted(replace(FIRST, shard_count=2), TAKER, (SOURCE,)) is None
    assert wanted(FIRST, TAKER, (replace(SOURCE, shard_index=3),)) is None
    assert wanted(FIRST, TAKER, (replace(SOURCE, order=6),)) is None
    assert wanted(replace(FIRST, shard_count=1), TAKER, (SOURCE, SOURCE, SOURCE)) is None


def test_a_replica_of_a_shard_that_is_no_more_goes_without_asking_and_no_other_does() -> None:
    replicas = {
        group: LocalReplica(group, 1 << 32 | group, f"shard-{group}", Origin.BIRTH, made=True) for group in (10, 12, 13)
    }
    local = LocalState("node-1", 1, "c", replicas=replicas)
    taker = replace(TAKER, members={1 << 32 | 10: "node-1"}, absorbed=frozenset({12}))
    actions = decide(MapView("c", 5, {10: taker}, {"node-2": "a:1"}), local)
    assert actions == [Drop(12), AskMembership(13, 1 << 32 | 13, "shard-13", ("node-2",))]
    assert decide(MapView("c", 0, {10: taker}), local) == []
    here = replace(SOURCE, members={1 << 32 | 12: "node-1"})
    both = decide(MapView("c", 5, {10: taker, 12: here}, {"node-2": "a:1"}), local)
    assert [type(action) for action in both] == [AskMembership], "as long as the map has the shard it stays"


def test_operations_that_come_to_a_shard_that_is_no_more_are_told_where_their_keys_are() -> None:
    def record(index: int, count: int, node: str) -> pb.ShardRecord:
        detail = pb.ShardDetail(group_id=10 + index, shard_index=index, shard_count=count)
        return pb.ShardRecord(shard_id=f"shard-{index}", leader=node, detail=detail)

    model = MapModel("c")
    state = pb.ClusterState(map_version=3, cluster_id="c")
    state.partitioning.num_shards = 2
    for number, node in enumerate(("node-1", "node-2"), start=1):
        state.nodes[node].CopyFrom(pb.NodeRecord(node_id=node, address=f"h:{number}"))
    for index, count in ((0, 4), (1, 2), (2, 4)):
        state.shards[f"shard-{index}"].CopyFrom(record(index, count, f"node-{index % 2 + 1}"))
    model.take_state(state)
    hints = Hints(model, "node-1")
    for number in range(100):
        key = b"k%d" % number
        home = model.home_of(key)
        assert home in ("shard-0", "shard-1", "shard-2")
        assert hints.home("shard-3", key) == home, "what shard-3 had is wherever its keys are now"
        assert hints.home("shard-0", key) == "shard-0"
    assert hints.home("shard-3", b"") == "shard-3", "a scan has no key"
