"""What stands around every gRPC handler: token, metrics, errors to status.

Handlers raise FlottaErrors and never touch status codes. A request that is no message is INVALID_ARGUMENT, and the
handler never sees it. An unexpected exception becomes INTERNAL with an id that is also in the log; its text stays
inside. An InvariantError ends the process.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio

from flotta_runtime import auth, fatal, status
from flotta_runtime.call_metrics import CallMetrics, MethodCounts
from flotta_runtime.errors import FlottaError, InvariantError
from flotta_runtime.logging import get_logger
from flotta_runtime.malformed import Malformed, tolerant

Context = Any  # grpc.aio.ServicerContext[request, response]; handlers of all types pass through here


# What the library raises out of reads and writes of a stream whose server stops or whose client is gone.
_STREAM_GONE = ("_ServerStoppedError", "ExecuteBatchError")
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}  # an aborted aio call tells its code as a number


class StreamGone(grpc.aio.BaseError):
    """The client of a stream is gone, or the server has stopped: nobody reads what would be written."""


class HandlerWrapper:
    """Wraps method handlers of all four kinds, the streaming ones both as async generators and as coroutines."""

    def __init__(self, token: auth.TokenCheck, metrics: CallMetrics | None, on_fatal: fatal.OnFatal) -> None:
        self._token = token
        self._metrics = metrics
        self._on_fatal = on_fatal

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
        measured = self._metrics.method(kind, method) if self._metrics is not None else None
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
        measured: MethodCounts | None,
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
        measured: MethodCounts | None,
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
        if isinstance(error, asyncio.CancelledError) or stream_is_gone(error):
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
        if isinstance(error, asyncio.CancelledError | grpc.aio.AbortError) or stream_is_gone(error):
            raise error
        if isinstance(error, NotImplementedError) and context.code() == grpc.StatusCode.UNIMPLEMENTED:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here")
        await context.abort(grpc.StatusCode.INTERNAL, tell_unexpected(method, error, self._on_fatal))
        raise InvariantError("abort returned")


def tell_unexpected(method: str, error: BaseException, on_fatal: fatal.OnFatal) -> str:
    """Log what a handler of `method` raised and must not have. Returns what the caller may know of it."""
    identifier = secrets.token_hex(6)
    log = get_logger("grpc")
    if isinstance(error, Exception):
        log.error("unexpected error in a handler", method=method, id=identifier, exc_info=error)
    else:
        log.critical("invariant broken in a handler", method=method, id=identifier, reason=str(error))
        on_fatal(error)
    return f"Internal error {identifier}; the server's log has more under this id"


def stream_is_gone(error: BaseException) -> bool:
    """Nobody is there to be answered, and nothing went wrong here. (The library does not export the classes.)"""
    if isinstance(error, StreamGone):
        return True
    return isinstance(error, grpc.aio.BaseError) and type(error).__name__ in _STREAM_GONE
