"""Shards grow together: what the map says at each step, what is refused, what can be called off, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest
from flotta_coordinator import wire
from flotta_coordinator.core import commands
from flotta_coordinator.core.codec import decode, encode
from flotta_coordinator.core.deltas import Delta
from flotta_coordinator.core.explain import explain
from flotta_coordinator.core.jobs import left
from flotta_coordinator.core.results import Applied, Rejection
from flotta_coordinator.core.state import Job, JobStatus, NodeStatus, Shard
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_world import POLICY, World
from test_coordinator_splits import NODES, begin, num_shards, refused, world_of


@pytest.fixture
def world() -> World:
    return world_of(shards=6)


def names(world: World) -> list[str]:
    return sorted(world.state.shards, key=lambda name: int(name[6:]))


def homes(world: World, count: int) -> list[str]:
    return [world.state.home_of(hashed).shard_id for hashed in range(count)]


def shards_to(count: int) -> list[str]:
    return [f"shard-{index}" for index in range(count)]


def seal(world: World, taker: str, job: Job) -> None:
    world.report(taker, caught_up=job.number)


def test_each_takes_its_kin_over_and_they_are_gone_when_it_has(world: World) -> None:
    groups = [world.state.shards[name].group_id for name in ("shard-2", "shard-4")]
    job = begin(world, 2)
    assert (job.steps, left(world.state, job), num_shards(world)) == (4, 4, 2)
    assert [world.state.shards[name].into for name in names(world)] == ["", "", *(["shard-0", "shard-1"] * 2)]
    assert {one.order for one in world.state.shards.values()} == {job.number}
    assert homes(world, 6) == shards_to(6), "until they are taken over keys are where they were"
    assert "over to shard-0" in " ".join(explain(world.view(), POLICY, "shard-4", "", None).now)
    assert "it takes over the keys of others" in " ".join(explain(world.view(), POLICY, "shard-0", "", None).now)
    seal(world, "shard-0", job)
    assert [name for name in names(world) if world.state.shards[name].sealing] == ["shard-2", "shard-4"]
    before = world.state.map_version
    world.report("shard-0", shard_count=2)
    assert names(world) == ["shard-0", "shard-1", "shard-3", "shard-5"]
    assert homes(world, 6) == ["shard-0", "shard-1", "shard-0", "shard-3", "shard-0", "shard-5"]
    taker = world.state.shards["shard-0"]
    assert (taker.absorbed, taker.order, taker.caught_up) == (tuple(groups), 0, False)
    assert world.state.map_version == before + 1, "in one step"
    message = wire.delta_message(
        world.state, Delta(before, before + 1, shards=("shard-0", "shard-2", "shard-4")), records=True
    )
    assert list(message.removed_shards) == ["shard-2", "shard-4"]
    assert [(one.shard_id, list(one.detail.absorbed)) for one in message.shards] == [("shard-0", groups)]
    seal(world, "shard-1", job)
    world.report("shard-1", shard_count=2)
    assert names(world) == shards_to(2) and left(world.state, job) == 0
    world.round()
    assert world.state.jobs[job.number].outcome == "default has 2 shards, it had 6"
    for sentence in (
        "an operator wants 2 shards of default instead of 6: 3 each grow together into one",
        "shard-0 has all but the newest rows of shard-2, shard-4: they take nothing more, and it follows",
        "shard-0 has taken over the keys of shard-2, shard-4 at epoch 2",
    ):
        assert sentence in world.sentences
    kept = world.state.shards["shard-0"]
    assert decode(Shard, encode(kept)) == kept


def test_the_way_to_any_other_number_goes_over_a_multiple(world: World) -> None:
    job = begin(world, 4)
    assert (job.steps, left(world.state, job), num_shards(world)) == (12 + 8, 12 + 8, 6)
    for index in range(6):
        world.report(f"shard-{index}", shard_count=12)
    for index in range(6, 12):
        world.report(f"shard-{index}")
    assert (num_shards(world), left(world.state, job)) == (12, 8)
    assert not any(one.into for one in world.state.shards.values()), "children lack replicas yet"
    world.round()
    assert world.state.jobs[job.number].status is JobStatus.RUNNING
    for index in range(6, 12):
        world.report(f"shard-{index}", whole=True)
    assert (num_shards(world), left(world.state, job)) == (4, 8)
    assert world.state.shards["shard-11"].into == "shard-3" and homes(world, 12) == shards_to(12)
    for index in range(4):
        seal(world, f"shard-{index}", job)
        world.report(f"shard-{index}", shard_count=4)
    assert names(world) == shards_to(4) and homes(world, 12) == shards_to(4) * 3
    world.round()
    assert world.state.jobs[job.number].outcome == "default has 4 shards, it had 6"
    assert begin(world, 8).steps == 8


def test_what_a_shard_took_over_is_named_on_after_it_was_taken_over_itself(world: World) -> None:
    """Or a node that was away meanwhile would ask leaders that are no more about its replicas, for good."""
    groups = {name: world.state.shards[name].group_id for name in names(world)}
    for count in (3, 1):
        job = begin(world, count)
        for taker in shards_to(count):
            seal(world, taker, job)
            world.report(taker, shard_count=count)
        world.round()
    assert names(world) == ["shard-0"]
    assert {*world.state.shards["shard-0"].absorbed} == {*groups.values()} - {groups["shard-0"]}


def test_it_is_called_off_only_before_anything_is_sealed(world: World) -> None:
    job = begin(world, 3)
    world.do(commands.CancelJob(job.number))
    assert world.state.jobs[job.number].status is JobStatus.CANCELLED
    assert (num_shards(world), homes(world, 6)) == (6, shards_to(6))
    assert not any(one.into or one.order or one.caught_up for one in world.state.shards.values())
    again = begin(world, 3)
    seal(world, "shard-1", job)
    assert not any(one.sealing for one in world.state.shards.values()), "said for the order that was called off"
    seal(world, "shard-1", again)
    assert world.state.shards["shard-4"].sealing
    assert "cannot be called off now" in refused(world, commands.CancelJob(again.number)).message
    world.report("shard-1", shard_count=3)
    assert "cannot be called off" in refused(world, commands.CancelJob(again.number)).message


def test_what_coordinators_lost_is_learned_again_from_what_is_sealed_and_merged(world: World) -> None:
    """The last of them may go on from before it had anything sealed."""
    job = begin(world, 3)
    world.report("shard-4", sealed=True)
    assert world.state.shards["shard-4"].sealing
    assert "cannot be called off now" in refused(world, commands.CancelJob(job.number)).message
    world.report("shard-1", shard_count=3)
    assert "shard-4" not in world.state.shards


def test_while_they_divide_on_the_way_it_cannot_be_called_off(world: World) -> None:
    job = begin(world, 4)
    assert "cannot be called off now" in refused(world, commands.CancelJob(job.number)).message


def test_one_order_at_a_time_and_nothing_else_beside_it(world: World) -> None:
    job = begin(world, 2)
    again = world.submit(commands.SetShardCount("default", 2))
    assert isinstance(again, Applied) and not again.changed and again.reply.job == job.number
    assert f"operation {job.number}" in refused(world, commands.SetShardCount("default", 3)).message
    assert "the number of shards is being changed" in refused(world, commands.BeginCopy(False, "b")).message


def test_a_shard_without_a_quorum_is_recovered_only_after_the_order_is_called_off(world: World) -> None:
    job = begin(world, 2)
    shard = world.state.shards["shard-2"]
    lost = [one.node_id for one in shard.members][:2]
    for node_id in lost:
        world.observe(node_id, NodeStatus.DEAD)
    survivor = next(one for one in shard.members if one.node_id not in lost)
    order = commands.RecoverShard(
        shard_id="shard-2",
        node_id=survivor.node_id,
        replica_id=survivor.replica_id,
        last_index=9,
        seen_term=shard.leader_term,
        seen_epoch=shard.epoch,
        epoch=shard.epoch,
        lost_after_ms=0,
    )
    assert "shard-0 takes its keys over; call that off" in refused(world, order).message
    world.do(commands.CancelJob(job.number))
    assert isinstance(world.submit(order), Applied)


def test_what_was_under_way_for_a_shard_ends_with_it(world: World) -> None:
    job = begin(world, 2)
    shard = world.state.shards["shard-4"]
    here = [one.node_id for one in shard.members]
    free = next(node_id for node_id in NODES if node_id not in here)
    move = world.submit(commands.MoveReplica("shard-4", here[0], free))
    assert isinstance(move, Applied)
    seal(world, "shard-0", job)
    world.report("shard-0", shard_count=2)
    ended = world.state.jobs[move.reply.job]
    assert (ended.status, ended.outcome) == (JobStatus.FAILED, "shard-4 is no more: shard-0 has its keys")
    world.round()


def test_a_count_that_nobody_ordered_changes_nothing(world: World) -> None:
    world.report("shard-0", shard_count=2, caught_up=1)
    assert world.state.shards["shard-0"].shard_count == 6 and names(world) == shards_to(6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 11), st.sampled_from(["divide", "born", "whole", "caught", "merge", "round"]))),
    st.sampled_from([(2, 3), (3, 2), (4, 6), (6, 4), (4, 2), (3, 1)]),
)
def test_in_whatever_order_it_is_heard_of_every_key_has_one_home_and_it_ends(steps: Any, counts: Any) -> None:
    had, wanted = counts
    world = world_of(shards=had, factor=2)
    job = begin(world, wanted)
    most = max(one.shard_count for one in world.state.shards.values())

    def step(number: int, what: str) -> None:
        """What is said is true, or it could not have been said: a shard does only what the map asks of it."""
        shard = world.state.shards.get(f"shard-{number % most}")
        if what == "round":
            world.round()
            world.tick()
        if shard is None:
            return
        merging = any(one.into for one in world.state.shards.values())
        ours = [one for one in world.state.shards.values() if one.into == shard.shard_id]
        if what == "divide" and not shard.parent and shard.shard_count < most and not merging:
            world.report(shard.shard_id, shard_count=most)
        elif what in ("born", "whole") and shard.parent:
            parent = world.state.shards[shard.parent]
            if parent.shard_count == most:
                world.report(shard.shard_id, whole=what == "whole")
        elif what == "caught" and ours:
            world.report(shard.shard_id, caught_up=shard.order)
        elif what == "merge" and ours and all(one.sealing for one in ours):
            world.report(shard.shard_id, shard_count=wanted)

    def check() -> None:
        for hashed in range(most):
            home = world.state.home_of(hashed)
            assert hashed % home.shard_count == home.shard_index

    for number, what in steps:
        step(number, what)
        check()
    for what in ("divide", "born", "whole", "whole", "caught", "merge"):
        for number in range(most):
            step(number, what)
            check()
    world.converge(300)
    assert world.state.jobs[job.number].status is JobStatus.DONE
    assert (num_shards(world), names(world)) == (wanted, shards_to(wanted))
    assert homes(world, most) == shards_to(wanted) * (most // wanted)


def test_a_table_of_one_shard_and_the_greatest_number(world: World) -> None:
    result = world.submit(commands.SetShardCount("default", 1))
    assert isinstance(result, Applied)
    assert "6 each grow together into one" in result.reply.message
    far = world_of(shards=64).submit(commands.SetShardCount("default", 65))
    assert isinstance(far, Rejection) and "goes over 4160" in far.message
