"""Who asks: requests counted by tenant and principal, and held to a rate where one is set.

Names are the clients' own word: nothing checks them, so they divide a load that is willing, and protect from nobody.
Invariants: the number of names that are counted apart is bounded, later ones are counted together; a request without
names is held to the rates as one nameless tenant, so that leaving names out gets nobody more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flotta_runtime.errors import RateLimited
from flotta_runtime.metrics import Metrics
from flotta_runtime.rates import Rates

from flotta_gateway.core.operations import Asked

if TYPE_CHECKING:
    from prometheus_client import Counter

NAMES_MAX: Final = 200  # a series each; more would be a burden for whoever scrapes
OTHERS: Final = "(others)"


class Callers:
    """Implements the dispatcher's `Admission`. A rate of 0 is none; `burst` is what it gives in one second."""

    def __init__(self, metrics: Metrics, *, tenant_rate: int = 0, principal_rate: int = 0) -> None:
        labels = ("tenant", "principal")
        self._requests = metrics.counter(
            "flotta_gateway_caller_requests_total", "Requests that named a tenant or a principal.", labels
        )
        self._limited = metrics.counter(
            "flotta_gateway_caller_limited_total", "Requests over the rate of their tenant or principal.", labels
        )
        self._counted: dict[tuple[str, str], Counter] = {}
        self._tenants = Rates(tenant_rate, tenant_rate) if tenant_rate else None
        self._principals = Rates(principal_rate, principal_rate) if principal_rate else None

    def admit(self, request: Asked, now_ms: float) -> None:
        """Count a request; RateLimited when it is over a rate."""
        caller = ("", "")
        if request.HasField("ctx"):
            caller = (request.ctx.tenant_id, request.ctx.principal)
            if caller != ("", ""):
                self._count(caller)
        if self._tenants is not None:
            self._check("tenant_id", caller, self._tenants.admit(caller[0], now_ms))
        if self._principals is not None:
            self._check("principal", caller, self._principals.admit(caller, now_ms))

    def _count(self, caller: tuple[str, str]) -> None:
        child = self._counted.get(caller)
        if child is None:
            child = self._requests.labels(*self._names(caller))
            if len(self._counted) < NAMES_MAX:
                self._counted[caller] = child
        child.inc()

    def _names(self, caller: tuple[str, str]) -> tuple[str, str]:
        return caller if caller in self._counted or len(self._counted) < NAMES_MAX else (OTHERS, OTHERS)

    def _check(self, field: str, caller: tuple[str, str], wait_ms: int) -> None:
        if wait_ms:
            self._limited.labels(*self._names(caller)).inc()
            name = caller[0] if field == "tenant_id" else caller[1]
            raise RateLimited(f"ctx.{field} {name[:64]!r} is over its rate of requests", retry_after_ms=wait_ms)
