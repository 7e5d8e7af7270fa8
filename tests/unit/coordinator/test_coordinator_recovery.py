"""A shard that lost its quorum for good: when it may be recovered, what is recorded, who is believed from then on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flotta_coordinator.core import codec, commands
from flotta_coordinator.core.explain import explain
from flotta_coordinator.core.results import Applied, Rejection
from flotta_coordinator.core.state import Heir, Job, JobStatus, NodeStatus, Shard
from planner_world import POLICY, World

LOST_AFTER_MS = 60_000


@pytest.fixture
def world() -> World:
    """shard-0 on n1 n2 n3 at epoch 1; n1 and n2 are DEAD for long enough."""
    made = World(policy=replace(POLICY, replace_after_ms=10**9))
    for node_id in ("n1", "n2", "n3", "n4"):
        made.join(node_id)
    made.create(1, 3)
    for node_id in ("n1", "n2"):
        made.observe(node_id, NodeStatus.DEAD)
    made.tick(LOST_AFTER_MS)
    return made


def order(world: World, node_id: str = "n3", **fields: object) -> commands.RecoverShard:
    shard = world.state.shards["shard-0"]
    member = shard.member_on(node_id)
    command = commands.RecoverShard(
        shard_id="shard-0",
        epoch=shard.epoch,
        node_id=node_id,
        replica_id=member.replica_id if member is not None else 77,
        last_index=120,
        seen_term=9,
        seen_epoch=1,
        lost_after_ms=LOST_AFTER_MS,
    )
    return replace(command, **fields)  # type: ignore[arg-type]


def refusal(world: World, command: commands.Command) -> str:
    before = world.state
    result = world.submit(command)
    assert isinstance(result, Rejection), result
    assert world.state is before
    return result.message


def recover(world: World, command: commands.RecoverShard | None = None) -> tuple[Heir, Job]:
    result = world.submit(command or order(world))
    assert isinstance(result, Applied), result
    heir = world.state.shards["shard-0"].heir
    assert heir is not None
    return heir, world.state.jobs[result.reply.job]


def report(
    shard: Shard, leader: int, voters: tuple[int, ...], epoch: int, term: int, conf: int
) -> commands.ShardReport:
    return commands.ShardReport("shard-0", shard.group_id, epoch, term, leader, voters, conf, False)


def taken_over(world: World, heir: Heir) -> None:
    said = report(
        world.state.shards["shard-0"], heir.replica_id, (heir.replica_id,), heir.epoch_min, heir.term_min + 2, 3
    )
    world.do(commands.ReportShards(heir.node_id, (said,)))


@pytest.mark.parametrize("status", [NodeStatus.ALIVE, NodeStatus.SUSPECT])
def test_it_is_refused_while_a_quorum_could_come_back(world: World, status: NodeStatus) -> None:
    world.observe("n2", NodeStatus.ALIVE)
    if status is NodeStatus.SUSPECT:
        world.observe("n2", NodeStatus.SUSPECT)
    assert f"n2 is {status.name}, n3 is ALIVE" in refusal(world, order(world))


def test_it_is_refused_while_a_node_is_dead_for_a_short_time_only(world: World) -> None:
    world.observe("n2", NodeStatus.ALIVE)
    world.observe("n2", NodeStatus.DEAD)
    world.tick(LOST_AFTER_MS - 1)
    assert "n2 is DEAD for less than 60 s" in refusal(world, order(world))
    world.tick(1)
    recover(world)


def test_a_wall_clock_that_jumped_makes_nobody_lost(world: World) -> None:
    """The leader's own clock says that n2 has been DEAD for a moment only."""
    assert "n2 is DEAD for less than 60 s" in refusal(world, order(world, unsure=("n2",)))
    recover(world, order(world, unsure=("n3", "n4")))


