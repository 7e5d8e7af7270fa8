"""What stands around every gRPC handler: token, metrics, errors to status.

Handlers raise FlottaErrors and never touch status codes. A request that is no message is INVALID_ARGUMENT, and the
handler never sees it. An unexpected exception becomes INTERNAL with an id that is also in the log; its text stays
inside. An InvariantError ends the process.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio

from flotta_runtime import auth, fatal, status
from flotta_runtime.errors import FlottaError, InvariantError
from flotta_runtime.logging import get_logger
from flotta_runtime.malformed import Malformed, tolerant
from flotta_runtime.metrics import Metrics

Context = Any  # grpc.aio.ServicerContext[request, response]; handlers of all types pass through here


# What the library raises out of reads and writes of a stream whose server stops or whose client is gone.
_STREAM_GONE = ("_ServerStoppedError", "ExecuteBatchError")
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}  # an aborted aio call tells its code as a number


class CallMetrics:
    """The metric names of go-grpc-prometheus, so that its dashboards work."""

    def __init__(self, metrics: Metrics) -> None:
        labels = ("grpc_type", "grpc_service", "grpc_method")
        self.started = metrics.counter("grpc_server_started_total", "gRPC calls begun.", labels)
        self.handled = metrics.counter(
            "grpc_server_handled_total", "gRPC calls ended, by code.", (*labels, "grpc_code")
        )
        self.seconds = metrics.histogram("grpc_server_handling_seconds", "How long gRPC calls took.", labels)


class _MethodMetrics:
    """The label children of one method, looked up once."""

    def __init__(self, metrics: CallMetrics, kind: str, method: str) -> None:
        _, service, name = method.split("/")
        self._labels = (kind, service, name)
        self._handled = metrics.handled
        self._started = metrics.started.labels(*self._labels)
        self._ok = metrics.handled.labels(*self._labels, "OK")
        self._seconds = metrics.seconds.labels(*self._labels)

    def begin(self) -> float:
        self._started.inc()
        return time.perf_counter()

    def end(self, began: float, code: str) -> None:
        self._seconds.observe(time.perf_counter() - began)
        (self._ok if code == "OK" else self._handled.labels(*self._labels, code)).inc()


class HandlerWrapper:
    """Wraps method handlers of all four kinds, the streaming ones both as async generators and as coroutines."""

    def __init__(self, token: auth.TokenCheck, metrics: CallMetrics | None, on_fatal: fatal.OnFatal) -> None:
        self._token = token
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._log = get_logger("grpc")

    def wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """The same handler with everything around it."""
        made: dict[tuple[bool, bool], tuple[str, str, Callable[..., Any]]] = {
            (False, False): ("unary", "unary_unary", grpc.unary_unary_rpc_method_handler),
            (False, True): ("server_stream", "unary_stream", grpc.unary_stream_rpc_method_handler),
            (True, False): ("client_stream", "stream_unary", grpc.stream_unary_rpc_method_handler),
            (True, True): ("bidi_stream", "stream_stream", grpc.stream_stream_rpc_method_handler),
        }
        kind, attribute, make = made[bool(handler.request_streaming), bool(handler.response_streaming)]
        inner = getattr(handler, attribute)
        guarded = auth.is_protected(method)
        measured = _MethodMetrics(self._metrics, kind, method) if self._metrics is not None else None
        outer: Callable[..., Any]
        if inspect.isasyncgenfunction(inner):
            outer = self._generator(method, inner, guarded, measured)
        else:
            outer = self._coroutine(method, inner, guarded, measured)
        parse = handler.request_deserializer
        if parse is not None:
            parse = tolerant(parse, streaming=bool(handler.request_streaming))
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            outer, request_deserializer=parse, response_serializer=handler.response_serializer
        )
        return wrapped

    def _coroutine(
        self,
        method: str,
        inner: Callable[[Any, Context], Awaitable[Any]],
        guarded: bool,
        measured: _MethodMetrics | None,
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:
            began = measured.begin() if measured is not None else 0.0
            code = "OK"
            try:
                if guarded:
                    await self._check_token(context)
                if isinstance(request, Malformed):
                    raise request.error
                return await inner(request, context)
            except BaseException as error:
                code = self._code(error, context)
                await self._fail(method, error, context)
            finally:
                if measured is not None:
                    measured.end(began, code)

        return call

    def _generator(
        self,
        method: str,
        inner: Callable[[Any, Context], AsyncIterator[Any]],
        guarded: bool,
        measured: _MethodMetrics | None,
    ) -> Callable[[Any, Context], AsyncIterator[Any]]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            began = measured.begin() if measured is not None else 0.0
            code = "OK"
            try:
                if guarded:
                    await self._check_token(context)
                if isinstance(request, Malformed):
                    raise request.error
                async for message in inner(request, context):
                    yield message
            except GeneratorExit:
                code = "CANCELLED"
                raise
            except BaseException as error:
                code = self._code(error, context)
                await self._fail(method, error, context)
            finally:
                if measured is not None:
                    measured.end(began, code)

        return call

    async def _check_token(self, context: Context) -> None:
        if not self._token.accepts(context.invocation_metadata()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, auth.REFUSAL)

    @staticmethod
    def _code(error: BaseException, context: Context) -> str:
        if isinstance(error, FlottaError):
            return error.grpc_code
        if isinstance(error, asyncio.CancelledError) or _stream_is_gone(error):
            return "CANCELLED"
        if isinstance(error, grpc.aio.AbortError):
            code = context.code()
            return code.name if isinstance(code, grpc.StatusCode) else _CODE_NAMES.get(code, "UNKNOWN")
        if isinstance(error, NotImplementedError) and context.code() == grpc.StatusCode.UNIMPLEMENTED:
            return "UNIMPLEMENTED"
        return "INTERNAL"

    async def _fail(self, method: str, error: BaseException, context: Context) -> NoReturn:
        """Answer with the error's status; always raises."""
        if isinstance(error, FlottaError):
            await context.abort(status.grpc_code(error), error.message, status.trailers(error))
        if isinstance(error, asyncio.CancelledError | grpc.aio.AbortError) or _stream_is_gone(error):
            raise error
        if isinstance(error, NotImplementedError) and context.code() == grpc.StatusCode.UNIMPLEMENTED:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here")
        identifier = secrets.token_hex(6)
        if not isinstance(error, Exception):
            self._log.critical("invariant broken in a handler", method=method, id=identifier, reason=str(error))
            self._on_fatal(error)
        else:
            self._log.error("unexpected error in a handler", method=method, id=identifier, exc_info=error)
        text = f"Internal error {identifier}; the server's log has more under this id"
        await context.abort(grpc.StatusCode.INTERNAL, text)
        raise InvariantError("abort returned")


def _stream_is_gone(error: BaseException) -> bool:
    """Nobody is there to be answered, and nothing went wrong here. (The library does not export the classes.)"""
    return isinstance(error, grpc.aio.BaseError) and type(error).__name__ in _STREAM_GONE
