"""A gRPC port on the native server: the same handlers as on grpcio, fed from what the server brings in each turn.

Every turn of the event loop takes all that has arrived at once. Calls of batch services go to these as they are; every
other call gets a task and a context (`native_calls.py`). A task is not driven by hand for its first step, though that
would save one pass of the loop: handlers ask for the current task (`asyncio.timeout` does), and Python 3.11 has no way
to start a task at once.

Invariants:
- A call is answered, or it ended on its own and its handler was cancelled.
- `stop` returns when no handler runs any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import flotta_native
import grpc
import grpc.aio

from flotta_runtime import auth, descriptors, fatal
from flotta_runtime.batches import BatchService
from flotta_runtime.call_metrics import CallMetrics
from flotta_runtime.errors import StartupError
from flotta_runtime.handlers import stream_is_gone, tell_unexpected
from flotta_runtime.metrics import Metrics
from flotta_runtime.native_answers import CODE_NUMBERS, Answers
from flotta_runtime.native_batches import Batches, Unary
from flotta_runtime.native_calls import CallContext, Pairs, Route, StreamContext
from flotta_runtime.native_stats import Attacks, StatsCollector
from flotta_runtime.native_tls import server_tls
from flotta_runtime.tls import Tls
from flotta_runtime.turns import Turns

_UNAVAILABLE = CODE_NUMBERS["UNAVAILABLE"]
_STOPPING = "the server is stopping"
_LOOK_MS = 1_000
_STOP_LOOK_MS = 10


@dataclass(frozen=True, slots=True)
class PortLimits:
    """What a native port holds at most. The bounds of a service are lower: they are said in its own words."""

    message_bytes_max: int = 17 << 20
    metadata_bytes_max: int = 64 << 10
    calls_max: int = 50_000
    request_bytes_max: int = 512 << 20
    reply_bytes_max: int = 512 << 20
    connections_max: int = 10_000
    streams_per_connection_max: int = 1_000
    keepalive_ms: int = 30_000
    keepalive_timeout_ms: int = 10_000
    stall_ms: int = 20_000


class NativePort:
    """Made with its limits; `add` every method, then `start`."""

    def __init__(
        self,
        *,
        limits: PortLimits,
        token: auth.TokenCheck,
        tls: Tls | None,
        batches: Sequence[BatchService],
        links: flotta_native.LinkHub | None,
        turns: Turns | None,
        metrics: Metrics | None,
        calls: CallMetrics | None,
        on_fatal: fatal.OnFatal,
    ) -> None:
        self._limits = limits
        self._tls = tls
        self._links = links
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._turns = turns if turns is not None else Turns()
        self._batches = Batches(batches, token, calls, on_fatal)
        self._first = len(self._batches.paths)  # the number of the first method that has a handler
        self._handled: list[Route] = []
        self._running: dict[int, tuple[CallContext, asyncio.Task[None]]] = {}
        self._lasting: set[int] = set()
        self._server: flotta_native.RpcServer | None = None
        self._stopping = False
        self._answers: Answers
        self._looking: asyncio.TimerHandle | None = None
        self._attacks = Attacks()

    def add(self, path: str, handler: grpc.RpcMethodHandler[Any, Any], *, lasting: bool) -> None:
        """Serve `path` with `handler`, unless a batch service does. `lasting`: its streams have no end of their own,
        so a stop does not wait for them."""
        if path not in self._batches.paths:
            self._handled.append(Route(path, handler, lasting))

    # --- life

    async def start(self, listen: str) -> int:
        """Bind and serve; the bound port. StartupError names the address."""
        methods = [(path, False) for path in self._batches.paths]
        methods += [(route.path, route.streams) for route in self._handled]
        limits = self._limits
        self._server = server = flotta_native.RpcServer(
            methods,
            message_bytes_max=limits.message_bytes_max,
            metadata_bytes_max=limits.metadata_bytes_max,
            calls_max=limits.calls_max,
            request_bytes_max=limits.request_bytes_max,
            reply_bytes_max=limits.reply_bytes_max,
            connections_max=descriptors.connections_max(limits.connections_max),
            streams_per_connection_max=limits.streams_per_connection_max,
            keepalive_ms=limits.keepalive_ms,
            keepalive_timeout_ms=limits.keepalive_timeout_ms,
            stall_ms=limits.stall_ms,
            tls=server_tls(self._tls),
            links=self._links,
        )
        self._answers = Answers(server, self._turns, self._batches.sent)
        self._batches.attach(self._answers)
        loop = asyncio.get_running_loop()
        loop.add_reader(server.notify_fd(), self._take)
        try:
            port = server.start(listen)
        except OSError as error:
            loop.remove_reader(server.notify_fd())
            self._server = None
            hint = "; is another process using this port?" if "in use" in str(error) else ""
            raise StartupError(f"cannot listen on {listen} for gRPC: {error.strerror or error}{hint}") from error
        if self._metrics is not None:
            StatsCollector(self._metrics, server)
        self._looking = loop.call_later(_LOOK_MS / 1000, self._look)
        return port

    async def stop(self, grace_ms: int) -> None:
        """No new calls; those in flight may be answered within `grace_ms`, then they are cut off."""
        server = self._server
        if server is None or self._stopping:
            return
        self._stopping = True
        if self._looking is not None:
            self._looking.cancel()
        server.drain()
        stopping = asyncio.create_task(asyncio.to_thread(server.stop, grace_ms), name="grpc.stop")
        while not stopping.done():
            await asyncio.wait({stopping}, timeout=_STOP_LOOK_MS / 1000)
            if not self._batches.calls_open and len(self._running) == len(self._lasting):
                for call in tuple(self._lasting):
                    server.finish(call, _UNAVAILABLE, _STOPPING, None)
                    self._drop(call)
                break
        await stopping
        self._take()
        running = [task for _, task in self._running.values()]
        for call in tuple(self._running):
            self._drop(call)
        if running:
            await asyncio.wait(running)
        asyncio.get_running_loop().remove_reader(server.notify_fd())

    def _look(self) -> None:
        """Say what somebody tries to do to the port: a line a kind and period, however much of it there is."""
        if self._server is not None:
            self._attacks.tell(self._server)
            self._looking = asyncio.get_running_loop().call_later(_LOOK_MS / 1000, self._look)

    # --- what has arrived

    def _take(self) -> None:
        """Everything that has arrived."""
        server = self._server
        if server is None:
            return
        try:
            with self._turns:
                unary, events, ended = server.poll()
                for call in self._batches.take(unary) if unary else ():
                    self._begin(call)
                for kind, number, method, data in events:
                    self._on_event(server, kind, number, method, data)
                for number in self._batches.ended(ended) if ended else ():
                    self._drop(number)
        except BaseException as error:  # handlers and services do not raise in here: something is broken
            tell_unexpected("the gRPC port", error, self._on_fatal)
            raise

    def _begin(self, unary: Unary) -> None:
        number, method, message, metadata, remaining_ms, peer = unary
        route = self._handled[method - self._first]
        context = CallContext(metadata, remaining_ms, peer)
        self._run(number, context, self._answer(route, number, message, context))

    def _on_event(self, server: flotta_native.RpcServer, kind: int, number: int, method: int, data: Any) -> None:
        if kind == flotta_native.EVENT_OPEN:
            route = self._handled[method - self._first]
            opened = StreamContext(server, number, data, route.parse, route.serialize)
            if route.lasting:
                self._lasting.add(number)
            self._run(number, opened, self._converse(server, route, number, opened))
            return
        context, _ = self._running.get(number, (None, None))
        if not isinstance(context, StreamContext):
            return  # its handler has ended
        if kind == flotta_native.EVENT_MESSAGE:
            context.take(data)
        elif kind == flotta_native.EVENT_HALF_CLOSE:
            context.take_end()
        elif kind == flotta_native.EVENT_DRAINED:
            context.has_room()
        elif kind == flotta_native.EVENT_CANCELLED:
            self._drop(number)

    # --- handlers

    def _run(self, number: int, context: CallContext, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running[number] = (context, task)
        task.add_done_callback(lambda _: self._done(number, context))

    def _done(self, number: int, context: CallContext) -> None:
        self._running.pop(number, None)
        self._lasting.discard(number)
        context.mark_ended()

    def _drop(self, number: int) -> None:
        """Nobody waits for this call any more."""
        context, task = self._running.get(number, (None, None))
        if context is not None and task is not None:
            context.mark_gone()
            task.cancel()

    async def _answer(self, route: Route, number: int, message: bytes, context: CallContext) -> None:
        payload = None
        try:
            payload = route.serialize(await route.behaviour(route.parse(message), context))
            code, details, trailers = context.status()
        except BaseException as error:
            code, details, trailers = self._failure(route, error, context)
        if code == 0 and trailers is None and payload is not None:
            self._answers.put((number, payload))
        else:
            self._answers.put((number, code, details, payload if code == 0 else None, trailers))

    async def _converse(
        self, server: flotta_native.RpcServer, route: Route, number: int, context: StreamContext
    ) -> None:
        try:
            await route.serve(context)
            code, details, trailers = context.status()
        except BaseException as error:
            code, details, trailers = self._failure(route, error, context)
        if context.cancelled():
            return
        try:
            server.finish(number, code, details, trailers)
        except (TypeError, ValueError) as error:
            text = tell_unexpected(route.path, error, self._on_fatal)
            server.finish(number, CODE_NUMBERS["INTERNAL"], text, None)

    def _failure(self, route: Route, error: BaseException, context: CallContext) -> tuple[int, str, Pairs | None]:
        """Code, details and trailers for what came out of a handler."""
        if isinstance(error, grpc.aio.AbortError):
            code, details, trailers = context.status()
            return code or CODE_NUMBERS["UNKNOWN"], details, trailers
        if isinstance(error, asyncio.CancelledError) or stream_is_gone(error):
            if self._stopping:
                return _UNAVAILABLE, _STOPPING, None
            return CODE_NUMBERS["CANCELLED"], "the handler was cancelled", None
        return CODE_NUMBERS["INTERNAL"], tell_unexpected(route.path, error, self._on_fatal), None
