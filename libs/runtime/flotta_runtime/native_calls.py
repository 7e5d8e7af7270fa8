"""What handlers see of a call that the native server brought: the context of grpc.aio, as far as handlers use it.

The same servicers run on both transports. Differences that a handler can meet, all of them on purpose:
- Initial metadata can be sent on streams only.
- `abort` takes note of the status and raises; it is sent when the handler has ended, whatever it does until then.

Invariants:
- A message counts as consumed when the handler is given it; until then the client's window stays shut for its bytes.
- `write` returns at once while less than a window of bytes is unsent, and waits for room above that.
- Once the client is gone, or the server has stopped, reads and writes raise `StreamGone`.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, NoReturn, Protocol

import grpc
import grpc.aio

from flotta_runtime.batches import Metadata, RpcPeer
from flotta_runtime.handlers import StreamGone

_OK = int(grpc.StatusCode.OK.value[0])
Pairs = Sequence[tuple[str, str | bytes]]


class StreamServer(Protocol):
    """The part of `flotta_native.RpcServer` that streams use."""

    def initial_metadata(self, call: int, metadata: Pairs) -> None: ...
    def send_many(self, messages: Sequence[tuple[int, bytes]]) -> list[int]: ...
    def finish(self, call: int, code: int, message: str = "", trailers: Pairs | None = None) -> None: ...
    def credit(self, call: int, bytes: int) -> None: ...


class CallContext:
    """The context of a unary call, and what a stream's has in common with it."""

    __slots__ = ("_arrived_s", "_callbacks", "_code", "_details", "_ended", "_gone", "_metadata", "_peer",
                 "_remaining_s", "_trailers")  # fmt: skip

    def __init__(self, metadata: Metadata | None, remaining_ms: float | None, peer: RpcPeer) -> None:
        self._metadata = metadata
        self._arrived_s = time.monotonic() if remaining_ms is not None else 0.0
        self._remaining_s = None if remaining_ms is None else remaining_ms / 1000
        self._peer = peer
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailers: Pairs = ()
        self._callbacks: list[Callable[[Any], object]] = []
        self._ended = False
        self._gone = False

    # --- what the client said

    def invocation_metadata(self) -> Metadata:
        return self._metadata or ()

    def time_remaining(self) -> float | None:
        """Seconds, or None without a deadline."""
        if self._remaining_s is None:
            return None
        return max(0.0, self._remaining_s - (time.monotonic() - self._arrived_s))

    def peer(self) -> str:
        return self._peer.address

    def peer_identity_key(self) -> str | None:
        return "x509_subject_alternative_name" if self._peer.tls_sans else None

    def peer_identities(self) -> list[bytes] | None:
        return [name.encode() for name in self._peer.tls_sans] or None

    def auth_context(self) -> dict[str, list[bytes]]:
        """Of a verified client certificate; empty without one."""
        found: dict[str, list[bytes]] = {}
        if self._peer.tls_common_name is not None:
            found["x509_common_name"] = [self._peer.tls_common_name.encode()]
        if self._peer.tls_sans:
            found["x509_subject_alternative_name"] = [name.encode() for name in self._peer.tls_sans]
        return found

    # --- what the handler says

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._details = details

    def set_trailing_metadata(self, metadata: Pairs) -> None:
        self._trailers = metadata

    def code(self) -> grpc.StatusCode | None:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Pairs:
        return self._trailers

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Pairs = ()) -> NoReturn:
        """End the call with this status; always raises."""
        self._code, self._details = code, details
        if trailing_metadata:
            self._trailers = trailing_metadata
        raise grpc.aio.AbortError(details)

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    async def send_initial_metadata(self, metadata: Pairs) -> None:
        raise grpc.aio.UsageError("the native transport sends initial metadata on streams only")

    def set_compression(self, compression: grpc.Compression) -> None:
        """Nothing: replies are compressed as the request was, where that makes them smaller."""

    def disable_next_message_compression(self) -> None:
        """Nothing, as above."""

    # --- its life

    def cancelled(self) -> bool:
        return self._gone

    def done(self) -> bool:
        return self._ended or self._gone

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self._callbacks.append(callback)

    def mark_gone(self) -> None:
        """Nobody waits for the answer any more."""
        self._gone = True

    def mark_ended(self) -> None:
        """The handler is over."""
        self._ended = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def status(self) -> tuple[int, str, Pairs | None]:
        """What the handler has left behind: code, details, trailers."""
        return (_OK if self._code is None else int(self._code.value[0])), self._details, self._trailers or None


