"""The conditions of one run of the cluster simulation, drawn from its seed: sizes, weather, faults, times, events."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flotta_consensus.sim.clock import stream
from flotta_consensus.sim.network import NetworkProfile
from flotta_consensus.sim.profile import FaultProfile, RaftProfile, draw_delays, draw_faults, draw_network, draw_raft

EVENTS = (
    "move", "cancel", "drain", "undrain", "factor", "rebalance", "lead", "add", "decommission", "destroy",
    "cut_watch", "restart_gateway",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClusterProfile:
    """Everything a seed decides before the first event."""

    seed: int
    nodes: int
    spares: int
    gateways: int
    shards: int
    factor: int
    clients: int
    think_mean_ms: int
    run_ms: int
    event_every_ms: int
    events: tuple[str, ...]
    any_count: bool  # "reshard" asks for any number of shards, time and again; otherwise for a multiple, once
    catch_up_entries: int
    network: NetworkProfile
    faults: FaultProfile
    raft: RaftProfile

    def describe(self) -> str:
        weather = self.network
        return (
            f"seed {self.seed}: {self.nodes}+{self.spares} nodes, {self.shards} shards x {self.factor}, "
            f"{self.gateways} gateways, {self.clients} clients, {self.run_ms} ms, events {','.join(self.events)}, "
            f"faults {','.join(self.faults.enabled()) or 'none'}; loss {weather.loss:.3f} dup {weather.duplicate:.3f} "
            f"replay {weather.replay:.3f} reorder {weather.reorder} partition {weather.partition_mode.value}"
            f"/{'sym' if weather.partition_symmetric else 'asym'} clog {weather.clog:.4f}{self.raft.describe_delays()}"
        )


def draw_cluster(seed: int, *, run_ms: int = 18_000, plain: bool = False) -> ClusterProfile:
    """The conditions of a seed; each part has a stream of its own."""
    shape, times = stream(seed, "cluster/shape"), stream(seed, "cluster/times")
    faults = draw_faults(stream(seed, "cluster/faults"))
    divisions = ("reshard",) * stream(seed, "cluster/divisions").choice((0, 1, 3))
    any_count = stream(seed, "cluster/counts").random() < 0.2
    if any_count:
        divisions = ("reshard",) * 8
    # Twice as many processes as in the other simulator, so each fault may come half as often.
    faults = replace(
        faults,
        crash_every_ms=faults.crash_every_ms * 2,
        crash_all_every_ms=faults.crash_all_every_ms * 2,
        clock_jump_max_ms=min(faults.clock_jump_max_ms, 20_000),
        down_mean_ms=times.choice(
            (500, 2_000, 6_000)
        ),  # some nodes are DEAD for long enough to be replaced, and return
        down_max_ms=15_000,
        transfer_every_ms=0,
        members_every_ms=0,
    )
    return ClusterProfile(
        seed=seed,
        nodes=shape.choice((4, 4, 5, 6)),
        spares=2,
        gateways=shape.choice((1, 2)),
        shards=shape.choice((1, 2, 3, 4)),
        factor=shape.choice((3, 3, 3, 2, 1)),
        clients=shape.choice((3, 4, 6)),
        think_mean_ms=shape.choice((60, 120, 200)),
        run_ms=run_ms,
        event_every_ms=times.choice((700, 1_500, 3_000)),
        events=(*sorted(event for event in EVENTS if times.random() < 0.7), *divisions),
        any_count=any_count,
        catch_up_entries=times.choice((8, 256)),
        network=draw_network(stream(seed, "cluster/network")),
        faults=faults,
        raft=replace(
            draw_delays(draw_raft(stream(seed, "cluster/raft")), seed, plain=plain),
            tick_ms=times.choice((60, 100)),
            election_ticks=times.choice((5, 8)),
        ),
    )