def test_what_does_not_fit_the_shard_is_refused(world: World) -> None:
    assert "no shard" in refusal(world, order(world, shard_id="shard-9"))
    assert "no node" in refusal(world, order(world, node_id="n9"))
    assert "n1 is DEAD" in refusal(world, order(world, "n1"))
    assert "at epoch 1 by now" in refusal(world, order(world, epoch=2))
    assert "is no replica of" in refusal(world, order(world, replica_id=4 << 32 | 1))
    assert "is no replica of" in refusal(world, order(world, replica_id=3 << 32 | 4_000))
    assert "is no replica of" in refusal(world, order(world, replica_id=3 << 32))
    assert "last_index" in refusal(world, order(world, last_index=0))


def test_a_shard_that_is_being_created_has_nothing_to_recover() -> None:
    world = World()
    world.join("n1")
    world.do(commands.InitShards(1, 1))
    world.observe("n1", NodeStatus.DEAD)
    assert "still being created" in refusal(world, order(world, "n1", lost_after_ms=0))


def test_the_heir_gets_an_id_and_figures_that_nobody_has_met(world: World) -> None:
    before = world.state
    heir, job = recover(world)
    shard = world.state.shards["shard-0"]
    survivor = shard.member_on("n3")
    assert survivor is not None
    assert (heir.node_id, heir.from_replica, heir.term_min, heir.epoch_min) == ("n3", survivor.replica_id, 9, 2)
    assert heir.replica_id & 0xFFFFFFFF == before.counters.replica_sequence == shard.replica_floor
    assert world.state.map_version == before.map_version + 1
    assert (job.kind.value, job.status, job.steps) == ("recover", JobStatus.RUNNING, 1)
    sentence = world.state.decisions[-1]
    assert sentence.kind == "shard-recovered"
    for words in ("n3 alone", "ends at index 120", "n1, n2 are lost", "acknowledged ones included"):
        assert words in sentence.reason


def test_rows_carry_it_and_rows_of_before_are_read(world: World) -> None:
    recover(world)
    shard = world.state.shards["shard-0"]
    assert codec.decode(Shard, codec.encode(shard)) == shard
    plain = codec.to_plain(replace(shard, heir=None, replica_floor=0))
    del plain["heir"], plain["replica_floor"]
    assert codec.from_plain(Shard, plain) == replace(shard, heir=None, replica_floor=0)


def test_ordering_it_twice_is_refused_until_the_heir_is_lost_too(world: World) -> None:
    world.do(commands.SetShardReplicas("shard-0", ("n1", "n2", "n3")))
    heir, job = recover(world)
    assert "being recovered already, from n3" in refusal(world, order(world))
    assert "cannot be called off" in refusal(world, commands.CancelJob(job.number))
    world.observe("n3", NodeStatus.DEAD)
    world.observe("n2", NodeStatus.ALIVE)
    world.tick(LOST_AFTER_MS)
    second, other = recover(world, order(world, "n2"))
    assert (second.epoch_min, second.replica_id > heir.replica_id or second.node_id != heir.node_id) == (3, True)
    assert world.state.jobs[job.number].status is JobStatus.FAILED
    assert world.state.jobs[other.number].status is JobStatus.RUNNING


def test_a_recovered_shard_with_a_living_heir_is_not_recovered_again(world: World) -> None:
    heir, _ = recover(world)
    taken_over(world, heir)
    assert "can still have them" in refusal(world, order(world))


def test_nothing_else_is_decided_before_the_heir_has_reported(world: World) -> None:
    recover(world)
    for command in (
        commands.SetShardReplicas("shard-0", ("n3", "n4")),
        commands.SetShardLeader("shard-0", 1, "n3"),
        commands.MoveReplica("shard-0", "n1", "n4"),
        commands.HandOver("shard-0", 1, "n3", "shard-0"),
    ):
        assert "being recovered from n3" in refusal(world, command)
    assert "term" in refusal(world, commands.ReportShardLeader("shard-0", 1, 50, "n3"))
    world.observe("n1", NodeStatus.ALIVE)
    world.observe("n2", NodeStatus.ALIVE)
    for _ in range(5):
        assert not [one for one in world.round() if isinstance(one, commands.MoveShard | commands.HandOver)]
        world.tick(10_000)


