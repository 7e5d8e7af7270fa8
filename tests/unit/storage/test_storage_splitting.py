"""What the leader of a shard does about its division, round by round, over a host that is only remembered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from flotta_consensus.api import Committed, Members, Outcome, Rejected, RejectReason, RoleChange, replica_id
from flotta_embedded.codec import decode_command
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_runtime.clock import ManualClock
from flotta_storage.core import keys, splits
from flotta_storage.core.moves import LeaderView
from flotta_storage.map_model import MapModel
from flotta_storage.replica_table import Replica, ReplicaTable
from flotta_storage.splitting import CAMPAIGN_PAUSE_MS, TURN_MS, Splitting
from storage_support import ShardModel

VOTERS = (replica_id(1, 1), replica_id(2, 2), replica_id(3, 3))
COUNT = 2  # shards before


class Host:
    """Commits what is proposed to a model of the shard, unless it is told to refuse."""

    def __init__(self) -> None:
        self.shards: dict[int, ShardModel] = {}
        self.roles: dict[int, RoleChange] = {}
        self.campaigns: list[int] = []
        self.proposed: list[str] = []
        self.refuses = False

    async def propose(self, group: int, payload: bytes, timeout_ms: int) -> Outcome:
        wire = decode_command(payload)
        self.proposed.append(f"{wire.wire.decode()} {group}")
        if self.refuses:
            return Rejected(RejectReason.NOT_LEADER)
        shard = self.shards[group]
        apply = splits.apply_splits if wire.wire.startswith(b"kv.split") else splits.apply_prunes
        return Committed(shard.index, 1, shard._run(apply, [wire.args], 0)[0])

    def role(self, group: int) -> RoleChange | None:
        return self.roles.get(group)

    def campaign(self, group: int) -> None:
        self.campaigns.append(group)


class Cluster:
    """Two shards that are led here, on the voters of three nodes, and the map."""

    def __init__(self) -> None:
        self.host, self.model, self.clock = Host(), MapModel(), ManualClock(monotonic_ms=10_000)
        self.replicas = ReplicaTable()
        self.terms: dict[int, int] = {}
        self.members: dict[int, Members] = {}
        self.matched: dict[int, int] = {}
        self.news = 0
        self.state = pb.ClusterState(map_version=0, cluster_id="c")
        self.state.partitioning.num_shards = COUNT
        for index in range(COUNT):
            self.shard(index, COUNT, pb.ShardDetail.ACTIVE)
            self.serve(index, ShardModel(index, COUNT))
        self.publish()
        self.splitting = Splitting(
            self.host, self.replicas, self.model, self.clock, lambda: 5, self.leader_view, self.told
        )

    def told(self) -> None:
        self.news += 1

    def shard(self, index: int, count: int, phase: Any, **fields: Any) -> None:
        detail = pb.ShardDetail(group_id=10 + index, table="default", shard_index=index, shard_count=count, phase=phase)
        for name, value in fields.items():
            setattr(detail, name, value)
        record = pb.ShardRecord(shard_id=f"shard-{index}", epoch=1, detail=detail)
        self.state.shards[record.shard_id].CopyFrom(record)

    def publish(self) -> None:
        self.state.map_version += 1
        self.model.take_state(self.state)

    def order(self, count: int, phase: Any = pb.ShardDetail.AWAITED, parent: bool = True) -> None:
        for index in range(COUNT, count):
            of = f"shard-{index % COUNT}" if parent else ""
            self.shard(index, count, phase, parent=of, sequence=40 + index)
        self.publish()

    def serve(self, index: int, shard: ShardModel) -> None:
        group = 10 + index
        self.host.shards[group] = shard
        self.host.roles[group] = RoleChange(group, True, 3, VOTERS[0])
        self.terms[group], self.members[group] = 3, Members(VOTERS)
        machine = SimpleNamespace(
            kept_row=shard.rows.get, members=lambda: self.members[group], applied_term=lambda: self.terms[group]
        )
        self.replicas.add(Replica(f"shard-{index}", group, VOTERS[0], machine))  # type: ignore[arg-type]

    def replica(self, index: int) -> Replica:
        found = self.replicas.of_group(10 + index)
        assert found is not None
        return found

    async def leader_view(self, replica: Replica) -> LeaderView | None:
        return LeaderView(replica.group, VOTERS[0], self.members[replica.group], 5, self.matched)

    async def round(self) -> None:
        for replica in self.replicas:
            if self.splitting.is_due(replica):
                await self.splitting.work(replica)

    def born(self, index: int) -> None:
        group = 10 + index
        self.host.roles[group] = RoleChange(group, False, 1, VOTERS[1])


async def test_nothing_is_due_in_a_shard_that_is_as_the_map_has_it() -> None:
    cluster = Cluster()
    assert not any(cluster.splitting.is_due(cluster.replica(index)) for index in range(COUNT))
    assert not cluster.splitting.holds_members(cluster.replica(0))


async def test_shards_divide_one_after_the_other_as_their_children_are_led() -> None:
    cluster = Cluster()
    cluster.order(6)
    for _ in range(3):
        await cluster.round()
    assert cluster.host.proposed == ["kv.split@1 10"]
    division = cluster.replica(0).division()
    assert division is not None and [child.group for child in division.children] == [12, 14]
    assert [child.sequence for child in division.children] == [42, 44]
    assert division.voters == VOTERS and cluster.news == 1
    cluster.born(2)
    await cluster.round()
    assert len(cluster.host.proposed) == 1
    cluster.born(4)
    await cluster.round()
    assert cluster.host.proposed == ["kv.split@1 10", "kv.split@1 11"]


async def test_a_shard_that_gets_nowhere_holds_the_others_up_for_a_while_only() -> None:
    cluster = Cluster()
    cluster.order(4)
    await cluster.round()
    cluster.clock.advance(TURN_MS - 1)
    await cluster.round()
    assert cluster.host.proposed == ["kv.split@1 10"]
    cluster.clock.advance(1)
    await cluster.round()
    assert cluster.host.proposed == ["kv.split@1 10", "kv.split@1 11"]


async def test_another_leader_may_divide_the_first_one_and_this_node_goes_on() -> None:
    cluster = Cluster()
    cluster.order(4)
    cluster.host.refuses = True
    await cluster.round()
    await cluster.round()
    assert cluster.host.proposed == ["kv.split@1 10"] * 2, "tried again in its own turn"
    cluster.host.roles[10] = RoleChange(10, False, 4, VOTERS[1])
    await cluster.splitting.work(cluster.replica(1))
    assert cluster.host.proposed[-1] == "kv.split@1 11"


async def test_voters_are_held_from_the_order_to_the_end_and_in_a_term_without_an_entry_of_its_own() -> None:
    cluster = Cluster()
    replica = cluster.replica(0)
    cluster.terms[10] = 2
    assert cluster.splitting.holds_members(replica)
    cluster.order(4)
    await cluster.round()
    assert "kv.split@1 10" not in cluster.host.proposed
    cluster.terms[10] = 3
    assert cluster.splitting.holds_members(replica)
    cluster.members[10] = Members(VOTERS, outgoing=VOTERS[:2])
    await cluster.splitting.work(replica)
    assert replica.division() is None, "not inside a joint configuration"
    cluster.members[10] = Members(VOTERS)
    for index in (2, 3):
        cluster.born(index)
    await cluster.round()
    await cluster.round()
    assert replica.division() is not None
    cluster.order(4, pb.ShardDetail.ACTIVE)
    assert cluster.splitting.holds_members(replica), "a child is led, and not whole"
    cluster.order(4, pb.ShardDetail.ACTIVE, parent=False)
    await cluster.round()
    assert replica.division() is None
    assert cluster.host.proposed.count("kv.prune@1 10") == 1
    assert not cluster.splitting.holds_members(replica)


async def test_a_child_that_the_map_does_not_show_is_not_whole() -> None:
    cluster = Cluster()
    cluster.order(4)
    await cluster.round()
    del cluster.state.shards["shard-2"]
    cluster.publish()
    await cluster.round()
    assert not [one for one in cluster.host.proposed if one.startswith("kv.prune")]


async def test_a_child_that_was_taken_over_since_is_whole() -> None:
    """The map may have it no more before the leader of its parent looks."""
    cluster = Cluster()
    cluster.order(6)
    await cluster.round()
    for name in ("shard-2", "shard-4"):
        cluster.state.shards[name].detail.phase = pb.ShardDetail.ACTIVE
        cluster.state.shards[name].detail.parent = ""
    del cluster.state.shards["shard-4"]
    cluster.publish()
    await cluster.round()
    assert "kv.prune@1 10" not in cluster.host.proposed
    cluster.state.shards["shard-1"].detail.absorbed.append(14)
    cluster.publish()
    await cluster.round()
    assert "kv.prune@1 10" in cluster.host.proposed


async def test_a_child_without_a_leader_is_stood_for_now_and_then() -> None:
    cluster = Cluster()
    cluster.order(4)
    await cluster.round()
    await cluster.round()
    assert cluster.host.campaigns == [], "there is no replica of it here yet"
    cluster.host.roles[12] = RoleChange(12, False, 1, 0)
    for _ in range(3):
        await cluster.round()
    assert cluster.host.campaigns == [12]
    cluster.clock.advance(CAMPAIGN_PAUSE_MS)
    await cluster.round()
    assert cluster.host.campaigns == [12, 12]
    cluster.born(2)
    cluster.clock.advance(CAMPAIGN_PAUSE_MS)
    await cluster.round()
    assert cluster.host.campaigns == [12, 12]


async def test_a_child_is_whole_when_each_voter_has_been_heard_from() -> None:
    cluster = Cluster()
    cluster.order(4, pb.ShardDetail.ACTIVE)
    cluster.serve(2, ShardModel(2, 4))
    await cluster.round()
    cluster.matched = {VOTERS[1]: 4, VOTERS[2]: 0}
    await cluster.round()
    assert not cluster.splitting.whole(12)
    cluster.matched = {VOTERS[1]: 4, VOTERS[2]: 2}
    cluster.members[12] = Members(VOTERS, outgoing=VOTERS)
    await cluster.round()
    assert not cluster.splitting.whole(12)
    cluster.members[12] = Members(VOTERS)
    news = cluster.news
    await cluster.round()
    assert cluster.splitting.whole(12) and cluster.news == news + 1
    assert keys.DIVISION_KEY not in cluster.host.shards[12].rows
