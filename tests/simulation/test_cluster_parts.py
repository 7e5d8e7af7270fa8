"""The ground that simulated clusters stand on: event loops on the virtual clock, and connections that break."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from cluster_wires import GIVE_UP_US, REFUSED, RESET, SILENT, End, Wires
from flotta_consensus.sim.clock import Scheduler, stream
from flotta_consensus.sim.loop import SimLoop
from flotta_consensus.sim.network import Network, NetworkProfile
from flotta_consensus.sim.observed import Observer
from flotta_consensus.sim.profile import RaftProfile
from flotta_consensus.sim.transcript import Transcript
from flotta_consensus.sim.world import World


class Process:
    """A loop and what runs it. Implements `cluster_wires.Endpoint`."""

    def __init__(self, scheduler: Scheduler, number: int = 1, rate: float = 1.0) -> None:
        self.number = number
        self.powered = True
        self.ends: dict[End, None] = {}
        self.accepted: list[End] = []
        self.heard: list[Any] = []
        self.raised: list[BaseException] = []
        self._scheduler = scheduler
        self.loop: SimLoop | None = SimLoop(
            scheduler, lambda: scheduler.after(10, self.turn) and None, self._later, rate=rate
        )

    def _later(self, work: Callable[[], None]) -> None:
        self._scheduler.after(5_000, work)

    def accept(self, end: End, greeting: Any) -> None:
        self.accepted.append(end)
        end.on_message = self.heard.append
        end.on_end = lambda reason: self.heard.append(("end", reason))

    def turn(self) -> None:
        if self.loop is None:
            return
        asyncio._set_running_loop(self.loop)
        try:
            self.loop.run_ready()
        except ValueError as error:
            self.raised.append(error)
        finally:
            asyncio._set_running_loop(None)


def test_coroutines_run_in_virtual_time() -> None:
    scheduler, told = Scheduler(), []
    process = Process(scheduler)
    loop = process.loop
    assert loop is not None

    async def wait(seconds: float, text: str) -> str:
        await asyncio.sleep(seconds)
        told.append((text, round(loop.time(), 3)))
        return text

    async def main() -> None:
        assert await asyncio.gather(wait(0.2, "slow"), wait(0.1, "fast")) == ["slow", "fast"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await asyncio.Event().wait()
        assert await asyncio.to_thread(lambda: 7) == 7
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(wait(0.01, "child"))
        told.append(("end", round(loop.time(), 3)))

    loop.create_task(main())
    scheduler.run_until(1_000_000)
    assert [text for text, _ in told] == ["fast", "slow", "child", "end"]
    assert told[0][1] == pytest.approx(0.1, abs=0.005) and told[-1][1] == pytest.approx(0.265, abs=0.01)


def test_a_killed_loop_runs_nothing_more_and_its_tasks_end_with_the_simulation() -> None:
    scheduler, told = Scheduler(), []
    process = Process(scheduler)
    loop = process.loop
    assert loop is not None

    async def work() -> None:
        try:
            await asyncio.sleep(0.1)
            told.append("never")
        finally:
            told.append("ended")

    loop.create_task(work())
    scheduler.run_until(50_000)
    loop.kill()
    loop.create_task(work())  # not even begun
    scheduler.run_until(500_000)
    assert told == []
    loop.bury()
    assert told == ["ended"]


def test_a_callback_that_raises_is_heard_of() -> None:
    scheduler = Scheduler()
    process = Process(scheduler)

    def bad() -> None:
        raise ValueError("broken")

    assert process.loop is not None
    process.loop.call_soon(bad)
    scheduler.run_until(1_000)
    assert [str(error) for error in process.raised] == ["broken"]


def test_clocks_drift() -> None:
    scheduler = Scheduler()
    fast, slow = Process(scheduler, rate=1.01).loop, Process(scheduler, rate=0.99).loop
    scheduler.run_until(10_000_000)
    assert fast is not None and slow is not None
    assert (fast.time(), slow.time()) == (pytest.approx(10.1), pytest.approx(9.9))


class Pair:
    """Two processes on a network with some weather."""

    def __init__(self, profile: NetworkProfile) -> None:
        self.scheduler = Scheduler()
        transcript = Transcript(self.scheduler)
        self.network = Network(self.scheduler, transcript, stream(1, "pair"), [1, 2], profile)
        observer = Observer(self.scheduler)
        self.wires = Wires(World(self.scheduler, transcript, self.network, observer, RaftProfile(), 1))
        self.here, self.there = Process(self.scheduler, 1), Process(self.scheduler, 2)
        self.wires.endpoints["there:1"] = self.there
        self.ended: list[str] = []

    def connect(self) -> End:
        end = self.wires.connect(self.here, "there:1", "hello")
        end.on_end = self.ended.append
        return end

    def run(self, ms: int) -> None:
        self.scheduler.run_until(self.scheduler.now_us + ms * 1_000)


def test_what_is_lost_on_the_way_is_sent_again_and_stays_in_order() -> None:
    pair = Pair(NetworkProfile(loss=0.3, duplicate=0.2, reorder=True, delay_mean_us=20_000))
    end = pair.connect()
    pair.run(2_000)
    for number in range(200):
        end.send(number)
    pair.run(2_000)
    assert pair.there.heard == list(range(200))
    end.close()
    pair.run(2_000)
    assert pair.there.heard[-1] == ("end", "closed") and not pair.ended


def test_a_partition_breaks_a_connection_and_both_ends_find_out() -> None:
    pair = Pair(NetworkProfile())
    end = pair.connect()
    pair.run(10)
    pair.network.split([1])
    end.send("lost")
    pair.run(GIVE_UP_US // 1_000 - 100)
    assert pair.ended == []
    pair.run(10_000)
    assert pair.ended == [SILENT] and pair.there.heard == [("end", SILENT)]


def test_a_dead_process_refuses_and_a_dead_machine_says_nothing() -> None:
    pair = Pair(NetworkProfile())
    pair.there.loop = None
    pair.connect()
    pair.run(100)
    assert pair.ended == [REFUSED]
    pair.there.powered = False
    pair.connect()
    pair.run(100)
    assert pair.ended == [REFUSED]
    pair.run(5_000)
    assert pair.ended == [REFUSED, SILENT]


def test_a_process_that_dies_resets_its_connections() -> None:
    pair = Pair(NetworkProfile())
    pair.connect()
    pair.run(10)
    for end in list(pair.there.ends):
        end.abandoned(silently=False)
    pair.run(10)
    assert pair.ended == [RESET] and not pair.there.ends
