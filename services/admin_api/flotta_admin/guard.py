"""Around every HTTP request: who may call, a correlation id, the access log, metrics, and never a bare 500.

Order: the address of the socket against the allowlist (403), then the API key (401), then the rate of that address
where one is set (429), then the request itself. Probes, metrics and the description are never held back by a rate.
Headers such as X-Forwarded-For are not looked at.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from flotta_runtime.clock import Clock
from flotta_runtime.http import AsgiApp, Receive, Scope, Send
from flotta_runtime.logging import get_logger
from flotta_runtime.metrics import Metrics
from flotta_runtime.rates import Rates
from starlette.exceptions import HTTPException

from flotta_admin.settings import Network

API_KEY_HEADER = b"x-admin-api-key"
CORRELATION_HEADER = b"x-correlation-id"
CORRELATION_CHARS_MAX = 128
BODY_BYTES_MAX = 1 << 20
TOO_MANY = "Rate limit exceeded"  # KvDB's words, as plain text
OPEN_PATHS = frozenset({"/livez", "/readyz", "/metrics", "/openapi.json", "/docs"})
QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds, by machines
OPEN_TREES = ("/admin/actuator/health", "/admin/actuator/info")


def needs_key(path: str) -> bool:
    """Whether a path is behind the API key. Probes, metrics and the API's description are not."""
    return path not in OPEN_PATHS and not any(path == tree or path.startswith(tree + "/") for tree in OPEN_TREES)


def is_allowed(host: str, networks: tuple[Network, ...]) -> bool:
    """Whether the socket address `host` is in one of the networks; an IPv4 client of an IPv6 socket counts as IPv4."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks if network.version == address.version)


class Guard:
    """The outermost ASGI layer of the admin service."""

    def __init__(
        self,
        app: AsgiApp,
        api_key: str,
        networks: tuple[Network, ...],
        metrics: Metrics,
        clock: Clock,
        rates: Rates | None = None,
    ) -> None:
        self._app = app
        self._clock = clock
        self._rates = rates
        self._api_key = api_key.encode("utf-8")
        self._networks = networks
        self._log = get_logger("http", service="admin")
        self._requests = metrics.counter(
            "flotta_admin_http_requests_total", "HTTP requests answered.", ("method", "route", "status")
        )
        self._seconds = metrics.histogram("flotta_admin_http_seconds", "How long HTTP requests took.", ("route",))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the admin service speaks HTTP only, not {scope['type']}")
        began = time.perf_counter()
        headers = _first_values(scope)
        correlation_id = _correlation_id(headers.get(CORRELATION_HEADER))
        status = 0

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (CORRELATION_HEADER, correlation_id.encode())]
            await send(message)

        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                await _answer(sending, refusal[0], {"error": refusal[1], "path": scope["path"]})
            elif wait_ms := self._wait_ms(scope):
                await _answer_text(sending, 429, TOO_MANY, (b"retry-after", str(-(-wait_ms // 1000)).encode()))
            else:
                await self._app(scope, _bounded(receive, headers.get(b"content-length")), sending)
        except Exception as error:
            # The app has answered 500 before it raised; the reason belongs in the log, not in uvicorn's hands.
            self._log.error("unexpected error", path=scope["path"], correlation_id=correlation_id, exc_info=error)
            if status == 0:
                await _answer(sending, 500, {"error": "INTERNAL_ERROR", "message": "see the log", "code": "500"})
        finally:
            self._account(scope, status, began, correlation_id)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        client = scope.get("client")
        if client is None or not is_allowed(client[0], self._networks):
            return 403, "ip_not_allowed"
        if needs_key(scope["path"]) and not hmac.compare_digest(headers.get(API_KEY_HEADER, b""), self._api_key):
            return 401, "invalid_api_key"
        return None

    def _wait_ms(self, scope: Scope) -> int:
        """0, or in how long this address may ask again. `_refusal` has seen to it that there is one."""
        if self._rates is None or scope["path"] in OPEN_PATHS:
            return 0
        return self._rates.admit(scope["client"][0], self._clock.monotonic_ms())

    def _account(self, scope: Scope, status: int, began: float, correlation_id: str) -> None:
        seconds = time.perf_counter() - began
        route = getattr(scope.get("route"), "path", "unmatched")  # the pattern, not the path: few label values
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "PUT", "DELETE") else "OTHER"
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)
        client = scope.get("client")
        log = self._log.debug if route in QUIET_ROUTES else self._log.info
        log(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            ms=round(seconds * 1000, 2),
            client=client[0] if client else "",
            correlation_id=correlation_id,
        )


def _bounded(receive: Receive, declared: bytes | None) -> Receive:
    """`receive`, but a body over the limit is a 413 that the app's error handlers see."""
    length = int(declared) if declared is not None and declared.isdigit() and len(declared) < 20 else 0
    received = 0

    async def receiving() -> MutableMapping[str, Any]:
        nonlocal received
        if length > BODY_BYTES_MAX:
            raise HTTPException(413)
        message = await receive()
        received += len(message.get("body", b""))
        if received > BODY_BYTES_MAX:
            raise HTTPException(413)
        return message

    return receiving


def _first_values(scope: Scope) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.lower(), value)
    return headers


def _correlation_id(given: bytes | None) -> str:
    """The caller's id when it is short printable ASCII (it goes into a header and the log), else a new one."""
    if given is not None and 0 < len(given) <= CORRELATION_CHARS_MAX and all(33 <= byte < 127 for byte in given):
        return given.decode("ascii")
    return str(uuid.uuid4())


async def _answer(send: Send, status: int, body: dict[str, str]) -> None:
    await _send(send, status, (json.dumps(body, indent=2) + "\n").encode(), (b"content-type", b"application/json"))


async def _answer_text(send: Send, status: int, text: str, header: tuple[bytes, bytes]) -> None:
    await _send(send, status, text.encode(), (b"content-type", b"text/plain; charset=utf-8"), header)


async def _send(send: Send, status: int, content: bytes, *headers: tuple[bytes, bytes]) -> None:
    all_headers = [*headers, (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": content})
