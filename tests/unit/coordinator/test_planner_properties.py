"""What must hold of the planner whatever happens to the cluster. The rules are in `planner_world.py`."""

from __future__ import annotations

import itertools

from flotta_coordinator.core import commands
from flotta_coordinator.core.planner import plan
from flotta_coordinator.core.state import NodeStatus, Purpose
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_world import POLICY, World

NODES = [f"n{number}" for number in range(1, 8)]
ZONES = ["a", "b", "c"]
node_ids = st.sampled_from(NODES)

events = st.one_of(
    st.tuples(st.just("dies"), node_ids),
    st.tuples(st.just("suspect"), node_ids),
    st.tuples(st.just("back"), node_ids),
    st.tuples(st.just("joins"), node_ids),
    st.tuples(st.just("drain"), node_ids),
    st.tuples(st.just("undrain"), node_ids),
    st.tuples(st.just("factor"), st.integers(1, 5)),
    st.tuples(st.just("wait"), st.integers(1_000, 40_000)),
    st.tuples(st.just("place"), st.tuples(st.integers(0, 9), st.lists(node_ids, min_size=1, max_size=4, unique=True))),
    st.tuples(st.just("lead"), st.tuples(st.integers(0, 9), node_ids)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("rebalance"), st.none()),
    st.tuples(st.just("remove"), node_ids),
    st.tuples(st.just("failover"), st.none()),
    st.tuples(st.just("broken"), node_ids),
)


def happen(world: World, event: tuple[str, object], zones: dict[str, str], broken: set[str]) -> None:
    """One event. What does not fit the moment is refused by the transitions, and so does not happen."""
    kind, what = event
    known = what in world.state.nodes if isinstance(what, str) else True
    if kind in ("dies", "suspect", "back") and known:
        status = {"dies": NodeStatus.DEAD, "suspect": NodeStatus.SUSPECT, "back": NodeStatus.ALIVE}[kind]
        world.observe(str(what), status)
    elif kind == "joins" and not known and what not in world.state.gone:
        world.join(str(what), zones[str(what)])
    elif kind == "drain" or kind == "undrain":
        world.submit(commands.DrainNode(str(what), kind == "drain"))
    elif kind == "factor":
        world.submit(commands.SetReplicationFactor(int(str(what))))
    elif kind == "wait":
        world.tick(int(str(what)))
    elif kind == "place" and isinstance(what, tuple):
        world.submit(commands.SetShardReplicas(f"shard-{what[0]}", tuple(what[1])))
    elif kind == "lead" and isinstance(what, tuple):
        shard = world.state.shards.get(f"shard-{what[0]}")
        world.submit(commands.SetShardLeader(f"shard-{what[0]}", shard.epoch if shard else 0, what[1]))
    elif kind == "cancel":
        world.submit(commands.CancelMove(f"shard-{what}"))
    elif kind == "rebalance":
        world.submit(commands.Rebalance())
    elif kind == "remove":
        world.submit(commands.RemoveNode(str(what)))
    elif kind == "failover":
        world.memory = type(world.memory)()
    elif kind == "broken":
        broken ^= {str(what)}


@settings(max_examples=250, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 10),
    st.integers(1, 4),
    st.lists(st.sampled_from(ZONES), min_size=len(NODES), max_size=len(NODES)),
    st.lists(st.tuples(events, st.integers(0, 8), st.integers(0, 2)), max_size=25),
)
def test_nothing_is_broken_on_the_way_and_all_is_well_in_the_end(
    nodes: int, shards: int, factor: int, zone_list: list[str], script: list[tuple[tuple[str, object], int, int]]
) -> None:
    world, zones, broken = World(), dict(zip(NODES, zone_list, strict=True)), set[str]()
    for node_id in NODES[:nodes]:
        world.join(node_id, zones[node_id])
    world.create(shards, factor)
    for event, rounds, luck in script:
        happen(world, event, zones, broken)
        for step in range(rounds):
            world.round()
            lucky = (step + luck) % 2 == 0
            world.progress(lambda shard_id, node_id, lucky=lucky: lucky and node_id not in broken)
            world.tick()
    for node in world.state.nodes.values():
        if node.status is NodeStatus.SUSPECT:  # nobody stays so
            world.observe(node.node_id, NodeStatus.DEAD)
    world.submit(commands.Rebalance())
    for shard_id in world.state.shards:  # what an operator asked for may be impossible; that is his
        world.submit(commands.CancelMove(shard_id))
    world.tick(200_000)
    world.converge(rounds_max=500)
    at_the_end(world)
    assert plan(world.view(), POLICY) == ()


