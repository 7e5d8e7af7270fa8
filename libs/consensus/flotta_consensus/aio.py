"""Replicated groups for an asyncio process: the driver, the native host's thread, the files and the transport.

Everything that decides runs in the event loop's thread; flushing and snapshot files run in a few worker threads.
`run` is the one supervised task: it ends when `close` is called and raises when anything fails that the process
must not survive (the host, a flush, a state machine); by then every waiter has been answered. Time is monotonic, and
a loop that stalled continues from now: nothing is made up for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import flotta_native
from flotta_runtime.turns import Turns

from flotta_consensus.api import Failpoints, NoFailpoints, StateMachine
from flotta_consensus.core.effects import Effects
from flotta_consensus.groups import Groups, HostClosed
from flotta_consensus.jobs import Job, Jobs, Threads
from flotta_consensus.opening import HostOptions, MissingMachine, Opened, open_replicas
from flotta_consensus.tasks import start_in
from flotta_consensus.transport import HostTransport, Transport

__all__ = ["GroupHost", "HostClosed", "HostOptions", "MissingMachine"]

IDLE_BEATS = 10
"""Of the timer, between two turns that nobody asked for."""


class GroupHost(Groups):
    """All replicas of this process. Make it with `open`, then keep `run` going."""

    def __init__(
        self, opened: Opened, transport: Transport, options: HostOptions, failpoints: Failpoints, turns: Turns
    ) -> None:
        super().__init__(opened.host, opened.driver)
        self.orphans = opened.orphans  # machines given to `open` whose group the log does not know
        self._incoming_dir = opened.files.incoming_dir
        self._transport = transport
        self._options = options
        self._turns = turns
        self._threads = Threads()
        self._jobs = Jobs(opened, transport, self._threads, failpoints, self._report)
        self._tasks: asyncio.TaskGroup | None = None
        self._ending = asyncio.Event()
        self._ended = asyncio.Event()
        self._error: BaseException | None = None
        self._started = False
        self._asked = False
        self._scheduled = False
        self._hurry = asyncio.Event()  # somebody may wait: deadlines are to be looked at

    @classmethod
    def open(
        cls,
        data_dir: Path,
        node_num: int,
        machines: Mapping[int, StateMachine],
        transport: Transport,
        *,
        options: HostOptions | None = None,
        failpoints: Failpoints | None = None,
        turns: Turns | None = None,
    ) -> GroupHost:
        """Open the log under `data_dir` and attach every replica's machine, opened before this. Blocking.

        Machines of groups the log does not know come back in `orphans`: created but not yet in the log
        (`create_group` them again), or removed but not yet destroyed (`tombstones` tells). MissingMachine,
        LogCorruption, SnapshotDamaged and OSError stop the start. With the `turns` of the caller, what is asked within
        one of its turns crosses to the host at the end of it.
        """
        chosen, points = options or HostOptions(), failpoints or NoFailpoints()
        opened = open_replicas(data_dir, node_num, machines, transport.send, chosen, points)
        return cls(opened, transport, chosen, points, turns or Turns())

    async def statuses(self, groups: Sequence[int] | None = None) -> list[flotta_native.GroupStatus]:
        """Of all replicas, or of some (those that are gone are missing). HostClosed says why there are none."""
        try:
            return await self._jobs.statuses(groups)
        except (RuntimeError, asyncio.CancelledError) as error:
            # The threads may have ended before this host's own task could tell why.
            task = asyncio.current_task()
            if self._closed_because is None or (task is not None and task.cancelling()):
                raise
            raise HostClosed(self._closed_because) from error

    def now_ms(self) -> int:
        """The monotonic clock that all deadlines here are on."""
        return time.monotonic_ns() // 1_000_000

    # -- life ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until closed. Raises the reason if the process must end."""
        if self._started:
            raise RuntimeError("a GroupHost runs once")
        self._started = True
        loop = asyncio.get_running_loop()
        descriptor = self._host.notify_fd()
        self._host.start()
        loop.add_reader(descriptor, self._turn)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._transport.attach(self, self._incoming_dir)
                if isinstance(self._transport, HostTransport):
                    self._transport.attach_host(self._host)
                children = [tasks.create_task(self._transport.run()), tasks.create_task(self._keep_time())]
                self._turn()
                await self._ending.wait()
                self._tasks = None
                for child in children:
                    child.cancel()
        except BaseExceptionGroup as group:
            self._error = self._error or group.exceptions[0]
        finally:
            self._end("closed")
            loop.remove_reader(descriptor)
            self._transport.detach()
            await self._stop_for_good()
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """Answer every waiter now, end `run`, and stop the host. The machines stay open and are the caller's."""
        self._end("closed")
        if self._started:
            await self._ended.wait()
        else:
            await asyncio.to_thread(self._stop_threads)

    def receive(self, frame: bytes) -> None:
        """From the transport."""
        if not self._ending.is_set():
            self._guard(lambda: self._driver.receive(frame))

    def unreachable(self, node_num: int) -> None:
        """From the transport."""
        if not self._ending.is_set():
            self._guard(lambda: self._driver.unreachable(node_num))

    # -- inside -------------------------------------------------------------------------------------------------

    async def _stop_for_good(self) -> None:
        """However often this is cancelled, the threads end first: `close` waits for that, and so do the machines."""
        stopping = asyncio.get_running_loop().run_in_executor(None, self._stop_threads)
        cancelled: asyncio.CancelledError | None = None
        try:
            while not stopping.done():
                try:
                    await asyncio.wait({stopping})
                except asyncio.CancelledError as again:
                    cancelled = again
            stopping.result()
        finally:
            self._ended.set()
        if cancelled is not None:
            raise cancelled

    def _stop_threads(self) -> None:
        self._threads.shutdown()
        self._host.stop()

    def _end(self, reason: str) -> None:
        if self._ending.is_set():
            return
        self._ending.set()
        self._closed_because = reason
        self._driver.close(reason)
        self._end_lifecycle(reason)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._end(f"the host failed: {error}")

    def _guard(self, action: Callable[[], None]) -> None:
        """Whatever goes wrong in the driver ends `run`, never only a callback."""
        try:
            action()
        except BaseException as error:
            self._fail(error)

    def _ask(self) -> None:
        """Hand everything that was asked at about the same time to the host; its news will wake us."""
        if not self._asked and not self._ending.is_set():
            self._asked = True
            self._hurry.set()
            self._turns.soon(self._submit)

    def _submit(self) -> None:
        self._asked = False
        if self._tasks is not None and not self._ending.is_set():
            self._guard(lambda: self._driver.submit(self.now_ms()))

    def _wake(self) -> None:
        """One turn for everything that is asked at about the same time."""
        if not self._scheduled and not self._ending.is_set():
            self._scheduled = True
            self._hurry.set()
            self._turns.at_end(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._tasks is not None and not self._ending.is_set():
            with self._turns:
                self._guard(self._turn_once)

    def _turn_once(self) -> None:
        effects = self._driver.turn(self.now_ms())
        if effects:
            self._carry_out(effects)

    def _carry_out(self, effects: Effects) -> None:
        for job in self._jobs.of(effects):
            self._spawn(job)
        self._tell(effects)

    def _spawn(self, work: Job) -> None:
        task = None if self._tasks is None else start_in(self._tasks, self._supervised(work))
        if task is None:
            work.close()
        else:
            task.add_done_callback(lambda _: work.close())  # matters only if it was cancelled before its first step

    async def _supervised(self, work: Job) -> None:
        try:
            await work
        except Exception as error:
            self._fail(error)
        self._wake()

    async def _keep_time(self) -> None:
        """A deadline is noticed `timer_ms` late at most. While nobody waits there is none, and the loop is left alone
        but for a look in `IDLE_BEATS` of them."""
        beat_s = self._options.timer_ms / 1000
        while True:
            self._hurry.clear()
            if self._driver.waiting():
                await asyncio.sleep(beat_s)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(beat_s * IDLE_BEATS):
                        await self._hurry.wait()
                    continue
            self._turn()
