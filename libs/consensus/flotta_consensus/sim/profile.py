"""The conditions of one run, drawn from its seed.

Swarm testing: each seed switches a random part of the faults off and draws the strength of the rest, because a
fault that always fires hides what only happens without it. The defaults of every field are fair weather.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from flotta_consensus.sim.clock import stream
from flotta_consensus.sim.network import NetworkProfile, PartitionMode


@dataclass(frozen=True, slots=True)
class FaultProfile:
    """Mean times between faults of the whole cluster, in virtual milliseconds; 0: never."""

    crash_every_ms: int = 0
    crash_all_every_ms: int = 0
    failpoint_every_ms: int = 0
    pause_every_ms: int = 0
    pause_mean_ms: int = 2_000
    slow_every_ms: int = 0
    slow_mean_ms: int = 3_000
    slow_turn_ms: int = 40
    disk_full_every_ms: int = 0
    sync_failure_every_ms: int = 0
    clock_jump_every_ms: int = 0
    clock_jump_max_ms: int = 60_000
    transfer_every_ms: int = 0
    members_every_ms: int = 0
    down_mean_ms: int = 1_500
    down_max_ms: int = 10_000

    def enabled(self) -> list[str]:
        """The faults that this profile has, for a transcript's first line."""
        names = [name for name in self.__slots__ if name.endswith("_every_ms") and getattr(self, name)]
        return [name.removesuffix("_every_ms") for name in names]


