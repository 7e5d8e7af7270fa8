"""A decision that rests on what is no longer so is refused where it is applied, and leaves no trace."""

from __future__ import annotations

import pytest
from flotta_coordinator.core import commands
from flotta_coordinator.core.results import Applied, RejectCode, Rejection
from flotta_coordinator.core.state import NodeStatus, Purpose
from planner_world import World


@pytest.fixture
def world() -> World:
    made = World()
    for name in ("n1", "n2", "n3", "n4", "n5"):
        made.join(name)
    made.create(2, 3)  # shard-0 on n1 n2 n3, shard-1 on n2 n3 n4
    return made


def move(world: World, *nodes: str, purpose: Purpose, epoch: int = 1) -> str:
    """Why it is refused; empty when it is not."""
    before = world.state
    result = world.submit(commands.MoveShard("shard-0", epoch, nodes, purpose, "shard-0 moves"))
    if isinstance(result, Rejection):
        assert world.state is before
        assert result.code is RejectCode.FAILED_PRECONDITION
        return result.message
    return ""


def test_a_replacement_needs_a_node_that_is_still_dead(world: World) -> None:
    assert "reason to move shard-0 (dead) is gone" in move(world, "n1", "n2", "n4", purpose=Purpose.DEAD)
    world.observe("n3", NodeStatus.DEAD)
    assert move(world, "n1", "n2", "n4", purpose=Purpose.DEAD) == ""


def test_a_drain_needs_a_node_that_is_still_drained(world: World) -> None:
    assert "(drain) is gone" in move(world, "n1", "n2", "n4", purpose=Purpose.DRAIN)
    world.do(commands.DrainNode("n3", True))
    assert move(world, "n1", "n2", "n4", purpose=Purpose.DRAIN) == ""


def test_balancing_needs_healthy_shards_that_nobody_placed(world: World) -> None:
    world.observe("n2", NodeStatus.SUSPECT)
    assert "(balance) is gone" in move(world, "n1", "n2", "n4", purpose=Purpose.BALANCE)
    world.observe("n2", NodeStatus.ALIVE)
    world.do(commands.SetShardReplicas("shard-0", ("n1", "n2", "n3")))
    assert "(balance) is gone" in move(world, "n1", "n2", "n4", purpose=Purpose.BALANCE)
    world.do(commands.Rebalance())
    assert move(world, "n1", "n2", "n4", purpose=Purpose.BALANCE) == ""


def test_the_number_of_replicas_only_comes_closer_to_the_factor(world: World) -> None:
    assert "(missing) is gone" in move(world, "n1", "n2", "n3", "n4", purpose=Purpose.MISSING)
    assert "(surplus) is gone" in move(world, "n1", "n2", purpose=Purpose.SURPLUS)
    world.do(commands.SetReplicationFactor(2))
    assert "(surplus) is gone" in move(world, "n1", purpose=Purpose.SURPLUS)
    assert move(world, "n1", "n2", purpose=Purpose.SURPLUS) == ""


def test_no_node_gets_a_replica_that_cannot_take_one(world: World) -> None:
    world.observe("n3", NodeStatus.DEAD)
    world.observe("n4", NodeStatus.SUSPECT)
    assert "n4 cannot take a replica now" in move(world, "n1", "n2", "n4", purpose=Purpose.DEAD)
    world.do(commands.DrainNode("n5", True))
    assert "n5 cannot take a replica now" in move(world, "n1", "n2", "n5", purpose=Purpose.DEAD)
    assert "no other nodes, or name one twice" in move(world, "n1", "n2", "n2", purpose=Purpose.DEAD)
    assert "no other nodes" in move(world, "n1", "n2", "n3", purpose=Purpose.DEAD)


def test_nothing_moves_below_or_without_a_quorum(world: World) -> None:
    world.observe("n2", NodeStatus.DEAD)
    world.do(commands.SetReplicationFactor(2))
    assert "only 1 of the 2 replicas after the move" in move(world, "n1", "n2", purpose=Purpose.SURPLUS)
    world.observe("n3", NodeStatus.DEAD)
    assert "only 1 of the 3 replicas before the move" in move(world, "n1", "n2", "n4", purpose=Purpose.DEAD)


def test_another_epoch_or_a_move_in_flight_refuses(world: World) -> None:
    world.observe("n3", NodeStatus.DEAD)
    assert "at epoch 1, not 2" in move(world, "n1", "n2", "n4", purpose=Purpose.DEAD, epoch=2)
    assert move(world, "n1", "n2", "n4", purpose=Purpose.DEAD) == ""
    assert "is moving already" in move(world, "n1", "n2", "n5", purpose=Purpose.DEAD)


