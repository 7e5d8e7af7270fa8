"""The virtual clock and network: order, loss, partitions, replays, and that one seed gives one run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flotta_consensus.sim.clock import Scheduler, stream
from flotta_consensus.sim.network import Network, NetworkProfile, PartitionMode
from flotta_consensus.sim.profile import draw_profile
from flotta_consensus.sim.transcript import Transcript

FAIR = NetworkProfile(delay_min_us=100, delay_mean_us=1_000)


class Wire:
    """A network of three with a log of what arrived where."""

    def __init__(self, profile: NetworkProfile, seed: int = 1) -> None:
        self.scheduler = Scheduler()
        self.transcript = Transcript(self.scheduler)
        self.network = Network(self.scheduler, self.transcript, stream(seed, "net"), [1, 2, 3], profile)
        self.arrived: list[tuple[int, int, int]] = []

    def send(self, source: int, target: int, number: int) -> None:
        self.network.send(source, target, lambda: self.arrived.append((self.scheduler.now_us, target, number)))


def test_events_run_in_time_and_arrival_order() -> None:
    scheduler, ran = Scheduler(), list[str]()
    scheduler.at(20, lambda: ran.append("c"))
    scheduler.at(10, lambda: ran.append("a"))
    scheduler.at(10, lambda: ran.append("b"))
    scheduler.at(15, lambda: ran.append("never")).cancel()
    scheduler.at(10, lambda: late(scheduler, ran))
    scheduler.run_until(30)
    assert ran == ["a", "b", "late, so now", "c"]
    assert scheduler.now_us == 30


def late(scheduler: Scheduler, ran: list[str]) -> None:
    scheduler.at(5, lambda: ran.append("late, so now"))


def test_periodic_events() -> None:
    scheduler, times = Scheduler(), list[int]()
    scheduler.every(10, lambda: times.append(scheduler.now_us))
    scheduler.run_until(35)
    assert times == [10, 20, 30]
    with pytest.raises(ValueError, match="period_us 0"):
        scheduler.every(0, lambda: None)


def test_a_link_keeps_its_order_unless_told_otherwise() -> None:
    for reorder in (False, True):
        wire = Wire(replace(FAIR, reorder=reorder))
        for number in range(200):
            wire.send(1, 2, number)
        wire.scheduler.run_until(1_000_000)
        numbers = [number for _, _, number in wire.arrived]
        assert sorted(numbers) == list(range(200))
        assert (numbers == sorted(numbers)) is not reorder


def test_loss_duplicates_and_replays() -> None:
    wire = Wire(replace(FAIR, loss=0.2, duplicate=0.2, replay=0.2, path_capacity=10_000))
    for number in range(1_000):
        wire.send(1, 2, number)
    wire.scheduler.run_until(10_000_000)
    counts = wire.transcript.counts
    assert counts["packets_lost"] > 100
    assert counts["packets_duplicated"] > 100
    assert counts["packets_replayed"] > 100
    assert (
        len(wire.arrived) == 1_000 - counts["packets_lost"] + counts["packets_duplicated"] + counts["packets_replayed"]
    )


def test_a_full_path_drops() -> None:
    wire = Wire(replace(FAIR, path_capacity=5))
    for number in range(8):
        wire.send(1, 2, number)
    wire.scheduler.run_until(1_000_000)
    assert len(wire.arrived) == 5
    wire.send(1, 2, 9)
    wire.scheduler.run_until(2_000_000)
    assert len(wire.arrived) == 6


def test_partitions_cut_by_direction_and_heal() -> None:
    wire = Wire(FAIR)
    wire.send(1, 2, 0)
    wire.network.split([1], symmetric=False)
    wire.send(1, 2, 1)
    wire.send(2, 1, 2)
    wire.send(2, 3, 3)
    wire.scheduler.run_until(1_000_000)
    # Packet 0 was under way when the cut came.
    assert sorted(number for _, _, number in wire.arrived) == [2, 3]
    wire.network.split([1])
    wire.send(2, 1, 4)
    wire.network.heal()
    wire.send(2, 1, 5)
    wire.scheduler.run_until(2_000_000)
    assert sorted(number for _, _, number in wire.arrived) == [2, 3, 5]


def test_outsiders_are_never_cut_off() -> None:
    wire = Wire(FAIR)
    wire.network.split([1, 2])
    wire.send(1_000, 1, 1)
    wire.send(3, 1_000, 2)
    wire.scheduler.run_until(1_000_000)
    assert len(wire.arrived) == 2


@pytest.mark.parametrize("mode", [mode for mode in PartitionMode if mode is not PartitionMode.NONE])
def test_partitions_come_and_go_by_themselves(mode: PartitionMode) -> None:
    profile = replace(FAIR, partition_mode=mode, partition=0.05, heal=0.05, partition_stability_us=50_000)
    wire = Wire(profile)
    wire.scheduler.run_until(20_000_000)
    assert wire.transcript.counts["partitions"] > 5
    wire.network.calm()
    assert not wire.network.partitioned
    before = wire.transcript.counts["partitions"]
    wire.scheduler.run_until(40_000_000)
    assert wire.transcript.counts["partitions"] == before


def test_a_clogged_link_delivers_late() -> None:
    wire = Wire(replace(FAIR, clog=0.5, clog_mean_us=500_000))
    wire.scheduler.run_until(200_000)
    for source in (1, 2, 3):
        for target in (1, 2, 3):
            wire.send(source, target, source * 10 + target)
    wire.scheduler.run_until(20_000_000)
    assert max(at_us for at_us, _, _ in wire.arrived) > 250_000
    assert len(wire.arrived) == 9


def test_a_profile_is_a_function_of_its_seed() -> None:
    assert draw_profile(7) == draw_profile(7)
    assert len({draw_profile(seed).describe().split(":", 1)[1] for seed in range(50)}) == 50


def test_swarm_profiles_leave_faults_out_and_put_them_in() -> None:
    profiles = [draw_profile(seed) for seed in range(200)]
    for fault in ("crash", "pause", "members", "disk_full", "failpoint", "clock_jump"):
        share = sum(fault in profile.faults.enabled() for profile in profiles) / 200
        assert 0.1 < share < 0.9, fault
    assert {profile.network.partition_mode for profile in profiles} == set(PartitionMode)


def test_the_digest_covers_lines_and_counts() -> None:
    def run(what: str, count: int) -> str:
        transcript = Transcript(Scheduler())
        transcript.note("node 1", what)
        transcript.count("crashes", count)
        return transcript.digest()

    assert run("a", 1) == run("a", 1)
    assert len({run("a", 1), run("b", 1), run("a", 2)}) == 3
