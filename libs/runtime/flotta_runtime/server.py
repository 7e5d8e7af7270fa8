"""gRPC servers and channels as every service makes them.

Each handler is wrapped once, when its service is added: token check, call metrics, errors to status and trailers.
(The same as interceptors, without a coroutine per interceptor and call.) Health v1 and reflection v1alpha + v1 are
on every port. A second server on a port fails loudly.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from flotta_runtime import fatal
from flotta_runtime.auth import TokenCheck, token_metadata
from flotta_runtime.batches import BatchService
from flotta_runtime.call_metrics import CallMetrics
from flotta_runtime.grpcio_port import GrpcioPort
from flotta_runtime.handlers import HandlerWrapper
from flotta_runtime.metrics import Metrics
from flotta_runtime.reflected import ReflectedPool
from flotta_runtime.settings import Transport, join_address, split_address
from flotta_runtime.tls import Tls, open_channel
from flotta_runtime.turns import Turns

if TYPE_CHECKING:
    from flotta_native import LinkHub

MESSAGE_BYTES_MAX = 17 * 1024 * 1024  # a 16 MiB value, its key and the envelope
METADATA_BYTES_MAX = 64 * 1024
CALLS_MAX = 50_000  # in flight on a port; the bounds of the services are lower, and said in their own words
REQUEST_BYTES_MAX = 512 * 1024 * 1024
REFLECTION_SERVICES = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")
HEALTH_SERVICE = "grpc.health.v1.Health"

Service = tuple[Callable[[Any, Any], None], object, str]
"""(add_XServicer_to_server, servicer, full service name)"""


def server_options(message_bytes_max: int = MESSAGE_BYTES_MAX) -> list[tuple[str, Any]]:
    """Channel arguments of our servers."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        # Clients may ping when they like: a client behind a NAT must not be answered GOAWAY too_many_pings.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        ("grpc.http2.max_ping_strikes", 0),
        # And a client that is gone without a FIN is noticed.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # the own pings of the library: a minute by default
        ("grpc.http2.max_pings_without_data", 0),
    ]


def channel_options(message_bytes_max: int = MESSAGE_BYTES_MAX) -> list[tuple[str, Any]]:
    """Channel arguments of our clients: limits as the servers', quick reconnects, no sharing of connections."""
    return [
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),  # a retry is our decision, never the transport's
        ("grpc.service_config_disable_resolution", 1),
    ]


class Channel:
    """A client connection: `.grpc` for stubs, `.metadata` (the internal token) to pass with each call, `close()`.

    Take `.grpc` anew for each call: once certificates are replaced it is another connection. Calls that run on the one
    before keep it until they end.
    """

    __slots__ = ("_generation", "_grpc", "_options", "_tls", "address", "metadata")

    def __init__(self, address: str, token: str | None, message_bytes_max: int, tls: Tls | None) -> None:
        self.address = address
        self.metadata = token_metadata(token)
        self._tls = tls
        self._options = channel_options(message_bytes_max)
        self._generation = tls.generation if tls is not None else 0
        self._grpc = open_channel(tls, address, self._options)

    @property
    def grpc(self) -> grpc.aio.Channel:
        """For stubs."""
        if self._tls is not None and self._tls.generation != self._generation:
            self._generation = self._tls.generation
            self._grpc = open_channel(self._tls, self.address, self._options)
        return self._grpc

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        await self._grpc.close()


Dial = Callable[[str], Channel]
"""Makes the connection to an address: how a service is told its token and TLS settings, once."""


def channel(
    address: str, token: str | None = None, *, message_bytes_max: int = MESSAGE_BYTES_MAX, tls: Tls | None = None
) -> Channel:
    """A connection to `address` (host:port), over TLS if `tls` says so. Connects when first used."""
    return Channel(address, token, message_bytes_max, tls)


def dialer(token: str | None, tls: Tls | None) -> Dial:
    """What a service makes its connections with."""
    return lambda address: channel(address, token, tls=tls)


class Port(Protocol):
    """What carries calls: `grpcio_port.GrpcioPort` or `native_port.NativePort`."""

    def add(self, path: str, handler: grpc.RpcMethodHandler[Any, Any], *, lasting: bool) -> None: ...
    async def start(self, listen: str) -> int: ...
    async def stop(self, grace_ms: int) -> None: ...


