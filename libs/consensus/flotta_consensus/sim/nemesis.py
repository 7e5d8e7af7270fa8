"""Makes things go wrong: every fault of a profile, at random times, until it is told to stop.

What it breaks it also mends, after a random while: a dead process is started again with its directory, a paused one
resumed, a full disk emptied. `stop` mends everything at once and for good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flotta_native

from flotta_consensus.sim.clock import US_PER_MS, stream
from flotta_consensus.sim.node import SimNode
from flotta_consensus.sim.profile import FaultProfile
from flotta_consensus.sim.world import World


class Nemesis:
    """`failpoints`: the Python names that may be armed, beside the native ones."""

    def __init__(self, world: World, profile: FaultProfile, failpoints: Sequence[str]) -> None:
        self._world = world
        self._profile = profile
        self._failpoints = tuple(failpoints)
        self._stopped = False
        for node in list(world.nodes.values()):
            self.adopt(node)
        plans: list[tuple[str, int, Callable[[], None]]] = [
            ("crash", profile.crash_every_ms, self._crash_one),
            ("crash_all", profile.crash_all_every_ms, self._crash_all),
            ("failpoint", profile.failpoint_every_ms, self._arm),
            ("pause", profile.pause_every_ms, self._pause),
            ("slow", profile.slow_every_ms, self._slow),
            ("disk_full", profile.disk_full_every_ms, self._fill_disk),
            ("sync_failure", profile.sync_failure_every_ms, self._fail_sync),
            ("clock_jump", profile.clock_jump_every_ms, self._jump_clock),
        ]
        for name, mean_ms, action in plans:
            if mean_ms:
                self.repeat(name, mean_ms, action)

    def adopt(self, node: SimNode) -> None:
        """A node that may be broken from here on, and is mended."""
        self._world.nodes[node.number] = node
        node.on_crash = self._crashed

    def repeat(self, name: str, mean_ms: int, action: Callable[[], None]) -> None:
        """Do something at exponential intervals, from a stream of its own."""
        rng = stream(self._world.seed, f"nemesis/{name}")

        def again() -> None:
            if self._stopped:
                return
            self._world.scheduler.after(int(rng.expovariate(1 / mean_ms) * US_PER_MS) + 1, again)
            self._rng = rng
            action()

        self._rng = rng
        self._world.scheduler.after(int(rng.expovariate(1 / mean_ms) * US_PER_MS) + 1, again)

    def stop(self) -> None:
        """Mend everything; nothing goes wrong from here on."""
        self._stopped = True
        self._world.transcript.note("nemesis", "stopped: everything is mended")
        self._world.network.calm()
        for number in sorted(self._world.nodes):
            node = self._world.nodes[number]
            node.mend_disk()
            node.failpoints.disarm()
            node.turn_delay_us = 0
            node.resume()
            node.start()

    def _node(self, *, alive: bool = True) -> SimNode | None:
        nodes = [node for _, node in sorted(self._world.nodes.items()) if node.alive is alive]
        return self._rng.choice(nodes) if nodes else None

    def _leader_or_any(self) -> SimNode | None:
        """Faults hurt most where a leader is."""
        leaders = [node for _, node in sorted(self._world.nodes.items()) if node.alive and node.leads()]
        return self._rng.choice(leaders) if leaders and self._rng.random() < 0.6 else self._node()

    def _crashed(self, node: SimNode) -> None:
        """Somebody starts it again, some time later."""
        down_ms = min(node.rng.expovariate(1 / self._profile.down_mean_ms), self._profile.down_max_ms)
        if self._stopped:
            down_ms = 100
        if self._stopped or node.rng.random() < 0.6:
            node.mend_disk()
        self._world.scheduler.after(int(down_ms * US_PER_MS) + 1, node.start)

    def _crash_one(self) -> None:
        node = self._leader_or_any()
        if node is None:
            return
        amid = self._rng.random() < 0.7
        # In the middle of its next write, where a crash between two events never is.
        if not (amid and node.arm_native(self._rng.choice(("raft.after_append", "raft.before_sync")), 1)):
            node.crash(power=self._rng.random() < 0.6, why="nemesis")

    def _crash_all(self) -> None:
        self._world.transcript.count("crashes_of_all")
        power, amid = self._rng.random() < 0.8, self._rng.random() < 0.5
        for _, node in sorted(self._world.nodes.items()):
            if node.alive and not (amid and node.arm_native("raft.before_sync", 1)):
                node.crash(power=power, why="nemesis, all")

    def _arm(self) -> None:
        """A point that is passed often needs many hits to be met at an odd moment."""
        node = self._node()
        if node is None:
            return
        hits = self._rng.choice((1, 1, 2, 5, 25))
        if self._rng.random() < 0.5:
            name = self._rng.choice(sorted(flotta_native.FAILPOINTS))
            node.arm_native(name, hits)
        else:
            name = self._rng.choice(self._failpoints)
            node.failpoints.arm(name, hits)
        self._world.transcript.count("failpoints_armed")

    def _pause(self) -> None:
        node = self._leader_or_any()
        if node is not None:
            node.pause()
            incarnation = node.incarnation
            length_ms = self._rng.expovariate(1 / self._profile.pause_mean_ms)

            def resume() -> None:
                if node.incarnation == incarnation:
                    node.resume()

            self._world.scheduler.after(int(length_ms * US_PER_MS) + 1, resume)

    def _slow(self) -> None:
        node = self._node()
        if node is not None:
            self._world.transcript.count("slow_disks")
            node.note("its disk is slow")
            node.turn_delay_us = self._profile.slow_turn_ms * US_PER_MS
            incarnation = node.incarnation
            length_ms = self._rng.expovariate(1 / self._profile.slow_mean_ms)

            def fast() -> None:
                if node.incarnation == incarnation:
                    node.turn_delay_us = 0

            self._world.scheduler.after(int(length_ms * US_PER_MS) + 1, fast)

    def _fill_disk(self) -> None:
        node = self._node()
        if node is not None:
            self._world.transcript.count("full_disks")
            log_bytes, state_bytes = self._rng.randrange(20_000), self._rng.randrange(40_000)
            node.note(f"its disk is nearly full: {log_bytes} bytes for the log, {state_bytes} for states")
            node.fill_disk(log_bytes, state_bytes)

    def _fail_sync(self) -> None:
        node = self._node()
        if node is not None:
            self._world.transcript.count("sync_failures_armed")
            node.fail_sync(self._rng.randrange(20))

    def _jump_clock(self) -> None:
        node = self._node()
        if node is not None:
            jump_ms = self._rng.randint(-self._profile.clock_jump_max_ms, self._profile.clock_jump_max_ms)
            self._world.transcript.count("clock_jumps")
            node.note(f"its wall clock jumps by {jump_ms} ms")
            node.wall_offset_ms += jump_ms