class StreamContext(CallContext):
    """The context of a stream, and the iterator over its requests."""

    __slots__ = ("_call", "_inbox", "_input_done", "_news", "_parse", "_room", "_serialize", "_server")

    def __init__(
        self,
        server: StreamServer,
        call: int,
        opening: tuple[Metadata | None, float | None, RpcPeer],
        parse: Callable[[bytes], Any],
        serialize: Callable[[Any], bytes],
    ) -> None:
        super().__init__(*opening)
        self._server = server
        self._call = call
        self._parse = parse
        self._serialize = serialize
        self._inbox: deque[bytes] = deque()
        self._input_done = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    # --- the handler's side

    async def read(self) -> Any:
        """The next request, or grpc.aio.EOF once the client has said everything."""
        data = await self.read_bytes()
        return grpc.aio.EOF if data is None else self._parse(data)

    async def read_bytes(self) -> bytes | None:
        """The same, not yet parsed; None at the end."""
        while not self._inbox:
            if self._gone:
                raise StreamGone
            if self._input_done:
                return None
            self._news.clear()
            await self._news.wait()
        data = self._inbox.popleft()
        self._server.credit(self._call, len(data))
        return data

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (data := await self.read_bytes()) is not None:
            yield self._parse(data)

    async def write(self, message: Any) -> None:
        """Send a response; waits for room."""
        data = self._serialize(message)
        while not self._room.is_set():
            await self._room.wait()
        if self._gone:
            raise StreamGone
        if self._server.send_many(((self._call, data),)):
            self._room.clear()

    async def send_initial_metadata(self, metadata: Pairs) -> None:
        self._server.initial_metadata(self._call, tuple(metadata))

    # --- the server's side

    def take(self, message: bytes) -> None:
        """A request has come."""
        self._inbox.append(message)
        self._news.set()

    def take_end(self) -> None:
        """The client has said everything."""
        self._input_done = True
        self._news.set()

    def has_room(self) -> None:
        """Enough has been sent."""
        self._room.set()

    def mark_gone(self) -> None:
        super().mark_gone()
        self._news.set()
        self._room.set()


class Route:
    """One method that has a handler."""

    __slots__ = ("behaviour", "client_streams", "lasting", "parse", "path", "serialize", "server_streams")

    def __init__(self, path: str, handler: grpc.RpcMethodHandler[Any, Any], lasting: bool) -> None:
        self.path = path
        self.client_streams = bool(handler.request_streaming)
        self.server_streams = bool(handler.response_streaming)
        named: dict[tuple[bool, bool], Any] = {
            (False, False): handler.unary_unary,
            (False, True): handler.unary_stream,
            (True, False): handler.stream_unary,
            (True, True): handler.stream_stream,
        }
        self.behaviour: Callable[[Any, Any], Any] = named[self.client_streams, self.server_streams]
        self.parse: Callable[[bytes], Any] = handler.request_deserializer or _as_it_is
        self.serialize: Callable[[Any], bytes] = handler.response_serializer or _as_it_is
        self.lasting = lasting

    @property
    def streams(self) -> bool:
        return self.client_streams or self.server_streams

    async def serve(self, context: StreamContext) -> None:
        """Run the handler of a stream to its end, in either form: an async generator, or a reader and writer."""
        request: Any = context
        if not self.client_streams:
            data = await context.read_bytes()
            if data is None:
                await context.abort(grpc.StatusCode.INTERNAL, "the request has no message")
            request = self.parse(data)
        answering = self.behaviour(request, context)
        if inspect.isasyncgen(answering):
            async with aclosing(answering):
                async for message in answering:
                    await context.write(message)
            return
        response = await answering
        if not self.server_streams:
            await context.write(response)


def _as_it_is(data: Any) -> Any:
    return data