class GrpcServer:
    """One gRPC port. Make it with `build_server`, then `await start()` (the bound port) and `await stop(grace_ms)`."""

    def __init__(
        self,
        services: Sequence[Service],
        port: Port,
        listen: str,
        *,
        token: TokenCheck,
        calls: CallMetrics | None,
        on_fatal: fatal.OnFatal,
    ) -> None:
        self.listen = listen
        self.port = 0
        self.services = tuple(name for _, _, name in services)
        self._port = port
        wrapper = HandlerWrapper(token, calls, on_fatal)
        plain = HandlerWrapper(token, None, on_fatal)  # probes are not counted among the calls
        wrapping = _Wrapping(port, wrapper)
        for add, servicer, name in services:
            add(servicer, wrapping)
            if name not in wrapping.added:
                raise ValueError(f"the function given for {name} added {sorted(wrapping.added)}: use generated code's")
        self._health = health.aio.HealthServicer()
        adding: Any = _Wrapping(port, plain, lasting=True)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, adding)
        self._add_reflection(adding, (*self.services, HEALTH_SERVICE, *REFLECTION_SERVICES))

    @staticmethod
    def _add_reflection(wrapping: _Wrapping, names: tuple[str, ...]) -> None:
        servicer = reflection.aio.ReflectionServicer(names, pool=ReflectedPool())
        # v1 and v1alpha have the same messages under other package names.
        handler = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        for name in REFLECTION_SERVICES:
            wrapping.add_registered_method_handlers(name, {"ServerReflectionInfo": handler})

    async def start(self, *, waiting: Collection[str] = ()) -> int:
        """Bind and serve; health says NOT_SERVING of the services in `waiting` until it is told otherwise.
        StartupError, naming the address, when another process has the port."""
        for name in self.services:
            await self.set_serving(name, serving=name not in waiting)
        self.port = await self._port.start(self.listen)
        self.listen = join_address(split_address(self.listen)[0], self.port)
        return self.port

    async def set_serving(self, service: str, *, serving: bool) -> None:
        """Set what grpc.health.v1 says of one service ("" is the whole server)."""
        value = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(service, value)

    async def stop(self, grace_ms: int = 2_000) -> None:
        """Answer NOT_SERVING, take no new calls, let the running ones finish within `grace_ms`, then cut them off."""
        await self._health.enter_graceful_shutdown()
        await self._port.stop(grace_ms)


class _Wrapping:
    """Stands in for a grpc.aio.Server while a service adds itself, and wraps what it adds."""

    def __init__(self, port: Port, wrapper: HandlerWrapper, *, lasting: bool = False) -> None:
        self._port = port
        self._wrapper = wrapper
        self._lasting = lasting
        self.added: set[str] = set()

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Nothing: generated code also calls the next method with the same handlers by name, and a handler added
        here would be served without what stands around it. `GrpcServer` checks that the next one was called."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            self._port.add(path, self._wrapper.wrap(path, handler), lasting=self._lasting)
        self.added.add(service)


def build_server(
    services: Sequence[Service],
    *,
    listen: str,
    token: str,
    transport: Transport = "native",
    metrics: Metrics | None = None,
    tls: Tls | None = None,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    calls_max: int = CALLS_MAX,
    request_bytes_max: int = REQUEST_BYTES_MAX,
    batches: Sequence[BatchService] = (),
    links: LinkHub | None = None,
    turns: Turns | None = None,
    on_fatal: fatal.OnFatal = fatal.die,
) -> GrpcServer:
    """A server for `services`: (add_XServicer_to_server, servicer, "package.Service") each.

    Protected methods (auth.py) need `token`. A handler raises FlottaErrors; it never aborts by hand. Above
    `calls_max` calls in flight the server answers RESOURCE_EXHAUSTED. `on_fatal` is called with an InvariantError
    (or any other non-Exception) raised by a handler; by default it ends the process. With `tls` that has a certificate
    the port speaks TLS only.

    Of the native transport only: above `request_bytes_max` bytes of requests in work it answers RESOURCE_EXHAUSTED;
    methods of `batches` are theirs, not the servicer's that has them too; connections of `links` come to the same port;
    `turns` is that of the service's other parts, so that what they do in a turn is one turn.
    """
    check = TokenCheck(token)
    calls = CallMetrics(metrics) if metrics is not None else None
    port: Port
    if transport == "native":
        from flotta_runtime.native_port import NativePort, PortLimits

        port = NativePort(
            limits=PortLimits(
                message_bytes_max=message_bytes_max,
                metadata_bytes_max=METADATA_BYTES_MAX,
                calls_max=calls_max,
                request_bytes_max=request_bytes_max,
            ),
            token=check,
            tls=tls,
            batches=batches,
            links=links,
            turns=turns,
            metrics=metrics,
            calls=calls,
            on_fatal=on_fatal,
        )
    else:
        port = GrpcioPort(server_options(message_bytes_max), calls_max, tls)
    return GrpcServer(services, port, listen, token=check, calls=calls, on_fatal=on_fatal)