@dataclass(frozen=True, slots=True)
class RaftProfile:
    """Timers and sizes of the hosts. Small segments, so that rotation and removal happen in a short run."""

    tick_ms: int = 50
    election_ticks: int = 10
    heartbeat_ticks: int = 2
    segment_bytes: int = 16 << 10
    message_bytes_max: int = 4 << 10
    inflight_messages_max: int = 16
    snapshot_timeout_ticks: int = 40
    compact_entries: int = 40  # compact a group's log once it holds more than this below the durable index
    flush_every_ms: int = 400
    apply_delay_ms: int = 0  # of the hosts of storage: how late followers may hear of a commit, and apply it
    in_step: bool = False  # the leaders of a host beat together

    def describe_delays(self) -> str:
        told = f"; commits told within {self.apply_delay_ms} ms" if self.apply_delay_ms else ""
        return told + ("; leaders in step" if self.in_step else "")


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything a seed decides before the first event."""

    seed: int
    nodes: int = 3
    groups: int = 2
    run_ms: int = 20_000
    network: NetworkProfile = field(default_factory=NetworkProfile)
    faults: FaultProfile = field(default_factory=FaultProfile)
    raft: RaftProfile = field(default_factory=RaftProfile)

    def describe(self) -> str:
        weather = self.network
        return (
            f"seed {self.seed}: {self.nodes} nodes, {self.groups} groups, {self.run_ms} ms, "
            f"faults {','.join(self.faults.enabled()) or 'none'}; loss {weather.loss:.3f} dup {weather.duplicate:.3f} "
            f"replay {weather.replay:.3f} reorder {weather.reorder} partition {weather.partition_mode.value}"
            f"/{'sym' if weather.partition_symmetric else 'asym'} clog {weather.clog:.4f}{self.raft.describe_delays()}"
        )


def _maybe(rng: random.Random, chance: float, low: int, high: int) -> int:
    """A figure in [low, high], or 0 with the probability 1 - chance. Draws the same number of values either way."""
    value = rng.randint(low, high)
    return value if rng.random() < chance else 0


def _maybe_rate(rng: random.Random, chance: float, high: float) -> float:
    value = rng.random() * high
    return value if rng.random() < chance else 0.0


def draw_network(rng: random.Random) -> NetworkProfile:
    """Weather between a quiet LAN and a very bad day."""
    mean_us = rng.choice((500, 1_000, 4_000, 15_000))
    return NetworkProfile(
        delay_min_us=mean_us // 4,
        delay_mean_us=mean_us,
        loss=_maybe_rate(rng, 0.6, 0.08),
        duplicate=_maybe_rate(rng, 0.5, 0.05),
        replay=_maybe_rate(rng, 0.5, 0.02),
        replay_delay_us=rng.randint(100_000, 5_000_000),
        reorder=rng.random() < 0.5,
        partition_mode=rng.choice(list(PartitionMode)),
        partition_symmetric=rng.random() < 0.6,
        partition=rng.choice((0.002, 0.005, 0.01)),
        heal=rng.choice((0.005, 0.01, 0.03)),
        partition_stability_us=rng.randint(100, 2_500) * 1_000,
        heal_stability_us=rng.randint(100, 2_000) * 1_000,
        clog=_maybe_rate(rng, 0.4, 0.01),
        clog_mean_us=rng.randint(50, 1_000) * 1_000,
        path_capacity=rng.choice((16, 64, 256)),
    )


def draw_faults(rng: random.Random) -> FaultProfile:
    """A random part of all faults, at random rates."""
    return FaultProfile(
        crash_every_ms=_maybe(rng, 0.8, 1_000, 6_000),
        crash_all_every_ms=_maybe(rng, 0.3, 4_000, 12_000),
        failpoint_every_ms=_maybe(rng, 0.7, 700, 4_000),
        pause_every_ms=_maybe(rng, 0.5, 1_500, 6_000),
        pause_mean_ms=rng.randint(300, 3_000),
        slow_every_ms=_maybe(rng, 0.3, 2_000, 6_000),
        slow_turn_ms=rng.randint(10, 120),
        disk_full_every_ms=_maybe(rng, 0.25, 3_000, 10_000),
        sync_failure_every_ms=_maybe(rng, 0.25, 3_000, 10_000),
        clock_jump_every_ms=_maybe(rng, 0.5, 1_000, 5_000),
        clock_jump_max_ms=rng.choice((500, 10_000, 600_000)),
        transfer_every_ms=_maybe(rng, 0.5, 700, 4_000),
        members_every_ms=_maybe(rng, 0.6, 700, 3_000),
        down_mean_ms=rng.randint(200, 3_000),
    )


def draw_raft(rng: random.Random) -> RaftProfile:
    return RaftProfile(
        tick_ms=rng.choice((20, 50, 100)),
        election_ticks=rng.choice((5, 10)),
        heartbeat_ticks=rng.choice((1, 2)),
        segment_bytes=rng.choice((4 << 10, 16 << 10, 64 << 10)),
        message_bytes_max=rng.choice((256, 1 << 10, 16 << 10)),
        inflight_messages_max=rng.choice((2, 16, 64)),
        snapshot_timeout_ticks=rng.choice((10, 40)),
        compact_entries=rng.choice((8, 40, 200)),
        flush_every_ms=rng.choice((50, 400, 1_500)),
    )


def draw_delays(raft: RaftProfile, seed: int, *, plain: bool) -> RaftProfile:
    """How late commits are told and applied, and whether leaders beat together. A seed that is `plain` has neither."""
    rng = stream(seed, "profile/delays")
    delay_ms, in_step = _maybe(rng, 0.7, 5, 50), rng.random() < 0.7
    return raft if plain else replace(raft, apply_delay_ms=delay_ms, in_step=in_step)


def draw_profile(seed: int, *, run_ms: int = 20_000, plain: bool = False) -> Profile:
    """The conditions of a seed; each part has its own stream, so one part can grow without changing the others."""
    shape = stream(seed, "profile/shape")
    return Profile(
        seed=seed,
        nodes=shape.choice((3, 3, 3, 4, 5)),
        groups=shape.choice((1, 2, 3)),
        run_ms=run_ms,
        network=draw_network(stream(seed, "profile/network")),
        faults=draw_faults(stream(seed, "profile/faults")),
        raft=draw_delays(draw_raft(stream(seed, "profile/raft")), seed, plain=plain),
    )
