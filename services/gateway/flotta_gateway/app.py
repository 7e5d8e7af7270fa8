"""Puts a gateway together: `await start(settings)` serves until `stop()`.

It serves from the first moment on: requests that come before the first shard map wait for it, within their deadline.
"""

from __future__ import annotations

import random

from flotta_proto.flotta.kv_pb2_grpc import add_KvServicer_to_server
from flotta_proto.kvdb.gateway_pb2_grpc import add_KvGatewayServicer_to_server
from flotta_runtime.clock import SYSTEM_CLOCK
from flotta_runtime.http import HttpServer, status_server
from flotta_runtime.links import Links, open_links
from flotta_runtime.logging import get_logger
from flotta_runtime.metrics import Metrics
from flotta_runtime.native_tls import client_tls
from flotta_runtime.readiness import follow_readiness
from flotta_runtime.server import CALLS_MAX, MESSAGE_BYTES_MAX, REQUEST_BYTES_MAX, build_server, dialer
from flotta_runtime.tasks import Supervisor
from flotta_runtime.tls_watch import follow_files
from flotta_runtime.tracing import open_tracer
from flotta_runtime.turns import Turns

from flotta_gateway.batch_service import GatewayBatches
from flotta_gateway.callers import Callers
from flotta_gateway.core.deadlines import Patience
from flotta_gateway.core.scans import ScanLimits
from flotta_gateway.core.shard_map import ShardMap
from flotta_gateway.core.validation import Limits
from flotta_gateway.dispatcher import NO_SHARDS, Dispatcher, DispatcherOptions
from flotta_gateway.grpc_session import grpc_sessions
from flotta_gateway.link_pool import LinkPool
from flotta_gateway.link_session import link_sessions
from flotta_gateway.map_cache import MapCache, MapOptions
from flotta_gateway.multi import MultiLimits
from flotta_gateway.scanner import Scanner
from flotta_gateway.service import GatewayService, MultiService
from flotta_gateway.settings import GatewaySettings
from flotta_gateway.storage_link import LinkOptions, SessionFactory
from flotta_gateway.telemetry import Telemetry
from flotta_gateway.tracing import CallTracer

SERVICE_NAME = "kvdb.gateway.KvGateway"
KV_SERVICE_NAME = "flotta.kv.v1.Kv"
SERVICES = (SERVICE_NAME, KV_SERVICE_NAME)


