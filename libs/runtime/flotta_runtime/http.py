"""HTTP inside a service: uvicorn without its signal handling, and the small endpoint every service has.

/livez says the process turns its event loop, /readyz whether it can do its work and why not, /metrics is for
Prometheus. Connections are bounded, and bodies are never read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from typing import Any

import uvicorn

from flotta_runtime.errors import StartupError
from flotta_runtime.metrics import CONTENT_TYPE, Metrics
from flotta_runtime.settings import split_address
from flotta_runtime.tls import Tls

Readiness = Callable[[], tuple[bool, str]]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class _Uvicorn(uvicorn.Server):
    """uvicorn that leaves signals to `run.py` and tells when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self.asked = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        """uvicorn's, but it wakes once a second (for the Date header) and at once when asked to stop."""
        tenths = 0
        while not await self.on_tick(tenths):
            tenths = (tenths + 10) % 864_000
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self.asked.wait()


class HttpServer:
    """Serves an ASGI app on `listen` (host:port, port 0 picks one) from `start()` until `stop()`."""

    def __init__(
        self,
        app: AsgiApp,
        listen: str,
        *,
        connections_max: int = 256,
        grace_ms: int = 2_000,
        tls: Tls | None = None,
    ) -> None:
        self.listen = listen
        self.port = 0
        self._task: asyncio.Task[None] | None = None
        self._sockets: list[socket.socket] = []
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # allowlists look at the peer of the socket, not at what a header claims
                server_header=False,
                ssl_context_factory=None if tls is None or not tls.serves else lambda *_: tls.server_context(),
                backlog=connections_max,
                limit_concurrency=connections_max,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=max(1, grace_ms // 1000),
            )
        )

    async def start(self) -> int:
        """Bind and serve; returns the port. StartupError names the address when it cannot be had."""
        host, port = split_address(self.listen)
        self._sockets = _bind_all(host, port, self.listen)
        self.port = self._sockets[0].getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(self._sockets), name=f"http.{self.port}")
        ready = asyncio.create_task(self._server.ready.wait())
        await asyncio.wait([ready, self._task], return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            self._task.result()
            raise StartupError(f"the HTTP server on {self.listen} ended while it started")
        return self.port

    async def stop(self) -> None:
        """Close the port and let open requests finish within the grace time."""
        self._server.should_exit = True
        self._server.asked.set()
        if self._task is not None:
            await self._task
            self._task = None
        _close(self._sockets)


def _bind_all(host: str, port: int, listen: str) -> list[socket.socket]:
    """One socket per address that `host` means (localhost may be IPv4 and IPv6), all on one port."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartupError(f"the HTTP address {listen} cannot be used: {error.strerror or error}") from error
    bound: list[socket.socket] = []
    missing: OSError | None = None
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        chosen = bound[0].getsockname()[1] if bound else port
        try:
            bound.append(_bind(family, (str(address[0]), chosen, *address[2:])))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # IPv6 may just not be there
                _close(bound)
                raise StartupError(f"cannot listen on {listen} for HTTP: {error.strerror or error}") from error
            missing = error
    if not bound:
        raise StartupError(f"cannot listen on {listen} for HTTP: {missing}") from missing
    return bound


def _bind(family: socket.AddressFamily, address: tuple[str | int, ...]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def _close(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


def status_app(metrics: Metrics, readiness: Readiness) -> AsgiApp:
    """The ASGI app with /livez, /readyz and /metrics; `readiness()` is (is it ready, why or why not)."""

    def answer(method: str, path: str) -> tuple[int, str, bytes]:
        if path not in ("/livez", "/readyz", "/metrics"):
            return 404, "application/json", b'{"error":"not found; there are /livez, /readyz and /metrics"}\n'
        if method not in ("GET", "HEAD"):
            return 405, "application/json", b'{"error":"method not allowed; use GET"}\n'
        if path == "/metrics":
            return 200, CONTENT_TYPE, metrics.render()
        ready, reason = (True, "alive") if path == "/livez" else readiness()
        body = json.dumps({"status": "ok" if ready else "unavailable", "reason": reason}) + "\n"
        return 200 if ready else 503, "application/json", body.encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        status, content_type, body = answer(scope["method"], scope["path"])
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        if status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app


def status_server(metrics: Metrics, readiness: Readiness, listen: str) -> HttpServer:
    """The endpoint of a service, ready to `start()`."""
    return HttpServer(status_app(metrics, readiness), listen, connections_max=64, grace_ms=1_000)