def at_the_end(world: World) -> None:
    state, takers = world.state, set(world.takers())
    whole = True
    wanted = next(iter(state.tables.values())).replication_factor
    for shard in state.shards.values():
        names = {member.node_id for member in shard.members}
        if len(world.living(names)) <= len(names) // 2:
            whole = False
            assert any(key.startswith("quorum-lost/") for key in state.notes)
            continue
        spare = takers - names
        if not all(state.nodes[name].status is NodeStatus.ALIVE for name in names):
            whole = False
            assert not spare, f"{shard.shard_id} on {names} is not mended, though {spare} could take it"
            continue
        assert len(names) == wanted or (len(names) < wanted and not spare), (names, wanted, spare)
        draining = {name for name in names if state.nodes[name].draining}
        whole = whole and not draining
        assert not draining or not spare, f"{draining} not emptied, though {spare} could take {shard.shard_id}"
    if not whole or not takers:
        return
    check_zones(world, takers)
    if len({state.nodes[node_id].zone for node_id in takers}) == 1:
        held = [world.held()[node_id] for node_id in takers]
        assert max(held) - min(held) <= 1, world.held()
    leads = [world.leads()[node_id] for node_id in takers]
    assert max(leads) == least_most_leaders(world, sorted(takers)), world.leads()


def check_zones(world: World, takers: set[str]) -> None:
    for shard in world.state.shards.values():
        names = [member.node_id for member in shard.members]
        for leaving, coming in itertools.product(names, takers - set(names)):
            other = [coming if name == leaving else name for name in names]
            assert world.shared_zones(other) >= world.shared_zones(names), f"{names} could be spread better: {other}"


def least_most_leaders(world: World, takers: list[str]) -> int:
    """The smallest number of leaderships that the busiest node can have: a matching of shards to places on members."""
    shards = list(world.state.shards.values())
    for most in range(1, len(shards) + 1):
        places: dict[tuple[str, int], int] = {}

        def seat(number: int, seen: set[tuple[str, int]], most: int = most, places: dict = places) -> bool:
            for member in shards[number].members:
                for place in ((member.node_id, turn) for turn in range(most)):
                    if place in seen or member.node_id not in takers:
                        continue
                    seen.add(place)
                    if place not in places or seat(places[place], seen):
                        places[place] = number
                        return True
            return False

        if all(seat(number, set()) for number in range(len(shards))):
            return most
    return len(shards)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 30), st.integers(1, 4), st.integers(1, 3))
def test_adding_nodes_moves_no_more_than_needed(nodes: int, shards: int, factor: int, more: int) -> None:
    world = World()
    for number in range(nodes):
        world.join(f"m{number}")
    world.create(shards, min(factor, nodes))
    world.converge(rounds_max=400)
    before = world.held()
    world.moves.clear()
    for number in range(more):
        world.join(f"x{number}")
        world.run(rounds=2)
    world.converge(rounds_max=1_500)
    held = world.held()
    assert max(held.values()) - min(held.values()) <= 1
    floor, ceiling = min(held.values()), max(held.values())
    loads = [before[node_id] for node_id in held]
    needed = max(sum(max(0, load - ceiling) for load in loads), sum(max(0, floor - load) for load in loads))
    assert len(world.moves) == needed, f"{len(world.moves)} moves where {needed} would do: {loads} became {held}"


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 6), st.integers(1, 20), st.integers(0, 5))
def test_a_dead_node_is_replaced_once_and_only_what_it_held_moves(nodes: int, shards: int, victim: int) -> None:
    world = World()
    for number in range(nodes):
        world.join(f"m{number}")
    world.create(shards, 3)
    world.converge(rounds_max=400)
    gone = f"m{victim % nodes}"
    lost = world.held()[gone]
    world.moves.clear()
    world.observe(gone, NodeStatus.DEAD)
    world.converge(rounds_max=1_000)
    assert world.held()[gone] == 0
    replaced = [move for move in world.moves if move.purpose is Purpose.DEAD]
    assert len(replaced) == lost
    # Replacements go to the emptiest nodes, so there is next to nothing left to level.
    assert len(world.moves) - lost <= 1


