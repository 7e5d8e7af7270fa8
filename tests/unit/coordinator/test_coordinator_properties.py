"""What must hold of the coordinator's state whatever happens: random commands, checked after every one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from flotta_coordinator.core import commands
from flotta_coordinator.core.codec import decode, encode, to_plain
from flotta_coordinator.core.deltas import Change, History
from flotta_coordinator.core.placement import place, shared_zones
from flotta_coordinator.core.results import Applied, Rejection
from flotta_coordinator.core.state import ClusterState, JobStatus, Node, NodeStatus, Note, Purpose, Shard, Table
from flotta_coordinator.core.transitions import apply
from flotta_embedded.codec import encode_value
from hypothesis import given, settings
from hypothesis import strategies as st

NODES = [f"node-{number}" for number in range(1, 6)]
SHARDS = [f"shard-{number}" for number in (0, 1, 2, 4)]
node_ids = st.sampled_from([*NODES, "", "node-99", "bad id"])
shard_ids = st.sampled_from([*SHARDS, "", "shard-99"])
numbers = st.integers(min_value=-1, max_value=6)
replicas = st.builds(lambda node, sequence: node << 32 | sequence, st.integers(0, 6), st.integers(0, 12))

reports = st.builds(
    commands.ShardReport,
    shard_id=shard_ids,
    group_id=st.integers(0, 6),
    epoch=st.integers(0, 4),
    term=st.integers(0, 6),
    leader_replica=replicas,
    voters=st.lists(replicas, max_size=4, unique=True).map(tuple),
    conf_index=st.integers(0, 9),
    moving=st.booleans(),
    shard_count=st.sampled_from([0, 3, 6, 9, 7]),
    whole=st.booleans(),
)
observations = st.builds(commands.NodeObservation, node_ids, st.sampled_from([1, 2, 3]), st.just(3000), st.just(3000))
kinds = st.sampled_from(["a", "b"])
any_command = st.one_of(
    st.builds(commands.FoundCluster, st.sampled_from(["c1", "c2", ""])),
    st.builds(commands.RegisterNode, node_ids, st.sampled_from(["h:1", "h:2", "h"]), st.sampled_from(["", "a"])),
    st.builds(
        commands.HelloNode,
        node_ids,
        st.sampled_from(["h:1", "h:2", ""]),
        st.just(""),
        st.sampled_from(["s1", "s2", "s3", "s4", "s5", ""]),
        st.sampled_from(["", "c1", "c2"]),
    ),
    st.builds(commands.ObserveNodes, st.lists(observations, max_size=3).map(tuple)),
    st.builds(commands.InitShards, numbers, numbers),
    st.builds(commands.SetNodeStatus, node_ids, st.integers(0, 4)),
    st.builds(commands.SetShardReplicas, shard_ids, st.lists(node_ids, max_size=4).map(tuple)),
    st.builds(commands.SetShardLeader, shard_ids, numbers, node_ids),
    st.builds(commands.ReportShards, node_ids, st.lists(reports, max_size=3).map(tuple)),
    st.builds(commands.ReportShardLeader, shard_ids, numbers, numbers, node_ids),
    st.builds(commands.DrainNode, node_ids, st.booleans()),
    st.builds(commands.RemoveNode, node_ids),
    st.builds(commands.SetReplicationFactor, numbers),
    st.builds(commands.SetShardCount, st.sampled_from(["default", "other", ""]), st.sampled_from([-1, 3, 6, 7, 9])),
    st.builds(commands.Rebalance),
    st.builds(commands.MoveReplica, shard_ids, node_ids, node_ids),
    st.builds(commands.CancelMove, shard_ids),
    st.builds(
        commands.MoveShard,
        shard_ids,
        numbers,
        st.lists(node_ids, max_size=4).map(tuple),
        st.sampled_from(Purpose),
        st.just("because"),
    ),
    st.builds(commands.HandOver, shard_ids, numbers, node_ids, st.just("because")),
    st.builds(commands.CancelJob, st.integers(0, 4)),
    st.builds(commands.EndJob, st.integers(0, 4), st.sampled_from(JobStatus), st.just("so it ended")),
    st.builds(commands.GiveUp, shard_ids, st.lists(replicas, max_size=3).map(tuple), node_ids, st.just("because")),
    st.builds(
        commands.SetNotes,
        st.lists(st.builds(commands.Standing, kinds, kinds, kinds), max_size=2).map(tuple),
        st.lists(st.builds("{}/{}".format, kinds, kinds), max_size=2).map(tuple),
    ),
)


def ready_cluster() -> ClusterState:
    """Four nodes that took part, three shards on them, each led by its first member."""
    setup: list[commands.Command] = [commands.FoundCluster("c1")]
    setup += [commands.HelloNode(name, f"{name}:1", "", f"s{name}", "") for name in NODES[:4]]
    setup.append(commands.ObserveNodes(tuple(commands.NodeObservation(name, 1, 0, 0) for name in NODES[:4])))
    setup.append(commands.InitShards(3, 3))
    state = ClusterState()
    for command in setup:
        result = apply(state, command, 5)
        assert isinstance(result, Applied)
        state = result.state
    for shard in state.shards.values():
        voters = tuple(member.replica_id for member in shard.members)
        report = commands.ShardReport(shard.shard_id, shard.group_id, 1, 1, voters[0], voters, 1, False)
        result = apply(state, commands.ReportShards(shard.members[0].node_id, (report,)), 5)
        assert isinstance(result, Applied)
        state = result.state
    return state


READY = ready_cluster()


def replica_ids(state: ClusterState) -> set[int]:
    return {replica.replica_id for shard in state.shards.values() for replica in (*shard.birth, *shard.targets)}


def check_step(before: ClusterState, result: Applied, command: commands.Command) -> None:
    after = result.state
    assert result.changed == (after is not before)
    assert after.map_version == before.map_version + (1 if result.visible else 0)
    assert result.reply.map_version == after.map_version
    assert after.sequence == before.sequence + (1 if result.changed else 0)
    for name in ("node_num", "group_id", "replica_sequence", "decision"):
        assert getattr(after.counters, name) >= getattr(before.counters, name)
    both = after.nodes.keys() | before.nodes.keys()
    assert {name for name in both if after.nodes.get(name) != before.nodes.get(name)} == set(result.nodes)
    assert {key for key in before.notes.keys() | after.notes if before.notes.get(key) != after.notes.get(key)} == set(
        result.notes
    )
    assert {key for key in before.jobs.keys() | after.jobs if before.jobs.get(key) != after.jobs.get(key)} == set(
        result.jobs
    )
    assert all(after.jobs[number].status is job.status for number, job in before.jobs.items() if job.ended_ms)
    assert not after.gone.keys() & after.nodes.keys()
    assert after.gone.keys() >= before.gone.keys() - set(result.nodes)
    assert {name for name in after.shards if after.shards[name] != before.shards.get(name)} == set(result.shards)
    for name, shard in before.shards.items():
        now = after.shards[name]
        assert now.birth == shard.birth
        assert now.group_id == shard.group_id
        ranks = [(item.epoch, item.leader_term, item.conf_index) for item in (shard, now)]
        assert ranks[1] >= ranks[0]
        assert not (shard.phase == 2 and now.phase != 2)
        assert now.shard_count >= shard.shard_count and now.shard_index == shard.shard_index
        assert now.parent in (shard.parent, "")
    if after.partitioning is not None:
        for residue in range(2 * max(shard.shard_count for shard in after.shards.values())):
            home = after.home_of(residue)
            assert residue % home.shard_count == home.shard_index, "a key without a shard that owns it"
    fresh = replica_ids(after) - replica_ids(before)
    assert all(replica & 0xFFFFFFFF >= before.counters.replica_sequence for replica in fresh), "an id was used twice"
    # Whatever a node was bound to stays bound.
    for name, node in before.nodes.items():
        now_node = after.nodes.get(name) or after.gone[name]
        assert node.node_num in (0, now_node.node_num)
        assert node.store_id in ("", now_node.store_id)
    # A repeat of an operator's command has nothing to log.
    if not isinstance(command, commands.ObserveNodes | commands.ReportShardLeader | commands.MoveReplica):
        again = apply(after, command, 9)
        assert isinstance(again, Rejection) or not again.changed or isinstance(command, commands.ReportShards)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([ClusterState(), READY]), st.lists(any_command, max_size=25))
def test_every_step_keeps_the_invariants(start: ClusterState, script: list[commands.Command]) -> None:
    state = start
    snapshot = encode_state(state)
    for step, command in enumerate(script):
        result = apply(state, command, 100 + step)
        # Deterministic, and the state that went in is untouched.
        assert apply(state, command, 100 + step) == result
        assert encode_state(state) == snapshot
        if isinstance(result, Rejection):
            assert result.field and result.message.startswith(
                ("the data directory", *NODES, "no", "only", result.field)
            )
            continue
        check_step(state, result, command)
        state = result.state
        snapshot = encode_state(state)


def encode_state(state: ClusterState) -> list[bytes]:
    groups = (state.nodes, state.shards, state.tables, state.notes, state.jobs, state.gone)
    rows = [encode(row) for group in groups for row in group.values()]
    return [*rows, encode(state.counters), str((state.map_version, state.sequence, state.decisions)).encode()]


@given(st.lists(any_command, max_size=5))
def test_commands_survive_the_log(script: list[commands.Command]) -> None:
    assert commands.decode_batch(commands.encode_batch(script)) == script


def test_records_survive_a_row() -> None:
    notes = {"a/b": Note("a", "b", "so it is.", 7)}
    for kind, records in ((Node, READY.nodes), (Shard, READY.shards), (Table, READY.tables), (Note, notes)):
        for record in records.values():
            assert decode(kind, encode(record)) == record


def test_records_of_before_a_field_was_added_are_read() -> None:
    shard, node = READY.shards["shard-0"], READY.nodes["node-1"]
    added = ("purpose", "replicas_pinned", "leader_pinned", "cancelled_ms", "parent", "sequence", "birth_shard_count")
    old = {name: value for name, value in to_plain(shard).items() if name not in added}
    assert decode(Shard, encode_value(old)) == replace(shard, birth_shard_count=0)
    old = {name: value for name, value in to_plain(node).items() if name not in ("draining", "returns_ms")}
    assert decode(Node, encode_value(old)) == node


ids = st.lists(st.sampled_from(["a", "b", "c"]), max_size=2, unique=True).map(lambda found: tuple(sorted(found)))


@given(st.lists(st.tuples(ids, ids, st.booleans()), max_size=30), st.integers(1, 8), st.integers(-1, 40))
def test_a_delta_holds_exactly_what_changed(
    steps: list[tuple[tuple[str, ...], tuple[str, ...], bool]], changes_max: int, version: int
) -> None:
    history = History(0, changes_max=changes_max)
    for number, (nodes, shards, partitioning) in enumerate(steps, start=1):
        history.record(Change(number, nodes, shards, partitioning))
    delta = history.since(version)
    if not max(0, len(steps) - changes_max) <= version <= len(steps):
        assert delta is None
        return
    assert delta is not None
    assert (delta.previous, delta.version) == (version, len(steps))
    later = steps[version:]
    assert set(delta.nodes) == {name for nodes, _, _ in later for name in nodes}
    assert set(delta.shards) == {name for _, shards, _ in later for name in shards}
    assert delta.partitioning == any(partitioning for _, _, partitioning in later)


@given(st.integers(1, 9), st.integers(1, 60), st.integers(1, 9), st.booleans())
def test_placement_is_even_and_distinct(
    node_count: int, num_shards: int, replication_factor: int, zone_each: bool
) -> None:
    """KvDB's round robin, whether the nodes share one zone or have one each."""
    names = sorted(f"n{number}" for number in range(node_count))
    zones = {name: f"zone of {name}" if zone_each else "local" for name in names}
    placed = place(names, num_shards, replication_factor, zones)
    copies = min(replication_factor, node_count)
    ring = [*names, *names]
    assert placed == [tuple(ring[shard % node_count :][:copies]) for shard in range(num_shards)]


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9), st.integers(1, 60), st.integers(1, 9))
def test_placement_uses_as_many_zones_as_there_are(where: list[str], num_shards: int, replication_factor: int) -> None:
    zones = {f"n{number}": zone for number, zone in enumerate(where)}
    sizes = Counter(where)
    placed = place(sorted(zones), num_shards, replication_factor, zones)
    assert len(placed) == num_shards
    for chosen in placed:
        assert len(set(chosen)) == len(chosen) == min(replication_factor, len(where))
        used = Counter(zones[node_id] for node_id in chosen)
        # A zone has as many as any other, or one less, unless all of its nodes have a replica.
        assert all(used[zone] >= max(used.values()) - 1 or used[zone] == size for zone, size in sizes.items()), placed
    held = Counter(node_id for chosen in placed for node_id in chosen)
    for zone in sizes if shared_zones(where) else ():  # KvDB's round robin is even over many shards only
        shares = [held[node_id] for node_id in zones if zones[node_id] == zone]
        assert max(shares) - min(shares) <= 1, (zone, held)


def test_a_rejected_command_leaves_the_very_same_state() -> None:
    result = apply(READY, commands.SetShardLeader("shard-0", 7, "node-1"), 1)
    assert isinstance(result, Rejection)
    assert READY.nodes["node-1"].status is NodeStatus.ALIVE
