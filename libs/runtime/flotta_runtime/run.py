"""The main program of every service: settings, logs, descriptors, uvloop, signals, exit codes.

Exit codes: 0 stopped when asked, 1 could not start or was turned away by its cluster (one sentence on stderr), 2 wrong
settings, 70 an invariant broke or a critical task failed (the state in memory is not to be trusted, so nothing is
flushed), 75 a stop that took too long and was cut off.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import uvloop

from flotta_runtime import descriptors, fatal
from flotta_runtime.errors import InvariantError, StartupError
from flotta_runtime.logging import configure, get_logger
from flotta_runtime.settings import Settings, parse_args

EXIT_OK = 0
EXIT_START = 1
EXIT_STOP_TIMEOUT = 75
# New containers before a collection looks at them. Under load thousands of requests are open, and all of them live.
GC_YOUNG_MAX = 25_000


class Service(Protocol):
    """A running service, as its `start(settings)` returns it."""

    async def wait(self) -> None:
        """Return when it has stopped; raise when it failed and the process must end."""
        ...

    async def stop(self) -> None:
        """Stop gracefully; safe to call more than once."""
        ...


S = TypeVar("S", bound=Settings)


def main(cls: type[S], start: Callable[[S], Awaitable[Service]], argv: Sequence[str] | None = None) -> int:
    """Parse settings, run the service until a signal or a failure, and return the exit code.

    Use: `def main() -> None: sys.exit(run.main(Settings, start))`.
    """
    settings = parse_args(cls, argv)
    configure(settings.log_format, settings.log_level)
    descriptors.raise_soft_limit()
    return uvloop.run(_run(settings, start))


async def _run(settings: S, start: Callable[[S], Awaitable[Service]]) -> int:
    log = get_logger("run", service=settings.service)
    asked = asyncio.Event()
    _watch_signals(asked)
    starting = asyncio.ensure_future(start(settings))
    waiting = asyncio.ensure_future(asked.wait())
    try:
        await asyncio.wait([starting, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # a signal came while it was starting
            starting.cancel()
            await asyncio.wait([starting])
            if starting.cancelled():
                return EXIT_OK
        service = starting.result()
    except StartupError as error:
        sys.stderr.write(f"flotta-{settings.service}: {error}\n")
        return EXIT_START
    except InvariantError as error:
        fatal.die(error)
    except Exception as error:
        log.error("could not start", exc_info=error)
        sys.stderr.write(f"flotta-{settings.service}: could not start: {type(error).__name__}: {error}\n")
        return EXIT_START
    finally:
        waiting.cancel()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_YOUNG_MAX, *gc.get_threshold()[1:])
    log.info("started", pid=os.getpid())
    return await _serve(settings, service, asked)


async def _serve(settings: Settings, service: Service, asked: asyncio.Event) -> int:
    log = get_logger("run", service=settings.service)
    ended = asyncio.ensure_future(service.wait())
    waiting = asyncio.ensure_future(asked.wait())
    await asyncio.wait([ended, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if ended.done():
        reason = ended.exception()
        if reason is not None and isinstance(reason.__cause__, StartupError):
            # Turned away after it had begun: as little to be saved as when it had not.
            sys.stderr.write(f"flotta-{settings.service}: {reason.__cause__}\n")
            sys.stderr.flush()
            os._exit(EXIT_START)
        if reason is not None:
            fatal.die(reason)
        return EXIT_OK
    log.info("stopping")
    try:
        # Twice: a service bounds its own steps by stop_timeout_ms; this is the net below.
        async with asyncio.timeout(2 * settings.stop_timeout_ms / 1000):
            await service.stop()
            await ended
    except TimeoutError:
        log.error("the stop took too long and was cut off", stop_timeout_ms=settings.stop_timeout_ms)
        sys.stderr.flush()
        os._exit(EXIT_STOP_TIMEOUT)
    except Exception as error:
        log.error("an error while stopping", exc_info=error)
        return EXIT_START
    log.info("stopped")
    return EXIT_OK


def _watch_signals(asked: asyncio.Event) -> None:
    """The first SIGTERM or SIGINT asks for a stop, the second ends the process at once."""

    def on_signal(number: signal.Signals) -> None:
        if asked.is_set():
            os._exit(128 + number)
        asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
