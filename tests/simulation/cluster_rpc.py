"""gRPC of the simulated cluster: the generated stubs and servicers of production, with messages as bytes between them.

The client half is a channel as the stubs see it, the server half takes servicers as `grpc.aio.Server` does, wrapped in
the runtime's own `HandlerWrapper`. Deadlines, cancellation, trailers, refused and broken connections are as gRPC has
them; flow control is not modelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

import grpc
import grpc.aio
from cluster_wires import REFUSED, End, Endpoint, Wires
from flotta_consensus.sim.checkers import SafetyViolation
from flotta_consensus.sim.loop import SimLoop
from flotta_runtime.auth import TokenCheck, token_metadata
from flotta_runtime.handlers import HandlerWrapper
from flotta_runtime.server import Channel, Dial

TOKEN = "simulated"
RPC = "rpc"
Metadata = tuple[tuple[str, str], ...]


def status_error(code: grpc.StatusCode, details: str, trailing: Iterable[tuple[str, str]] = ()) -> Exception:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


def broken_error(reason: str, address: str) -> Exception:
    """As grpcio words it: a call that was never sent can be told from one that may have arrived."""
    if reason == REFUSED:
        return status_error(grpc.StatusCode.UNAVAILABLE, f"failed to connect to all addresses; last error: {address}")
    return status_error(grpc.StatusCode.UNAVAILABLE, f"the connection to {address} broke: {reason}")


def failure_in(message: tuple[Any, ...]) -> Exception | None:
    """The error that a final message stands for; None when all went well."""
    _, code, details, trailing = message
    return None if code is grpc.StatusCode.OK else status_error(code, details, trailing)


class _Unary:
    def __init__(self, channel: SimChannel, path: str, serialize: Any, parse: Any) -> None:
        self._channel, self._path, self._serialize, self._parse = channel, path, serialize, parse

    async def __call__(self, request: Any, timeout: float | None = None, metadata: Iterable[Any] = ()) -> Any:
        channel = self._channel
        answer = asyncio.get_running_loop().create_future()
        end = channel.open(self._path, self._serialize(request), metadata, timeout)

        def take(message: tuple[Any, ...]) -> None:
            if answer.done():
                return
            if message[0] == "message":
                answer.set_result(message[1])
            elif (failure := failure_in(message)) is not None:
                answer.set_exception(failure)

        def ended(reason: str) -> None:
            if not answer.done():
                answer.set_exception(broken_error(reason, channel.address))

        end.on_message, end.on_end = take, ended
        try:
            async with asyncio.timeout(timeout):
                return self._parse(await answer)
        except TimeoutError:
            raise status_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
        finally:
            end.close()


class _Stream:
    """A call whose answer is a stream."""

    def __init__(self, end: End, parse: Any, address: str) -> None:
        self._end, self._parse = end, parse
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        end.on_message = self._messages.put_nowait
        end.on_end = lambda reason: self._messages.put_nowait(("broken", broken_error(reason, address)))

    async def read(self) -> Any:
        message = await self._messages.get()
        if message[0] == "message":
            return self._parse(message[1])
        self._messages.put_nowait(message)  # the end stays the end
        failure = message[1] if message[0] == "broken" else failure_in(message)
        if failure is not None:
            raise failure
        return grpc.aio.EOF

    def cancel(self) -> None:
        self._end.close()


class SimChannel:
    """A channel to one address, as stubs and `flotta_runtime.server.Channel` have it."""

    def __init__(self, wires: Wires, owner: Endpoint, address: str, token: str | None) -> None:
        self._wires = wires
        self._owner = owner
        self.address = address
        self.metadata: Metadata = token_metadata(token)
        self.grpc = self

    def open(self, path: str, payload: bytes, metadata: Iterable[Any], timeout: float | None) -> End:
        return self._wires.connect(self._owner, self.address, (RPC, path, payload, tuple(metadata or ()), timeout))

    def unary_unary(self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> _Unary:
        return _Unary(self, path, request_serializer, response_deserializer)

    def unary_stream(self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        def call(request: Any, timeout: float | None = None, metadata: Iterable[Any] = ()) -> _Stream:
            end = self.open(path, request_serializer(request), metadata, timeout)
            return _Stream(end, response_deserializer, self.address)

        return call

    def stream_unary(self, path: str, **_: Any) -> None:
        """Nobody in the simulation calls these; the stubs only name them."""

    stream_stream = stream_unary

    async def close(self) -> None:
        """Nothing is kept between calls."""


def sim_dial(wires: Wires, owner: Endpoint, token: str | None = TOKEN) -> Dial:
    return lambda address: cast("Channel", SimChannel(wires, owner, address, token))


class SimContext:
    """What a servicer sees of its call."""

    def __init__(self, loop: SimLoop, metadata: Metadata, timeout: float | None) -> None:
        self._loop = loop
        self._metadata = metadata
        self._end = None if timeout is None else loop.time() + timeout
        self._code: grpc.StatusCode | None = None
        self.details = ""
        self.trailing: Metadata = ()

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def time_remaining(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - self._loop.time())

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        self.trailing = tuple(metadata)

    def code(self) -> grpc.StatusCode | None:
        return self._code

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> None:
        self._code, self.details, self.trailing = code, details, tuple(trailing_metadata)
        raise grpc.aio.AbortError


class Doomed(Protocol):
    def doom(self, error: BaseException) -> None: ...


class SimServer:
    """The services of one incarnation. `add_XServicer_to_server` takes it for a server."""

    def __init__(self, process: Doomed, loop: SimLoop) -> None:
        self._process = process
        self._loop = loop
        self._handlers: dict[str, Any] = {}
        self._wrapper = HandlerWrapper(TokenCheck(TOKEN), None, process.doom)

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """The generated code names every handler twice; the other way is taken."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            self._handlers[path] = self._wrapper.wrap(path, handler)

    def serve(self, end: End, path: str, payload: bytes, metadata: Metadata, timeout: float | None) -> None:
        """Take a call that has come in."""
        context = SimContext(self._loop, metadata, timeout)
        handler = self._handlers.get(path)
        if handler is None:
            end.send(("end", grpc.StatusCode.UNIMPLEMENTED, f"{path} is not served here", ()))
            return
        task = self._loop.create_task(self._answer(handler, payload, context, end), name=path)
        end.on_end = lambda reason: task.cancel() and None

    async def _answer(self, handler: Any, payload: bytes, context: SimContext, end: End) -> None:
        request = handler.request_deserializer(payload)
        encode: Callable[[Any], bytes] = handler.response_serializer
        try:
            if handler.response_streaming:
                async for message in handler.unary_stream(request, context):
                    end.send(("message", encode(message)))
            else:
                end.send(("message", encode(await handler.unary_unary(request, context))))
            end.send(("end", grpc.StatusCode.OK, "", context.trailing))
        except grpc.aio.AbortError as aborted:
            if context.code() is grpc.StatusCode.INTERNAL:
                cause = aborted.__context__
                self._process.doom(SafetyViolation(f"a handler raised {type(cause).__name__}: {cause}"))
            end.send(("end", context.code(), context.details, context.trailing))
