"""Supervised background tasks: every task has a name and an owner, and none dies in silence.

A `Supervisor` owns a task group whose scope outlives any one function, so a service can `start()` and later
`stop()`. When a critical task fails, all others are cancelled and `wait()` raises `TaskFailed` with the reason.
An `InvariantError` in any task ends the process at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from flotta_runtime import fatal
from flotta_runtime.errors import InvariantError, StartupError
from flotta_runtime.logging import get_logger


class TaskFailed(Exception):
    """A critical task ended with an error; `__cause__` is that error."""

    def __init__(self, name: str, reason: BaseException) -> None:
        super().__init__(f"task {name} failed: {type(reason).__name__}: {reason}")
        self.name = name
        self.__cause__ = reason


class Supervisor:
    """Owns the tasks of one service.

    `start()` before the first `spawn`; `stop()` cancels every task and waits for its end; `wait()` returns after a
    stop and raises TaskFailed after a failure. `on_fatal` is what an InvariantError calls (a test replaces it).
    """

    def __init__(self, name: str, *, on_fatal: fatal.OnFatal = fatal.die) -> None:
        self.name = name
        self._on_fatal = on_fatal
        self._log = get_logger("tasks", supervisor=name)
        self._group: asyncio.TaskGroup | None = None
        self._root: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = asyncio.Event()
        self._failure: TaskFailed | None = None
        self.restarts = 0

    async def start(self) -> None:
        """Open the scope."""
        if self._root is not None:
            raise RuntimeError(f"supervisor {self.name} was already started")
        opened = asyncio.Event()
        self._root = asyncio.create_task(self._hold(opened), name=f"{self.name}.supervisor")
        await opened.wait()

    async def _hold(self, opened: asyncio.Event) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                opened.set()
                await self._stopping.wait()
                for task in tuple(self._tasks):
                    task.cancel()
        except* Exception:
            # `_failure` already has the first reason, and its task was logged by name.
            if self._failure is None:
                raise
        finally:
            self._group = None

    def spawn(self, name: str, work: Coroutine[Any, Any, object], *, critical: bool = True) -> asyncio.Task[None]:
        """Run `work`. It may return; if it raises, a critical task brings the service down, any other is logged."""
        if self._group is None or self._stopping.is_set():
            work.close()
            raise RuntimeError(f"supervisor {self.name} is not running, so task {name} cannot start")
        task = self._group.create_task(self._guard(name, work, critical), name=f"{self.name}.{name}")
        self._tasks.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            work.close()  # matters only if the task was cancelled before its first step

        task.add_done_callback(ended)
        return task

    def spawn_restarting(
        self,
        name: str,
        work: Callable[[], Awaitable[object]],
        *,
        backoff_ms: int = 100,
        backoff_ms_max: int = 5_000,
    ) -> asyncio.Task[None]:
        """Run `work()` again and again, whether it returns or raises; after an error with jittered, growing pauses.

        The pause falls back to `backoff_ms` once a run has lasted longer than `backoff_ms_max`.
        """
        return self.spawn(name, self._restart(name, work, backoff_ms, backoff_ms_max))

    async def wait(self) -> None:
        """Return once stopped; raise TaskFailed as soon as a critical task has failed."""
        if self._root is None:
            raise RuntimeError(f"supervisor {self.name} was never started")
        await asyncio.wait([self._root])
        if self._failure is not None:
            raise self._failure
        if not self._root.cancelled():
            self._root.result()

    async def stop(self) -> None:
        """Cancel all tasks and wait until each has ended. May be called twice, and after a failure."""
        self._stopping.set()
        if self._root is not None:
            await asyncio.wait([self._root])

    @property
    def failure(self) -> TaskFailed | None:
        """Why the supervisor came down, if it did."""
        return self._failure

    async def _guard(self, name: str, work: Coroutine[Any, Any, object], critical: bool) -> None:
        try:
            await work
        except InvariantError as error:
            self._on_fatal(error)
            self._failure = self._failure or TaskFailed(name, error)
            raise RuntimeError("invariant broken") from error
        except Exception as error:
            if not critical:
                self._log.error("task failed", task=name, exc_info=error)
                return
            if self._failure is None:
                self._failure = TaskFailed(name, error)
                known = isinstance(error, StartupError)  # it was refused: a sentence for the operator says it all
                self._log.error("critical task failed", task=name, reason=str(error), exc_info=not known and error)
            raise

    async def _restart(
        self, name: str, work: Callable[[], Awaitable[object]], backoff_ms: int, backoff_ms_max: int
    ) -> None:
        loop = asyncio.get_running_loop()
        pause_ms = backoff_ms
        while True:
            began = loop.time()
            try:
                await work()
            except Exception as error:
                self.restarts += 1
                self._log.warning(
                    "task restarts", task=name, pause_ms=pause_ms, error=f"{type(error).__name__}: {error}"
                )
            if (loop.time() - began) * 1000 > backoff_ms_max:
                pause_ms = backoff_ms
            await asyncio.sleep(pause_ms * random.uniform(0.8, 1.2) / 1000)
            pause_ms = min(pause_ms * 2, backoff_ms_max)