def test_the_heirs_report_makes_it_the_only_member_even_with_a_shorter_log(world: World) -> None:
    shard = world.state.shards["shard-0"]
    members = tuple(member.replica_id for member in shard.members)
    world.do(commands.ReportShards("n1", (report(shard, members[0], members, 1, 5, 400),)))
    assert world.state.shards["shard-0"].conf_index == 400
    heir, job = recover(world)
    taken_over(world, heir)
    shard = world.state.shards["shard-0"]
    assert [(one.node_id, one.replica_id) for one in shard.members] == [("n3", heir.replica_id)]
    assert (shard.leader, shard.epoch, shard.conf_index, shard.heir) == ("n3", heir.epoch_min, 3, None)
    world.round()
    ended = world.state.jobs[job.number]
    assert ended.status is JobStatus.DONE and "serves again, led by n3 at epoch 2" in ended.outcome
    world.converge(100)
    assert {member.node_id for member in world.state.shards["shard-0"].members} == {"n3", "n4"}
    world.observe("n1", NodeStatus.ALIVE)
    world.converge(100)
    assert len(world.state.shards["shard-0"].members) == 3


def test_those_that_were_given_up_are_never_believed_again(world: World) -> None:
    old = world.state.shards["shard-0"]
    members = tuple(member.replica_id for member in old.members)
    heir, _ = recover(world)

    def claim() -> None:
        before = world.state.shards["shard-0"]
        for epoch, term in ((1, 99), (2, 99), (50, 99)):
            world.do(commands.ReportShards("n1", (report(old, members[0], members, epoch, term, 900),)))
            mixed = (members[0], members[1], heir.replica_id)
            world.do(commands.ReportShards("n1", (report(old, members[0], mixed, epoch, term, 900),)))
        assert world.state.shards["shard-0"] == before

    claim()
    taken_over(world, heir)
    claim()
    world.observe("n1", NodeStatus.ALIVE)
    world.do(commands.MoveReplica("shard-0", "n3", "n1"))
    claim()


def test_an_heir_that_is_not_above_all_that_was_seen_is_not_believed(world: World) -> None:
    heir, _ = recover(world)
    shard = world.state.shards["shard-0"]
    alone = (heir.replica_id,)
    for epoch, term in ((heir.epoch_min - 1, 50), (heir.epoch_min, heir.term_min)):
        world.do(commands.ReportShards("n3", (report(shard, heir.replica_id, alone, epoch, term, 3),)))
    assert world.state.shards["shard-0"] == shard


def test_it_is_explained(world: World) -> None:
    told = explain(world.view(), world.policy, "shard-0", "", None)
    assert told.health == "QUORUM_LOST"
    assert any("flotta recover --unsafe shard-0" in sentence for sentence in told.next)
    heir, _ = recover(world)
    told = explain(world.view(), world.policy, "shard-0", "", None)
    assert any("the replica on n3 is to go on alone" in sentence for sentence in told.now)
    assert any("once n3 has gone on" in sentence for sentence in told.next)
    taken_over(world, heir)
    assert explain(world.view(), world.policy, "shard-0", "", None).health == "TOO_FEW"


def test_a_shard_that_is_dividing_is_left_to_its_rows() -> None:
    world = World(policy=replace(POLICY, replace_after_ms=10**9))
    for node_id in ("n1", "n2", "n3"):
        world.join(node_id)
    world.create(1, 3)
    world.do(commands.SetShardCount("default", 2))
    for node_id in ("n1", "n2"):
        world.observe(node_id, NodeStatus.DEAD)
    world.tick(LOST_AFTER_MS)
    assert "shard-0 divides" in refusal(world, order(world))
