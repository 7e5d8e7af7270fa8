"""The admin service, assembled: `await start(settings)` gives a running one with `.port`, `.wait()` and `.stop()`."""

from __future__ import annotations

import asyncio

from flotta_runtime.clock import SYSTEM_CLOCK
from flotta_runtime.errors import FlottaError
from flotta_runtime.http import HttpServer
from flotta_runtime.logging import get_logger
from flotta_runtime.metrics import Metrics
from flotta_runtime.rates import Rates
from flotta_runtime.server import dialer
from flotta_runtime.tasks import Supervisor
from flotta_runtime.tls_watch import follow_files

from flotta_admin.app import make_app
from flotta_admin.compactions import Compactions
from flotta_admin.coordinator import Coordinators
from flotta_admin.copying.copier import Copier
from flotta_admin.guard import Guard
from flotta_admin.probe import NodeOrders, NodeProbe
from flotta_admin.routes import Context
from flotta_admin.settings import AdminSettings
from flotta_admin.succession import Successions

PROBE_EVERY_S = 1.0


class AdminService:
    """A running admin service. `port` is the one it got; `metrics` its registry."""

    def __init__(self, settings: AdminSettings) -> None:
        self.metrics = Metrics("admin")
        self.port = 0
        self._readiness = (False, "no coordinator has been asked yet")
        self._tls = settings.tls()
        dial = dialer(settings.token(), self._tls)
        self._coordinators = Coordinators(
            settings.coordinators,
            dial,
            call_timeout_ms=settings.call_timeout_ms,
            request_timeout_ms=settings.request_timeout_ms,
        )
        self._probe = NodeProbe(dialer(None, self._tls), settings.ping_timeout_ms)
        self._orders = NodeOrders(dialer(settings.token(), self._tls), settings.call_timeout_ms)
        self._copier = Copier(self._coordinators, dial, SYSTEM_CLOCK, settings.backup_dir)
        self._compactions = Compactions(self._coordinators, self._orders)
        context = Context(
            self._coordinators,
            self._probe,
            self._orders,
            self._copier,
            self._compactions,
            Successions(settings.coordinators, dial, self._orders),
            self.metrics,
            SYSTEM_CLOCK,
            lambda: self._readiness,
        )
        per_minute = settings.rate_limit_per_minute
        rates = Rates(per_minute / 60, per_minute) if settings.rate_limit_enabled else None
        guard = Guard(make_app(context), settings.key(), settings.networks(), self.metrics, SYSTEM_CLOCK, rates)
        self._http = HttpServer(
            guard,
            settings.listen,
            connections_max=settings.connections_max,
            grace_ms=settings.stop_timeout_ms,
            tls=self._tls,
        )
        self._supervisor = Supervisor("admin")
        self._log = get_logger("admin", service="admin")

    async def start(self) -> None:
        """Serve; StartupError when the port is taken."""
        self.port = await self._http.start()
        await self._supervisor.start()
        if self._tls is not None:
            self._supervisor.spawn("tls files", follow_files(self._tls))
        self._supervisor.spawn("readiness", self._watch_readiness())
        self._log.info("serving", port=self.port)

    async def wait(self) -> None:
        """Return when stopped; raise when a part of it failed."""
        await self._supervisor.wait()

    async def stop(self) -> None:
        """Finish open requests, then close everything."""
        await self._http.stop()
        await self._supervisor.stop()
        await self._copier.close()
        await self._compactions.close()
        await self._coordinators.close()
        await self._probe.close()
        await self._orders.close()

    async def _watch_readiness(self) -> None:
        while True:
            try:
                await self._coordinators.probe()
                self._readiness = (True, "a coordinator leader answers")
            except FlottaError as error:
                self._readiness = (False, f"no coordinator leader answers: {error.message}")
            await asyncio.sleep(PROBE_EVERY_S)


async def start(settings: AdminSettings) -> AdminService:
    """A running admin service. The caller stops it."""
    service = AdminService(settings)
    await service.start()
    return service
