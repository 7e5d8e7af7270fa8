"""The number of shards is changed: who may ask for it, what the map says meanwhile, and when it is done."""

from __future__ import annotations

from typing import Any

import pytest
from flotta_coordinator.core import commands
from flotta_coordinator.core.explain import explain
from flotta_coordinator.core.jobs import left
from flotta_coordinator.core.results import Applied, Rejection
from flotta_coordinator.core.state import Job, JobKind, JobStatus, NodeStatus, Phase, Purpose
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_world import POLICY, World

NODES = ("n1", "n2", "n3", "n4")


def world_of(shards: int = 2, factor: int = 3) -> World:
    made = World()
    for node_id in NODES:
        made.join(node_id)
    made.create(shards, factor)
    made.tick(60_000)
    made.converge(100)
    return made


@pytest.fixture
def world() -> World:
    return world_of()


def begin(world: World, number: int) -> Job:
    result = world.submit(commands.SetShardCount("default", number))
    assert isinstance(result, Applied), result
    return world.state.jobs[result.reply.job]


def refused(world: World, command: Any) -> Rejection:
    before = world.state
    result = world.submit(command)
    assert isinstance(result, Rejection), result
    assert world.state is before
    return result


def num_shards(world: World) -> int:
    table = world.state.partitioning
    assert table is not None
    return table.num_shards


def test_the_children_are_awaited_until_their_parent_has_divided_and_they_are_led(world: World) -> None:
    job = begin(world, 6)
    assert (job.kind, job.steps, left(world.state, job)) == (JobKind.SHARD_COUNT, 6, 6)
    parent, child = world.state.shards["shard-1"], world.state.shards["shard-5"]
    assert (child.phase, child.parent, child.shard_index, child.shard_count) == (Phase.AWAITED, "shard-1", 5, 6)
    assert child.birth == () and not child.leader
    assert [one.node_id for one in child.members] == [one.node_id for one in parent.members], "as far as is known"
    assert {one.replica_id & 0xFFFFFFFF for one in child.members} == {child.sequence}
    sequences = [one.sequence for one in world.state.shards.values() if one.parent]
    assert len(set(sequences)) == 4
    assert {world.state.home_of(hashed).shard_id for hashed in range(-12, 12)} == {"shard-0", "shard-1"}

    world.report("shard-1", shard_count=6)
    assert {world.state.home_of(hashed).shard_id for hashed in (1, 3, 5)} == {"shard-1", "shard-3", "shard-5"}
    assert {world.state.home_of(hashed).shard_id for hashed in (0, 2, 4)} == {"shard-0"}
    for shard_id in ("shard-3", "shard-5"):
        world.report(shard_id)
    assert (num_shards(world), left(world.state, job)) == (2, 3)
    world.report("shard-2")
    world.report("shard-4")
    assert num_shards(world) == 2, "the children of shard-0 are there, but its own report is late"
    world.report("shard-0", shard_count=6)
    assert (num_shards(world), left(world.state, job)) == (6, 0)
    assert [world.state.home_of(hashed).shard_id for hashed in range(6)] == [f"shard-{one}" for one in range(6)]
    world.round()
    assert world.state.jobs[job.number].status is JobStatus.DONE
    assert world.state.jobs[job.number].outcome == "default has 6 shards, it had 2"
    for sentence in (
        "an operator wants 6 shards of default instead of 2: each divides into 3",
        "shard-1 divided at epoch 2: it keeps one in 3 of its keys, the others go to shard-3, shard-5",
        "every shard of default has divided: it has 6 shards now",
    ):
        assert sentence in world.sentences


def test_what_cannot_be_is_refused_with_what_can(world: World) -> None:
    other = refused(world, commands.SetShardCount("default", 4095))
    assert (other.field, other.message) == (
        "num_shards",
        "num_shards: the way from 2 to 4095 shards goes over 8190, more than there can be; near it are 4090, 4092, "
        "4094, 4096, or go there in two steps",
    )
    assert (
        refused(world, commands.SetShardCount("default", 0)).message == "num_shards must be between 1 and 4096, not 0"
    )
    assert refused(world, commands.SetShardCount("default", 8192)).field == "num_shards"
    assert refused(world, commands.SetShardCount("other", 4)).message == "table: there is no table 'other'"
    same = world.submit(commands.SetShardCount("default", 2))
    assert isinstance(same, Applied) and not same.changed
    assert refused(World(), commands.SetShardCount("default", 4)).field == "table"


def test_one_at_a_time_and_not_beside_what_else_moves_or_copies(world: World) -> None:
    assert isinstance(world.submit(commands.BeginCopy(False, "backup")), Applied)
    assert "the backup to backup, is under way" in refused(world, commands.SetShardCount("default", 4)).message
    world.do(commands.CancelJob(1))
    here = [one.node_id for one in world.state.shards["shard-1"].members]
    free = next(node_id for node_id in NODES if node_id not in here)
    world.do(commands.MoveReplica("shard-1", here[0], free))
    assert "shard-1 is moving" in refused(world, commands.SetShardCount("default", 4)).message
    world.progress()
    job = begin(world, 4)
    again = world.submit(commands.SetShardCount("default", 4))
    assert isinstance(again, Applied) and not again.changed and again.reply.job == job.number
    assert f"operation {job.number}" in refused(world, commands.SetShardCount("default", 8)).message
    assert "the number of shards is being changed" in refused(world, commands.BeginCopy(False, "b")).message
    assert "shards that divide go on to the end" in refused(world, commands.CancelJob(job.number)).message
    for shard_id, count in (("shard-0", 4), ("shard-1", 4), ("shard-2", 0), ("shard-3", 0)):
        world.report(shard_id, shard_count=count)
    world.round()
    assert world.state.jobs[job.number].status is JobStatus.DONE
    assert "shard-2 was born of shard-0" in refused(world, commands.SetShardCount("default", 8)).message
    world.report("shard-2", whole=True)
    world.report("shard-3", whole=True)
    world.converge(100)
    assert begin(world, 8).steps == 8


