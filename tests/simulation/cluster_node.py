"""A process of the simulated cluster: production coroutines on a virtual event loop, over a simulated host and disk.

`main` is what the service's own `app.py` does, put together from the same parts. Invariants: a failpoint, a broken host
or a check that fails ends the process where it stands, whatever coroutine it was in; `main` ends only by an injected
fault, and anything else that ends it is a finding.
"""

from __future__ import annotations

import asyncio
import random
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster_rpc import RPC, TOKEN, SimServer, sim_dial
from cluster_wires import End
from flotta_consensus.sim.checkers import SafetyViolation
from flotta_consensus.sim.failpoints import ProcessKilled, SimFailpoints
from flotta_consensus.sim.loop import SimLoop
from flotta_consensus.sim.node import SimNode
from flotta_consensus.sim.observed import Observer
from flotta_embedded.simulated import SimEngine
from flotta_runtime.server import Dial
from flotta_runtime.tasks import Supervisor, TaskFailed

if TYPE_CHECKING:
    from cluster_world import Cluster


class SuddenDeath(SimFailpoints):
    """Failpoints that kill the process at once: a coroutine could go on for a while after its own death."""

    def __init__(self) -> None:
        super().__init__()
        self.on_death: Callable[[BaseException], None] = lambda death: None

    def reach(self, name: str) -> None:
        try:
            super().reach(name)
        except ProcessKilled as death:
            self.on_death(death)
            raise


class EngineStore:
    """Implements `sim.world.Durable` with one engine."""

    def __init__(self, rng: random.Random, failpoints: SimFailpoints) -> None:
        self.engine = SimEngine(
            rng.getrandbits(63), background_flush_one_in=rng.choice((0, 3, 20)), failpoints=failpoints
        )

    def crash(self) -> int:
        return self.engine.crash()["spaces"]

    def fill_up_after(self, bytes: int) -> None:
        self.engine.fill_up_after(bytes)

    def reset_faults(self) -> None:
        self.engine.reset_faults()


class NodeClock:
    """Implements `flotta_runtime.clock.Clock`."""

    def __init__(self, node: ClusterNode) -> None:
        self._node = node

    def wall_ms(self) -> int:
        return self._node.wall_ms()

    def monotonic_ms(self) -> int:
        return self._node.now_ms


class ClusterNode(SimNode):
    """A coordinator, a storage node or a gateway."""

    def __init__(self, cluster: Cluster, number: int, name: str, observer: Observer) -> None:
        self.cluster = cluster
        self.loop: SimLoop | None = None
        self.ends: dict[End, None] = {}
        self.powered = True
        self.gone = False  # the machine, for good
        self.dismissed = False  # the process: the cluster does not take it any more
        self.sudden = SuddenDeath()
        self.sudden.on_death = self.doom
        self._doom: BaseException | None = None
        self.durable = EngineStore(random.Random(f"{cluster.world.seed}/{name}/store"), self.sudden)
        super().__init__(cluster.world, number, self.durable, self.sudden, name=name, observer=observer)
        self.address = f"{name}:1"
        self.clock = NodeClock(self)
        self._rate = 1 + (self.rng.random() - 0.5) * 0.02
        self.server: SimServer
        cluster.wires.endpoints[self.address] = self

    @abstractmethod
    async def main(self, loop: SimLoop) -> None:
        """The process. Returns never."""

    # -- life ---------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return self.loop is not None

    @property
    def now_ms(self) -> int:
        return int(self.world.scheduler.now_us * self._rate / 1_000)

    def start(self) -> None:
        if not self.gone and not self.dismissed:
            super().start()

    def destroy(self) -> None:
        """The machine is gone, with its disks."""
        self.gone = True
        if self.alive:
            self.crash(power=True, why="destroyed")
        del self.world.nodes[self.number]

    def _open(self) -> None:
        self.powered = True
        loop = self.loop = SimLoop(
            self.world.scheduler, self.wake, lambda work: self.later(1, 8, work), rate=self._rate
        )
        self.server = SimServer(self, loop)
        loop.create_task(self._main(loop), name="main")

    async def _main(self, loop: SimLoop) -> None:
        try:
            await self.main(loop)
        except BaseException as error:
            self.doom(self.judged(_cause(error)))

    def judged(self, error: BaseException) -> BaseException:
        """What it means that `main` ended with this."""
        return error

    def holdings(self) -> str:
        return "a process"

    def crash(self, *, power: bool, why: str) -> None:
        ends, self.powered = list(self.ends), not power
        if self.loop is not None:
            self.loop.kill()
            self.cluster.dead_loops.append(self.loop)
        self.loop = None
        self.on_effects = None
        for end in ends:
            end.abandoned(silently=power)
        super().crash(power=power, why=why)

    def dropped(self) -> None:
        self._doom = None

    def doom(self, error: BaseException) -> None:
        """The process must not go on: it ends with what runs just now."""
        if self._doom is None:
            self._doom = error
        if self.loop is not None:
            self.loop.kill()
            self.wake()

    # -- events -------------------------------------------------------------------------------------------------

    def turn_once(self) -> bool:
        busy = self.loop is not None and self.loop.run_ready()
        if self._host is not None and self._doom is None:
            busy = super().turn_once() or busy
        return busy

    def accept(self, end: End, greeting: Any) -> None:
        if greeting[0] == RPC:
            self.server.serve(end, *greeting[1:])
        else:
            self.linked(end, greeting)

    def linked(self, end: End, greeting: Any) -> None:
        """A link that is no gRPC call."""
        raise SafetyViolation(f"{self.name} was sent {greeting!r}")

    def dial(self, token: str | None = TOKEN) -> Dial:
        return sim_dial(self.cluster.wires, self, token)

    def _guard(self, action: Callable[[], None]) -> bool:
        return super()._guard(lambda: self._inside(action))

    def _inside(self, action: Callable[[], None]) -> None:
        """Run something as a callback of the process's loop would run."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self.loop)
        try:
            action()
        finally:
            asyncio._set_running_loop(before)
        doom, self._doom = self._doom, None
        if doom is not None:
            raise doom


def _cause(error: BaseException) -> BaseException:
    """What is behind the failure of a supervised task."""
    while True:
        if isinstance(error, TaskFailed) and error.__cause__ is not None:
            error = error.__cause__
        elif isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        else:
            return error


async def supervised(name: str, node: ClusterNode) -> Supervisor:
    """A supervisor whose process ends with a finding where production's would end itself."""
    supervisor = Supervisor(name, on_fatal=node.doom)
    await supervisor.start()
    return supervisor
