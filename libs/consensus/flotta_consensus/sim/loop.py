"""An asyncio event loop on the virtual clock: what lets production coroutines run inside a simulated process.

Callbacks run when the process takes a turn, timers when the virtual clock says so, worker threads are delays. Tasks and
futures are hashed by their number, not by where they lie in memory: the library keeps them in sets, and their order
must be the seed's.

Invariants: callbacks run in the order they were scheduled; nothing of a killed loop ever runs again; a callback that
raises stops the pass, and the process hears of it. A loop may run fast or slow against the true time (`rate`).
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVarTuple, Unpack

from flotta_consensus.sim.clock import Scheduler

Ts = TypeVarTuple("Ts")

UNWINDINGS_MAX = 20
Later = Callable[[Callable[[], None]], None]


class SimFuture(asyncio.Future[Any]):
    """A future whose place in a set is the same in every run."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__(loop=loop)
        self._number = loop.next_number()

    def __hash__(self) -> int:
        return self._number


class SimTask(asyncio.Task[Any]):
    """The same for a task."""

    def __init__(
        self, work: Coroutine[Any, Any, Any], loop: SimLoop, name: str | None, context: Context | None
    ) -> None:
        self._number = loop.next_number()
        super().__init__(work, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self._number


class SimLoop(asyncio.AbstractEventLoop):
    """The loop of one incarnation of one process. `wake` asks for a turn, `later` does what a thread would."""

    def __init__(self, scheduler: Scheduler, wake: Callable[[], None], later: Later, *, rate: float = 1.0) -> None:
        self._scheduler = scheduler
        self._wake = wake
        self._later = later
        self._rate = rate
        self._ready: deque[asyncio.Handle] = deque()
        self._numbers = 0
        self._raised: BaseException | None = None
        self._tasks: dict[SimTask, None] = {}
        self.killed = False

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def kill(self) -> None:
        """The process is dead: what is scheduled never runs, what is scheduled now is dropped."""
        self.killed = True
        self._ready.clear()

    def bury(self) -> None:
        """At the end of a simulation: end what still stands in the middle of a killed loop's tasks. Until then they are
        kept, because the end of a coroutine runs code, and it must not run in the middle of somebody else's turn."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        while self._tasks:  # an end may begin tasks, which come to theirs here
            task, _ = self._tasks.popitem()
            work: Any = task.get_coro()
            if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:  # what it was given never begins either
                for given in inspect.getcoroutinelocals(work).values():
                    if inspect.iscoroutine(given):
                        given.close()
            for _ in range(UNWINDINGS_MAX):
                try:
                    work.close()
                except BaseException:  # what it does after its process's death is of no interest
                    continue
                break
        asyncio._set_running_loop(before)

    def run_ready(self) -> bool:
        """Run what was ready at this moment; False if nothing was. Raises what a callback raised."""
        left = len(self._ready)
        if not left:
            return False
        while left and not self.killed:
            handle = self._ready.popleft()
            left -= 1
            if not handle.cancelled():
                handle._run()
            if self._raised is not None:
                raised, self._raised = self._raised, None
                raise raised
        return True

    # -- what asyncio asks of a loop ------------------------------------------------------------------------------

    def time(self) -> float:
        return self._scheduler.now_us * self._rate / 1e6

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.killed:
            self._ready.append(handle)
            self._wake()
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)

        def due() -> None:
            if not self.killed and not handle.cancelled():
                self._ready.append(handle)
                self._wake()

        # Rounded up: a timer that fires early would find that its time has not come.
        self._scheduler.at(int(when * 1e6 / self._rate) + 1, due)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when it is due."""

    def create_future(self) -> SimFuture:
        return SimFuture(self)

    def create_task(  # type: ignore[override]  # typeshed names generators too, which nobody passes here
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> SimTask:
        task = SimTask(coro, self, name, context)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.pop(task, None)  # type: ignore[call-overload]  # it is a SimTask

    def run_in_executor(  # type: ignore[override]  # there is one kind of thread: a delay
        self, executor: None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self._later(work)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A callback raised. (A task that nobody awaited tells the same; that is logged in production, no more.)"""
        error = context.get("exception")
        if isinstance(error, BaseException) and "handle" in context:
            self._raised = error

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.killed

    def is_closed(self) -> bool:
        return self.killed