def test_a_shard_without_a_quorum_is_not_asked_to_divide(world: World) -> None:
    for node_id in [one.node_id for one in world.state.shards["shard-0"].members][:2]:
        world.observe(node_id, NodeStatus.DEAD)
    assert "has lost its quorum" in refused(world, commands.SetShardCount("default", 4)).message


def test_the_voters_of_a_shard_stay_until_its_children_are_whole(world: World) -> None:
    begin(world, 4)
    shard = world.state.shards["shard-0"]
    here = [one.node_id for one in shard.members]
    free = next(node_id for node_id in NODES if node_id not in here)
    asked = (
        commands.MoveReplica("shard-0", here[0], free),
        commands.SetShardReplicas("shard-0", (here[0], here[1], free)),
        commands.MoveShard("shard-0", shard.epoch, (here[0], here[1], free), Purpose.BALANCE, "because of shard-0"),
    )
    for command in asked:
        assert "shard-0 divides" in refused(world, command).message
    assert "still to be born of shard-0" in refused(world, commands.MoveReplica("shard-2", here[0], free)).message
    assert "it divides" in " ".join(explain(world.view(), POLICY, "shard-0", "", None).now)
    assert "is to be born of shard-0" in explain(world.view(), POLICY, "shard-2", "", None).now[0]
    world.report("shard-0", shard_count=4)
    world.report("shard-2")
    assert "shard-0 divides" in refused(world, asked[0]).message
    assert "born of shard-0" in " ".join(explain(world.view(), POLICY, "shard-2", "", None).now)
    world.report("shard-2", whole=True)
    assert world.state.shards["shard-2"].parent == ""
    assert isinstance(world.submit(asked[0]), Applied)


def test_a_child_is_where_it_says_and_not_where_it_was_expected(world: World) -> None:
    begin(world, 4)
    shard = world.state.shards["shard-2"]
    here = [one.node_id for one in shard.members]
    elsewhere = next(node_id for node_id in NODES if node_id not in here)
    number = world.state.nodes[elsewhere].node_num
    voters = (shard.members[0].replica_id, number << 32 | shard.sequence)
    report = commands.ShardReport("shard-2", shard.group_id, 1, 1, voters[0], voters, 1, False, 4)
    world.do(commands.ReportShards(here[0], (report,)))
    assert [one.node_id for one in world.state.shards["shard-2"].members] == [here[0], elsewhere]


def test_a_count_that_nobody_ordered_is_not_taken(world: World) -> None:
    world.report("shard-0", shard_count=4)
    assert world.state.shards["shard-0"].shard_count == 2


def test_a_node_that_dies_in_the_middle_is_replaced_in_the_children_first_and_then_in_their_parent() -> None:
    world = world_of(factor=3)
    lost = world.state.shards["shard-0"].members[0].node_id
    job = begin(world, 4)
    world.observe(lost, NodeStatus.DEAD)
    for shard_id in ("shard-0", "shard-1"):
        alive = world.alive(one.node_id for one in world.state.shards[shard_id].members)
        world.report(shard_id, shard_count=4, leader=alive[0])
    for shard_id in ("shard-2", "shard-3"):
        alive = world.alive(one.node_id for one in world.state.shards[shard_id].members)
        world.report(shard_id, leader=alive[0])
    world.run(1)
    world.tick(POLICY.replace_after_ms)
    world.run(10)
    assert world.state.jobs[job.number].status is JobStatus.DONE
    assert lost not in [one.node_id for one in world.state.shards["shard-2"].members]
    assert lost in [one.node_id for one in world.state.shards["shard-0"].members]
    world.report("shard-2", whole=True)
    world.report("shard-3", whole=True)
    world.converge(200)
    assert not any(lost == one.node_id for shard in world.state.shards.values() for one in shard.members)


STEPS = st.lists(st.tuples(st.integers(0, 11), st.sampled_from(["divide", "born", "whole", "round"])), max_size=60)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.sampled_from([4, 6]))
def test_in_whatever_order_it_is_heard_of_every_key_has_one_home_and_it_ends(steps: Any, count: int) -> None:
    world = world_of(factor=2)
    job = begin(world, count)
    parents, children = ["shard-0", "shard-1"], [f"shard-{index}" for index in range(2, count)]
    # What is true of the shards, which reports only tell sooner or later.
    divided: set[str] = set()
    born: set[str] = set()

    def step(number: int, what: str) -> None:
        parent, child = parents[number % 2], children[number % len(children)]
        if what == "divide":
            divided.add(parent)
            world.report(parent, shard_count=count)
        elif what == "born" and world.state.shards[child].parent in ("", *divided):
            born.add(child)
            world.report(child)
        elif what == "whole" and child in born:
            world.report(child, whole=True)
        elif what == "round":
            world.round()
            world.tick()

    def check() -> None:
        for hashed in range(count):
            home = world.state.home_of(hashed)
            parent = f"shard-{hashed % 2}"
            assert home.shard_id == (f"shard-{hashed}" if parent in divided else parent)
        assert (num_shards(world) == count) == (divided == set(parents) and born == set(children))

    for number, what in steps:
        step(number, what)
        check()
    for what in ("divide", "born", "whole"):
        for number in range(count):
            step(number, what)
            check()
    world.converge(300)
    assert world.state.jobs[job.number].status is JobStatus.DONE
    assert not world.state.dividing()
    held = world.held().values()
    assert max(held) - min(held) <= 1, "and the planner spreads what was born in one place"
