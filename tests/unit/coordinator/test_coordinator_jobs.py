"""Long work that operators ask for: its number, how far it is, how it ends, and what calling it off means."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flotta_coordinator.core import commands
from flotta_coordinator.core.jobs import left
from flotta_coordinator.core.results import Applied, Rejection
from flotta_coordinator.core.state import JOBS_MAX, Job, JobKind, JobStatus, NodeStatus
from planner_world import POLICY, World


@pytest.fixture
def world() -> World:
    made = World()
    for node_id in ("n1", "n2", "n3", "n4"):
        made.join(node_id)
    made.create(8, 3)
    made.tick(60_000)
    made.converge(100)
    return made


def begin(world: World, command: commands.Command) -> Job:
    result = world.submit(command)
    assert isinstance(result, Applied), result
    return world.state.jobs[result.reply.job]


def job(world: World, number: int) -> Job:
    return world.state.jobs[number]


def test_a_drain_is_followed_until_the_node_is_empty(world: World) -> None:
    begun = begin(world, commands.DrainNode("n2", True))
    assert (begun.kind, begun.steps, begun.status) == (JobKind.DRAIN, 6, JobStatus.RUNNING)
    again = world.submit(commands.DrainNode("n2", True))
    assert isinstance(again, Applied) and not again.changed and again.reply.job == begun.number
    seen = []
    while job(world, begun.number).status is JobStatus.RUNNING:
        seen.append(left(world.state, job(world, begun.number)))
        world.run(1)
    assert seen == sorted(seen, reverse=True) and seen[-1] == 0 and len(set(seen)) > 2
    ended = job(world, begun.number)
    assert (ended.status, ended.outcome) == (JobStatus.DONE, "n2 is empty, and may be stopped")
    assert f"operation {begun.number}, the drain of n2, is done: {ended.outcome}" in world.sentences


def test_an_operation_does_not_end_by_running_on(world: World) -> None:
    begun = begin(world, commands.DrainNode("n2", True))
    refused = world.submit(commands.EndJob(begun.number, JobStatus.RUNNING, "so it ended"))
    assert isinstance(refused, Rejection) and refused.field == "status" and "running on" in refused.message
    assert job(world, begun.number) == begun


def test_a_decommissioned_node_is_off_the_map_at_the_end(world: World) -> None:
    begun = begin(world, commands.DrainNode("n2", True, remove=True))
    world.run(60)
    assert job(world, begun.number).status is JobStatus.DONE
    assert "n2" not in world.state.nodes and "n2" in world.state.gone
    refused = world.submit(commands.HelloNode("n2", "n2:1", "", "store-n2", "c1"))
    assert isinstance(refused, Rejection)


def test_a_drain_that_becomes_a_decommission_is_another_job(world: World) -> None:
    drain = begin(world, commands.DrainNode("n2", True))
    decommission = begin(world, commands.DrainNode("n2", True, remove=True))
    assert job(world, drain.number).status is JobStatus.CANCELLED
    assert decommission.number == drain.number + 1


def test_a_cancelled_drain_leaves_the_node_where_it_is_and_cannot_be_cancelled_twice(world: World) -> None:
    begun = begin(world, commands.DrainNode("n2", True))
    world.run(2)
    assert isinstance(world.submit(commands.CancelJob(begun.number)), Applied)
    ended = job(world, begun.number)
    assert (ended.status, ended.left > 0) == (JobStatus.CANCELLED, True)
    assert not world.state.nodes["n2"].draining
    twice = world.submit(commands.CancelJob(begun.number))
    assert isinstance(twice, Rejection)
    assert "has ended already: it is CANCELLED" in twice.message
    unknown = world.submit(commands.CancelJob(99))
    assert isinstance(unknown, Rejection) and unknown.message == "number: there is no operation 99"
    world.tick(60_000)
    world.converge(100)
    assert max(world.held().values()) - min(world.held().values()) <= 1


def test_the_replication_factor_goes_up_and_down_and_back_when_it_is_cancelled(world: World) -> None:
    up = begin(world, commands.SetReplicationFactor(4))
    world.run(60)
    assert job(world, up.number).status is JobStatus.DONE
    assert {len(shard.members) for shard in world.state.shards.values()} == {4}
    down = begin(world, commands.SetReplicationFactor(2))
    world.run(60)
    assert (job(world, down.number).status, down.before) == (JobStatus.DONE, 4)
    assert {len(shard.members) for shard in world.state.shards.values()} == {2}
    third = begin(world, commands.SetReplicationFactor(3))
    world.run(1)
    assert 0 < left(world.state, job(world, third.number)) < 8
    world.do(commands.CancelJob(third.number))
    world.tick(60_000)
    world.converge(200)
    assert {len(shard.members) for shard in world.state.shards.values()} == {2}


def test_more_replicas_than_nodes_stay_under_way_until_there_is_one_more(world: World) -> None:
    result = world.submit(commands.SetReplicationFactor(5))
    assert isinstance(result, Applied)
    assert "only 4 nodes can take replicas" in result.reply.message
    world.run(60)
    assert job(world, result.reply.job).status is JobStatus.RUNNING
    assert "replicas-missing/default" in world.state.notes
    world.join("n5")
    world.run(60)
    assert job(world, result.reply.job).status is JobStatus.DONE


def test_a_rebalance_takes_what_was_placed_by_hand_and_ends_when_all_is_level(world: World) -> None:
    for number in range(8):
        world.do(commands.SetShardReplicas(f"shard-{number}", ("n1", "n2", "n3")))
    world.run(60)
    assert world.held()["n4"] == 0, "what an operator placed stays"
    begun = begin(world, commands.Rebalance())
    assert left(world.state, begun) > 0
    world.run(120)
    ended = job(world, begun.number)
    assert (ended.status, ended.outcome) == (JobStatus.DONE, "4 nodes hold 6 to 6 replicas each")
    assert set(world.held().values()) == {6}


def test_a_rebalance_of_a_new_cluster_that_is_level_ends_at_once() -> None:
    """It was waited until the nodes had settled, though nothing was to come to them then."""
    world = World()
    for node_id in ("n1", "n2", "n3"):
        world.join(node_id)
    world.create(6, 3)
    world.progress()
    begun = begin(world, commands.Rebalance())
    assert POLICY.settle_ms > 0
    world.round()
    assert job(world, begun.number).status is JobStatus.DONE


def test_a_rebalance_waits_for_a_new_node_that_is_to_get_its_share(world: World) -> None:
    world.join("n5")
    begun = begin(world, commands.Rebalance())
    world.round()
    assert job(world, begun.number).status is JobStatus.RUNNING
    world.tick(POLICY.settle_ms)
    world.run(120)
    assert job(world, begun.number).status is JobStatus.DONE
    assert world.held()["n5"] >= 4


def test_a_cancelled_rebalance_leaves_its_shards_alone_for_a_while(world: World) -> None:
    for number in range(8):
        world.do(commands.SetShardReplicas(f"shard-{number}", ("n1", "n2", "n3")))
    world.run(60)
    begun = begin(world, commands.Rebalance())
    world.round()
    moving = {name for name, shard in world.state.shards.items() if shard.moving}
    world.do(commands.CancelJob(begun.number))
    world.round()
    assert moving and not any(world.state.shards[name].moving for name in moving)


def test_a_move_by_hand_is_done_or_says_that_it_was_not(world: World) -> None:
    shard = world.state.shards["shard-0"]
    names = [member.node_id for member in shard.members]
    (other,) = {"n1", "n2", "n3", "n4"} - set(names)
    begun = begin(world, commands.MoveReplica("shard-0", names[1], other))
    assert left(world.state, begun) == 1
    world.run(2)
    assert job(world, begun.number).status is JobStatus.DONE
    back = begin(world, commands.MoveReplica("shard-0", other, names[1]))
    world.do(commands.CancelMove("shard-0"))
    world.run(2)
    assert job(world, back.number).status is JobStatus.FAILED
    third = begin(world, commands.MoveReplica("shard-0", other, names[1]))
    world.do(commands.CancelJob(third.number))
    assert not world.state.shards["shard-0"].moving
    assert job(world, third.number).status is JobStatus.CANCELLED


def test_a_move_by_hand_amid_a_change_of_the_factor_does_not_hold_it_up(world: World) -> None:
    begun = begin(world, commands.SetReplicationFactor(4))
    shard = world.state.shards["shard-0"]
    names = [member.node_id for member in shard.members]
    (other,) = {"n1", "n2", "n3", "n4"} - set(names)
    begin(world, commands.MoveReplica("shard-0", names[1], other))
    world.run(120)
    assert job(world, begun.number).status is JobStatus.DONE
    assert len(world.state.shards["shard-0"].members) == 4


def alone_on_n1() -> World:
    world = World()
    for name in ("n1", "n2", "n3"):
        world.join(name)
    world.create(1, 1)
    assert world.state.shards["shard-0"].member_on("n1")
    world.tick(60_000)
    return world


def holders(world: World) -> list[str]:
    return [member.node_id for member in world.state.shards["shard-0"].members]


@pytest.mark.parametrize("calls_off", [commands.CancelMove("shard-0"), commands.CancelJob(1)])
def test_a_move_by_hand_that_is_called_off_half_way_leaves_no_replica_too_many(calls_off: commands.Command) -> None:
    """Where the only voter moves, the new one is a voter for a moment beside the old one."""
    world = alone_on_n1()
    begin(world, commands.MoveReplica("shard-0", "n1", "n2"))
    world.report("shard-0", ["n1", "n2"], leader="n2")
    world.do(calls_off)
    assert holders(world) == ["n1", "n2"]
    world.tick(world.policy.hold_ms)
    world.converge(60)
    assert len(holders(world)) == 1


def test_a_move_by_hand_that_was_half_way_when_it_was_called_off_leaves_no_replica_too_many() -> None:
    """The news of that came a moment later."""
    world = alone_on_n1()
    begin(world, commands.MoveReplica("shard-0", "n1", "n2"))
    shard = world.state.shards["shard-0"]
    world.do(commands.CancelMove("shard-0"))
    (old,), (new,) = shard.members, shard.targets
    voters = (old.replica_id, new.replica_id)
    late = commands.ShardReport("shard-0", shard.group_id, shard.epoch + 1, 9, new.replica_id, voters, 5, moving=False)
    world.do(commands.ReportShards("n2", (late,)))
    assert holders(world) == ["n1", "n2"]
    world.tick(world.policy.hold_ms)
    world.converge(60)
    assert len(holders(world)) == 1


def test_a_shard_placed_by_hand_keeps_no_replica_of_a_drain_that_ended_half_way() -> None:
    world = alone_on_n1()
    begin(world, commands.SetShardReplicas("shard-0", ("n2",)))
    world.run(3)
    assert holders(world) == ["n2"] and world.state.shards["shard-0"].replicas_pinned
    begin(world, commands.DrainNode("n2", True))
    world.round()
    (target,) = world.state.shards["shard-0"].targets
    world.report("shard-0", ["n2", target.node_id], leader=target.node_id)
    world.do(commands.DrainNode("n2", False))
    world.tick(world.policy.hold_ms)
    world.converge(60)
    assert len(holders(world)) == 1


def test_a_move_of_the_planner_that_is_called_off_leaves_a_placement_by_hand_as_it_was(world: World) -> None:
    names = holders(world)
    world.do(commands.SetShardReplicas("shard-0", tuple(names)))
    begin(world, commands.DrainNode(names[-1], True))
    for _ in range(100):
        world.round()
        if world.state.shards["shard-0"].moving:
            break
        world.progress()
        world.tick()
    world.do(commands.CancelMove("shard-0"))
    assert world.state.shards["shard-0"].replicas_pinned


def test_a_placement_by_hand_is_followed_and_called_off_and_gives_way_to_another(world: World) -> None:
    shard = world.state.shards["shard-0"]
    names = [member.node_id for member in shard.members]
    (other,) = {"n1", "n2", "n3", "n4"} - set(names)
    wanted = (names[0], names[1], other)
    begun = begin(world, commands.SetShardReplicas("shard-0", wanted))
    assert (begun.kind, begun.steps, left(world.state, begun)) == (JobKind.PLACEMENT, 2, 2)
    again = world.submit(commands.SetShardReplicas("shard-0", wanted))
    assert isinstance(again, Applied) and not again.changed and again.reply.job == begun.number
    world.run(3)
    assert (job(world, begun.number).status, left(world.state, job(world, begun.number))) == (JobStatus.DONE, 0)
    back = begin(world, commands.SetShardReplicas("shard-0", tuple(names)))
    instead = begin(world, commands.SetShardReplicas("shard-0", (names[0], other)))
    assert job(world, back.number).status is JobStatus.CANCELLED
    world.do(commands.CancelJob(instead.number))
    assert not world.state.shards["shard-0"].moving
    refused = world.submit(commands.CancelJob(instead.number))
    assert isinstance(refused, Rejection) and "has ended already: it is CANCELLED" in refused.message
    dropped = begin(world, commands.SetShardReplicas("shard-0", tuple(names)))
    world.do(commands.CancelMove("shard-0"))
    world.run(2)
    ended = job(world, dropped.number)
    assert ended.status is JobStatus.FAILED and "after all" in ended.outcome


def test_a_leadership_by_hand_is_followed_and_called_off(world: World) -> None:
    shard = world.state.shards["shard-0"]
    follower = next(member.node_id for member in shard.members if member.node_id != shard.leader)
    begun = begin(world, commands.SetShardLeader("shard-0", shard.epoch, follower))
    assert (begun.kind, begun.target, left(world.state, begun)) == (JobKind.LEADERSHIP, follower, 1)
    world.run(3)
    ended = job(world, begun.number)
    assert (ended.status, ended.outcome) == (JobStatus.DONE, f"shard-0 is led by {follower}")
    already = world.submit(commands.SetShardLeader("shard-0", shard.epoch, follower))
    assert isinstance(already, Applied) and not already.reply.job
    back = begin(world, commands.SetShardLeader("shard-0", shard.epoch, shard.leader))
    world.do(commands.CancelJob(back.number))
    assert not world.state.shards["shard-0"].target_leader
    world.run(2)
    assert world.state.shards["shard-0"].leader == follower
    hopeless = begin(world, commands.SetShardLeader("shard-0", shard.epoch, shard.leader))
    world.observe(shard.leader, NodeStatus.DEAD)
    world.run(2)
    assert job(world, hopeless.number).status is JobStatus.FAILED


def test_a_dead_node_can_be_drained_without_waiting_for_it(world: World) -> None:
    world.observe("n3", NodeStatus.DEAD)
    begun = begin(world, commands.DrainNode("n3", True))
    world.run(POLICY.replace_after_ms // 2_000)
    assert job(world, begun.number).status is JobStatus.DONE


def test_a_planner_that_may_move_nothing_says_so(world: World) -> None:
    world.policy = POLICY.__class__(moves_max=0)
    begun = begin(world, commands.Rebalance())
    world.round()
    assert job(world, begun.number).outcome == "the coordinator is set to move nothing: moves_max is 0"


def test_the_record_of_jobs_is_bounded_and_those_under_way_are_kept(world: World) -> None:
    drain = begin(world, commands.DrainNode("n1", True))
    for _ in range(JOBS_MAX + 5):
        begun = begin(world, commands.Rebalance())
        world.do(commands.CancelJob(begun.number))
    assert len(world.state.jobs) == JOBS_MAX
    assert job(world, drain.number).status is JobStatus.RUNNING
    assert max(world.state.jobs) == begun.number


def test_a_choice_by_hand_is_taken_though_there_is_no_room_for_its_record(world: World) -> None:
    running = {number: Job(number, JobKind.DRAIN, "n1", "a drain", 1, 1) for number in range(1, JOBS_MAX + 1)}
    world.state = replace(world.state, jobs=running)
    shard = world.state.shards["shard-0"]
    follower = next(member.node_id for member in shard.members if member.node_id != shard.leader)
    result = world.submit(commands.SetShardLeader("shard-0", shard.epoch, follower))
    assert isinstance(result, Applied) and result.changed and not result.reply.job
    assert world.state.shards["shard-0"].target_leader == follower