class Gateway:
    """A gateway; made by `start`."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        token = settings.token()
        self.metrics = Metrics("gateway")
        telemetry = Telemetry(self.metrics)
        self._tracer = open_tracer(settings.otlp_endpoint, "gateway", self.metrics)
        callers = Callers(
            self.metrics, tenant_rate=settings.tenant_rate_max, principal_rate=settings.principal_rate_max
        )
        self._supervisor = Supervisor("gateway")
        self._tls = settings.tls()
        self.maps = MapCache(
            settings.coordinators,
            dialer(None, self._tls),
            self._map_changed,
            random.random,
            MapOptions(refresh_ms_min=settings.map_refresh_min_ms, idle_ms=settings.map_idle_ms),
        )
        options = link_options(settings)
        self._turns = Turns()
        self._native: Links | None = None
        ways: tuple[SessionFactory, ...] = (grpc_sessions(options, token, self._tls),)
        if settings.transport == "native":
            # A link has room for all that may wait for its node: the bound in `options` is met first.
            room = settings.node_bytes_max + settings.node_bytes_max // 4 + MESSAGE_BYTES_MAX
            log = get_logger("gateway.links")
            self._native = open_links(
                self._turns,
                unsent_bytes_max=room,
                keepalive_ms=settings.keepalive_ms,
                tls=client_tls(self._tls),
                report=lambda text: log.warning("link closed", reason=text),
            )
            ways = (link_sessions(self._native, options, token), *ways)
        self.links = LinkPool(self._supervisor, options, ways, random.random)
        self.dispatcher = Dispatcher(
            self.maps,
            self.links,
            telemetry,
            SYSTEM_CLOCK,
            random.random,
            Limits(value_bytes_max=settings.value_bytes_max),
            DispatcherOptions(
                calls_max=settings.requests_max,
                bytes_max=settings.request_bytes_max,
                attempt_ms=settings.attempt_ms,
            ),
            callers,
            CallTracer(self._tracer) if self._tracer is not None else None,
        )
        self.links.events = self.dispatcher
        patience = Patience(settings.deadline_default_ms, settings.deadline_max_ms)
        multi = MultiLimits(settings.batch_items_max, settings.batch_bytes_max)
        scans = ScanLimits(settings.scan_rows_max, settings.scan_page_bytes_max, settings.scan_bytes_max)
        self.scanner = Scanner(self.dispatcher, self.maps, SYSTEM_CLOCK, scans, callers)
        telemetry.watch(self.dispatcher, self.scanner, self.maps, self.links)
        service = GatewayService(self.dispatcher, SYSTEM_CLOCK, patience)
        multi_service = MultiService(self.dispatcher, self.scanner, SYSTEM_CLOCK, patience, multi)
        self._server = build_server(
            [
                (add_KvGatewayServicer_to_server, service, SERVICE_NAME),
                (add_KvServicer_to_server, multi_service, KV_SERVICE_NAME),
            ],
            listen=settings.listen,
            token=token,
            transport=settings.transport,
            batches=(GatewayBatches(self.dispatcher, SYSTEM_CLOCK, patience, multi),),
            # Refusals are to be the dispatcher's, which says RATE_LIMITED.
            calls_max=max(CALLS_MAX, 2 * settings.requests_max),
            request_bytes_max=max(REQUEST_BYTES_MAX, 2 * settings.request_bytes_max),
            metrics=self.metrics,
            tls=self._tls,
            turns=self._turns,
        )
        self._http: HttpServer | None = None
        self._stopped = False
        self.port = 0
        self.http_port = 0

    async def start(self) -> None:
        """Bind both ports and begin to follow the map. StartupError when a port cannot be had."""
        await self._supervisor.start()
        if self._native is not None:
            self._supervisor.spawn("links", self._native.run())
        try:
            self.port = await self._server.start(waiting=SERVICES)
            http = status_server(self.metrics, self._readiness, self._settings.http_address(self.port))
            self.http_port = await http.start()
            self._http = http
        except BaseException:
            await self._server.stop(0)
            await self._supervisor.stop()
            if self._native is not None:
                self._native.shut_down()
            raise
        if self._tls is not None:
            self._supervisor.spawn("tls files", follow_files(self._tls))
        if self._tracer is not None:
            self._supervisor.spawn("tracing", self._tracer.run())
        self._supervisor.spawn("health", follow_readiness(self._server, SERVICES, self._readiness))
        self._supervisor.spawn("map watch", self.maps.watch())
        self._supervisor.spawn("map refresh", self.maps.refresh())

    async def wait(self) -> None:
        """Return once stopped; raise when a part of it failed."""
        await self._supervisor.wait()

    async def stop(self) -> None:
        """Take no new requests, let the open ones be answered, then close everything."""
        if self._stopped:
            return
        self._stopped = True
        await self._server.stop(self._settings.stop_timeout_ms)
        self.dispatcher.close()
        if self._http is not None:
            await self._http.stop()
        await self._supervisor.stop()
        if self._tracer is not None:
            await self._tracer.close()
        if self._native is not None:
            self._native.shut_down()

    def _map_changed(self, shard_map: ShardMap) -> None:
        self.links.keep(shard_map.addresses())
        self.dispatcher.map_changed()

    def _readiness(self) -> tuple[bool, str]:
        shard_map = self.maps.current
        if shard_map.initialised:
            return True, f"shard map version {shard_map.version}"
        return False, NO_SHARDS if self.maps.answered else "no coordinator has given a shard map yet"


def link_options(settings: GatewaySettings) -> LinkOptions:
    return LinkOptions(
        operations_max=settings.node_operations_max,
        bytes_max=settings.node_bytes_max,
        message_bytes_max=MESSAGE_BYTES_MAX,
        connect_timeout_ms=settings.connect_timeout_ms,
        keepalive_ms=settings.keepalive_ms,
        keepalive_timeout_ms=settings.keepalive_ms,
    )


async def start(settings: GatewaySettings) -> Gateway:
    """A serving gateway."""
    gateway = Gateway(settings)
    await gateway.start()
    return gateway
