"""Orders that cannot be: each is refused with a sentence that names what is wrong, and the state is the very same."""

from __future__ import annotations

import pytest
from flotta_coordinator.core import commands
from flotta_coordinator.core.results import Applied, RejectCode, Rejection
from flotta_coordinator.core.state import NodeStatus
from planner_world import World

DRAINED = "n4"


@pytest.fixture
def world() -> World:
    """shard-0 on n1 n2 n3; n5 holds nothing, n4 is being drained, n6 was removed; operation 1 has ended."""
    made = World()
    for node_id in ("n1", "n2", "n3", "n4", "n5", "n6"):
        made.join(node_id)
    made.create(1, 3)
    made.do(commands.DrainNode("n6", True))
    made.do(commands.RemoveNode("n6"))
    made.round()
    made.do(commands.DrainNode(DRAINED, True))
    return made


NOT_FOUND, UNMET, BAD = RejectCode.NOT_FOUND, RejectCode.FAILED_PRECONDITION, RejectCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        # nodes that nobody knows, or not any more
        (commands.DrainNode("n9", True), NOT_FOUND, "no node is registered as 'n9'"),
        (commands.DrainNode("n6", True), NOT_FOUND, "no node is registered as 'n6'"),
        (commands.RemoveNode("n9"), NOT_FOUND, "no node is registered as 'n9'"),
        (commands.SetNodeStatus("n9", 3), NOT_FOUND, "no node is registered as 'n9'"),
        (commands.MoveReplica("shard-0", "n9", "n5"), NOT_FOUND, "from_node_id: no node"),
        (commands.MoveReplica("shard-0", "n1", "n9"), NOT_FOUND, "to_node_id: no node"),
        (commands.SetShardReplicas("shard-0", ("n1", "n6")), NOT_FOUND, "replicas: no node"),
        (commands.SetShardLeader("shard-0", 1, "n9"), NOT_FOUND, "leader_node_id: no node"),
        (commands.RegisterNode("n6", "h:1", ""), UNMET, "n6 was removed from this cluster"),
        # a node that is being drained takes nothing new
        (commands.MoveReplica("shard-0", "n1", DRAINED), UNMET, "n4 is being drained and takes nothing new"),
        (commands.SetShardReplicas("shard-0", ("n1", DRAINED)), UNMET, "n4 is being drained and takes nothing new"),
        # moves that are none
        (commands.MoveReplica("shard-0", "n1", "n2"), UNMET, "n2 already holds a replica of shard-0"),
        (commands.MoveReplica("shard-0", "n1", "n1"), UNMET, "n1 already holds a replica of shard-0"),
        (commands.MoveReplica("shard-0", "n5", "n1"), UNMET, "n5 holds no replica of shard-0"),
        (commands.MoveReplica("shard-9", "n1", "n5"), NOT_FOUND, "there is no shard 'shard-9'"),
        (commands.SetShardReplicas("shard-0", ("n1", "n1")), BAD, "n1 is there twice"),
        (commands.SetShardReplicas("shard-0", ()), BAD, "must name at least one node"),
        (commands.SetShardLeader("shard-0", 1, "n5"), UNMET, "n5 is not a replica of shard-0"),
        (commands.SetShardLeader("shard-0", 7, "n2"), UNMET, "at epoch 1, not 7"),
        (commands.CancelMove("shard-0"), UNMET, "is not moving, there is nothing to cancel"),
        # sizes that cannot be
        (commands.SetReplicationFactor(0), BAD, "replication_factor"),
        (commands.SetReplicationFactor(17), BAD, "replication_factor"),
        (commands.InitShards(2, 3), RejectCode.ALREADY_EXISTS, "already initialized"),
        # operations that are none
        (commands.CancelJob(99), NOT_FOUND, "there is no operation 99"),
        (commands.CancelJob(1), UNMET, "operation 1 has ended already"),
        (commands.RemoveNode("n1"), UNMET, "n1 still holds replicas of 1 shard; drain it first"),
        (commands.RemoveNode("n5"), UNMET, "n5 is ALIVE; drain it first, or stop it"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_no_trace(
    world: World, command: commands.Command, code: RejectCode, words: str
) -> None:
    before = world.state
    result = world.submit(command)
    assert isinstance(result, Rejection), result
    assert (result.code, words in result.message) == (code, True), result
    assert world.state is before


def test_a_leader_that_is_being_drained_is_not_asked_to_lead(world: World) -> None:
    world.do(commands.DrainNode("n2", True))
    before = world.state
    result = world.submit(commands.SetShardLeader("shard-0", 1, "n2"))
    assert isinstance(result, Rejection) and "n2 is being drained" in result.message
    assert world.state is before


def test_a_replication_factor_above_the_number_of_nodes_is_taken_and_says_what_was_done(world: World) -> None:
    result = world.submit(commands.SetReplicationFactor(5))
    assert isinstance(result, Applied)
    assert "only 4 nodes can take replicas, so shards get 4 until there are more" in result.reply.message
    again = world.submit(commands.SetReplicationFactor(5))
    assert isinstance(again, Applied) and not again.changed
    assert "is 5 already; only 4 nodes can take replicas" in again.reply.message


def test_ordering_a_drain_twice_is_one_operation_and_it_is_cancelled_once(world: World) -> None:
    first = world.submit(commands.DrainNode("n1", True))
    again = world.submit(commands.DrainNode("n1", True))
    assert isinstance(first, Applied) and isinstance(again, Applied)
    assert again.reply.job == first.reply.job and not again.changed
    world.do(commands.CancelJob(first.reply.job))
    before = world.state
    twice = world.submit(commands.CancelJob(first.reply.job))
    assert isinstance(twice, Rejection) and "has ended already: it is CANCELLED" in twice.message
    assert world.state is before


def test_a_dead_node_is_given_nothing(world: World) -> None:
    world.observe("n5", NodeStatus.DEAD)
    for command in (commands.MoveReplica("shard-0", "n1", "n5"), commands.SetShardReplicas("shard-0", ("n1", "n5"))):
        before = world.state
        result = world.submit(command)
        assert isinstance(result, Rejection) and "n5 is DEAD" in result.message
        assert world.state is before
