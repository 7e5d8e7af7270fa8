"""A session over one gRPC stream, `Shards.Execute`.

Invariants: nothing is written before the node's greeting; a connection that no longer carries bytes is noticed by
keepalive pings within seconds.
"""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from flotta_runtime.auth import token_metadata
from flotta_runtime.status import metadata_value
from flotta_runtime.tls import Tls, open_channel

from flotta_gateway.storage_link import Carrier, LinkOptions, SessionEnded, SessionFactory

GREETING = "x-flotta-accepted"
_EXECUTE = "/flotta.storage.v1.Shards/Execute"
_Stream = grpc.aio.StreamStreamCall[bytes, bytes]


def grpc_sessions(options: LinkOptions, token: str, tls: Tls | None = None) -> SessionFactory:
    """Sessions over gRPC."""
    return lambda address, carrier: GrpcSession(address, carrier, options, token, tls)


class GrpcSession:
    """Implements `storage_link.Session`."""

    def __init__(self, address: str, carrier: Carrier, options: LinkOptions, token: str, tls: Tls | None) -> None:
        self._address = address
        self._carrier = carrier
        self._options = options
        self._tls = tls
        self._metadata = grpc.aio.Metadata(*token_metadata(token))
        self._wake = asyncio.Event()
        self._wake.set()  # what came before the connection was there
        self._last = False
        self._channel: grpc.aio.Channel | None = None
        self._stream: _Stream | None = None

    async def connect(self) -> None:
        timeout_ms = self._options.connect_timeout_ms
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                channel = await self._connected()
        except TimeoutError as error:
            raise SessionEnded(f"no connection within {timeout_ms} ms") from error
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(_EXECUTE)
        self._stream = stream = method(metadata=self._metadata, wait_for_ready=False)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                if metadata_value(await stream.initial_metadata(), GREETING) is None:
                    code = await stream.code()
                    raise SessionEnded(f"{code.name}: {await stream.details()}")
        except TimeoutError as error:
            raise SessionEnded(f"no greeting within {timeout_ms} ms") from error

    async def carry(self) -> None:
        stream = self._stream
        if stream is None:
            raise SessionEnded("it was never connected")
        # Whichever side notices the end first takes the other along.
        reader = asyncio.create_task(self._read(stream), name=f"link.read {self._address}")
        writer = asyncio.create_task(self._write(stream), name=f"link.write {self._address}")
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            # The reader learns the status the stream ended with, the writer only that it ended.
            await asyncio.wait((reader,), timeout=1)
        finally:
            stream.cancel()
            for task in (reader, writer):
                task.cancel()
            ended = await asyncio.gather(reader, writer, return_exceptions=True)
        for error in ended:
            if isinstance(error, SessionEnded):
                raise error
            if isinstance(error, Exception):
                raise SessionEnded(f"{type(error).__name__}: {error}") from error
        raise SessionEnded("the stream ended")

    def wake(self) -> None:
        self._wake.set()

    def finish(self) -> None:
        self._last = True
        self._wake.set()

    async def close(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
        if self._channel is not None:
            await self._channel.close()

    async def _connected(self) -> grpc.aio.Channel:
        self._channel = channel = open_channel(self._tls, self._address, self._channel_options())
        state = channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                raise SessionEnded("the connection was refused")
            await channel.wait_for_state_change(state)
            state = channel.get_state(try_to_connect=True)
        return channel

    async def _read(self, stream: _Stream) -> None:
        while True:
            try:
                data = await stream.read()
            except grpc.aio.AioRpcError as error:
                raise SessionEnded(f"{error.code().name}: {error.details()}") from error
            if not isinstance(data, bytes):  # grpc.aio.EOF
                raise SessionEnded("the node ended the stream")
            self._carrier.received(data)

    async def _write(self, stream: _Stream) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while frame := self._carrier.next_frame():
                await stream.write(frame)
            if self._last:
                await stream.done_writing()
                return

    def _channel_options(self) -> list[tuple[str, int]]:
        options = self._options
        return [
            # Every attempt to connect is a fresh channel of its own, so our pauses are the only ones.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", options.reconnect_ms),
            ("grpc.min_reconnect_backoff_ms", options.connect_timeout_ms),
            ("grpc.max_reconnect_backoff_ms", options.connect_timeout_ms),
            ("grpc.keepalive_time_ms", options.keepalive_ms),
            ("grpc.keepalive_timeout_ms", options.keepalive_timeout_ms),
            # The library's own pings are waited for this long, a minute by default, and hold up the keepalive's.
            ("grpc.http2.ping_timeout_ms", options.keepalive_timeout_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.max_send_message_length", options.message_bytes_max),
            ("grpc.max_receive_message_length", options.message_bytes_max),
            ("grpc.enable_http_proxy", 0),
        ]