@settings(max_examples=80, deadline=None)
@given(st.integers(4, 7), st.integers(1, 20), st.integers(1, 3), st.integers(1, 2))
def test_a_drained_node_is_left_by_its_leaderships_then_by_its_replicas(
    nodes: int, shards: int, factor: int, victims: int
) -> None:
    world = World()
    for number in range(nodes):
        world.join(f"m{number}")
    world.create(shards, factor)
    world.converge(rounds_max=400)
    gone = [f"m{number}" for number in range(min(victims, nodes - factor))]
    held = sum(world.held()[node_id] for node_id in gone)
    world.moves.clear()
    for node_id in gone:
        world.do(commands.DrainNode(node_id, True))

    def leaders_go_first(decided: tuple[commands.Command, ...]) -> None:
        for command in decided:
            if isinstance(command, commands.MoveShard) and command.purpose is Purpose.DRAIN and factor > 1:
                shard = world.state.shards[command.shard_id]
                assert shard.leader in command.nodes, "a replica left that still leads"

    world.converge(rounds_max=400, watch=leaders_go_first)
    assert all(world.held()[node_id] == 0 for node_id in gone), world.held()
    assert sum(move.purpose is Purpose.DRAIN for move in world.moves) == held
    assert len(world.moves) - held <= 2, "the rest was levelled for nothing"
    assert {f"node-drained/{node_id}" for node_id in gone} <= world.state.notes.keys()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_leaderships_are_levelled_by_no_more_hand_overs_than_needed(nodes: int, leaders: list[int]) -> None:
    world = World()
    names = [f"m{number}" for number in range(nodes)]
    for node_id in names:
        world.join(node_id)
    world.create(len(leaders), nodes)  # everybody holds everything, so every hand-over is possible
    for index, leader in enumerate(leaders):
        world.report(f"shard-{index}", leader=names[leader % nodes])
    before = world.leads()
    world.converge(rounds_max=400)
    after = world.leads()
    assert max(after.values()) - min(after.values()) <= 1
    floor, ceiling = min(after.values()), max(after.values())
    loads = before.values()
    needed = max(sum(max(0, load - ceiling) for load in loads), sum(max(0, floor - load) for load in loads))
    assert len(world.hand_overs) == needed


def test_no_decision_before_every_node_could_be_heard() -> None:
    world = World()
    for number in range(4):
        world.join(f"m{number}")
    world.create(4, 3)
    world.observe("m0", NodeStatus.DEAD)
    world.tick(1_000_000)
    view = world.memory.view(world.state, POLICY, now_ms=world.now_ms, wall_ms=world.now_ms, ready=False)
    assert plan(view, POLICY) == ()
    assert plan(world.view(), POLICY) != ()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 12), st.data())
def test_fewer_replicas_leave_every_node_its_share_at_once(nodes: int, shards: int, data: st.DataObject) -> None:
    """Whose replica goes is chosen so that hardly anything needs to be levelled afterwards."""
    world = World()
    for node_id in NODES[:nodes]:
        world.join(node_id)
    factor = data.draw(st.integers(2, nodes))
    world.create(shards, factor)
    world.tick(200_000)
    world.converge(rounds_max=200)
    before = len(world.moves)
    world.submit(commands.SetReplicationFactor(factor - 1))
    world.converge(rounds_max=200)
    made = world.moves[before:]
    assert [move.purpose for move in made].count(Purpose.SURPLUS) == shards
    assert max(world.held().values()) - min(world.held().values()) <= 1
    assert len(made) <= shards + 1, made