def test_a_hand_over_needs_a_member_that_may_lead(world: World) -> None:
    def refused(node_id: str, epoch: int = 1) -> str:
        result = world.submit(commands.HandOver("shard-0", epoch, node_id, "shard-0 is handed over"))
        return result.message if isinstance(result, Rejection) else ""

    assert "cannot lead" in refused("n4")
    assert "has this leader" in refused("n1")
    assert "not 3" in refused("n2", epoch=3)
    world.observe("n2", NodeStatus.SUSPECT)
    assert "cannot lead" in refused("n2")
    assert refused("n3") == ""
    assert "has a wish already" in refused("n3")


def test_only_the_very_intent_is_given_up(world: World) -> None:
    world.observe("n3", NodeStatus.DEAD)
    assert move(world, "n1", "n2", "n4", purpose=Purpose.DEAD) == ""
    targets = tuple(target.replica_id for target in world.state.shards["shard-0"].targets)
    other = world.submit(commands.GiveUp("shard-0", targets[:2], "", "shard-0 stays"))
    assert isinstance(other, Rejection) and "another intent" in other.message
    assert isinstance(world.submit(commands.GiveUp("shard-0", targets, "", "shard-0 stays")), Applied)
    shard = world.state.shards["shard-0"]
    assert (shard.targets, shard.purpose) == ((), Purpose.NONE)


def test_a_move_that_had_just_committed_when_it_was_called_off_brings_its_node_back(world: World) -> None:
    world.do(commands.DrainNode("n3", True))
    assert move(world, "n1", "n2", "n5", purpose=Purpose.DRAIN) == ""
    (fresh,) = (target for target in world.state.shards["shard-0"].targets if target.node_id == "n5")
    world.do(commands.CancelMove("shard-0"))
    world.observe("n5", NodeStatus.DEAD)
    world.do(commands.RemoveNode("n5"))
    shard = world.state.shards["shard-0"]
    voters = (shard.members[0].replica_id, shard.members[1].replica_id, fresh.replica_id)
    report = commands.ShardReport("shard-0", shard.group_id, 2, 9, voters[0], voters, 9, False)
    world.do(commands.ReportShards("n1", (report,)))
    node = world.state.nodes["n5"]
    assert (node.status, node.draining) == (NodeStatus.DEAD, True)
    assert [member.node_id for member in world.state.shards["shard-0"].members] == ["n1", "n2", "n5"]
    world.converge(rounds_max=300)
    assert world.held()["n5"] == 0
    world.do(commands.RemoveNode("n5"))


def test_a_move_that_was_committed_as_it_was_given_up_gives_the_next_one_its_replicas(world: World) -> None:
    """Its news comes when another one has been asked for: no node is to have a second replica."""
    world.do(commands.SetReplicationFactor(5))
    assert move(world, "n1", "n2", "n3", "n4", "n5", purpose=Purpose.MISSING) == ""
    shard = world.state.shards["shard-0"]
    first = {target.node_id: target.replica_id for target in shard.targets}
    world.do(commands.GiveUp("shard-0", tuple(first.values()), "", "shard-0 is to wait"))
    world.join("n6")
    assert move(world, "n1", "n2", "n3", "n4", "n6", purpose=Purpose.MISSING) == ""
    voters = tuple(first.values())
    late = commands.ShardReport("shard-0", shard.group_id, 2, 9, first["n1"], voters, 7, moving=False)
    world.do(commands.ReportShards("n1", (late,)))
    shard = world.state.shards["shard-0"]
    assert {member.node_id for member in shard.members} == {"n1", "n2", "n3", "n4", "n5"}
    assert shard.member_on("n4") in shard.targets, "not the second one that the map had asked for"
    assert {target.node_id for target in shard.targets} == {"n1", "n2", "n3", "n4", "n6"}


def test_a_move_that_was_committed_as_it_was_given_up_and_asked_for_again_is_done(world: World) -> None:
    world.do(commands.SetReplicationFactor(4))
    assert move(world, "n1", "n2", "n3", "n4", purpose=Purpose.MISSING) == ""
    shard = world.state.shards["shard-0"]
    first = {target.node_id: target.replica_id for target in shard.targets}
    world.do(commands.GiveUp("shard-0", tuple(first.values()), "", "shard-0 is to wait"))
    assert move(world, "n1", "n2", "n3", "n4", purpose=Purpose.MISSING) == ""
    late = commands.ShardReport("shard-0", shard.group_id, 2, 9, first["n1"], tuple(first.values()), 7, moving=False)
    world.do(commands.ReportShards("n1", (late,)))
    assert not world.state.shards["shard-0"].moving


def test_the_state_is_in_the_order_in_which_a_member_that_restarts_reads_it() -> None:
    """Transitions go through it, and what they decide must be the same on every member."""
    world = World()
    for number in (10, 9, 2, 1):
        world.join(f"n{number}")
    world.create(12, 1)
    assert list(world.state.shards) == sorted(world.state.shards)
    assert list(world.state.nodes) == sorted(world.state.nodes)
