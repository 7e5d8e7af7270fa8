"""OpenTelemetry spans, sent to a collector as OTLP over HTTP, in JSON. Off unless an endpoint is set.

A process makes spans only for requests whose client sampled them (`traceparent`); it begins no trace by itself.
Invariants: nothing on the path of a request waits for the collector; at most `SPANS_MAX` ended spans wait for it, and
what is over that, or what a collector did not take, is counted and let go.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from flotta_runtime.clock import SYSTEM_CLOCK
from flotta_runtime.logging import get_logger
from flotta_runtime.metrics import Metrics
from flotta_runtime.throttle import Throttle
from flotta_runtime.trace_context import TraceContext, parse

SPANS_MAX: Final = 4_096
POST_SPANS_MAX: Final = 512
POST_EVERY_S: Final = 1.0
POST_TIMEOUT_S: Final = 5.0
FLUSH_TIMEOUT_S: Final = 2.0
_SERVER: Final = 2  # SPAN_KIND_SERVER
_ERROR: Final = 2  # STATUS_CODE_ERROR
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Span:
    """Work that has begun. `context` is what its own work is told as its parent."""

    name: str
    parent: TraceContext
    context: TraceContext
    began_ns: int


class Tracer:
    """Ends up to many spans a turn; `run()` sends them. `post` takes a body, blocking; OSError if it fails."""

    def __init__(
        self,
        post: Callable[[bytes], None],
        service: str,
        node: str = "",
        *,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._post = post
        self._now_ns = now_ns
        self._ids = random.SystemRandom()
        self._ended: deque[dict[str, Any]] = deque()
        self._news = asyncio.Event()
        self._log = get_logger("tracing")
        self._throttle = Throttle(SYSTEM_CLOCK, period_ms=60_000)
        names = {"service.name": f"flotta-{service}", **({"service.instance.id": node} if node else {})}
        self._resource = {"attributes": _attributes(names)}
        self.sent = 0
        self.dropped = 0

    def watch(self, metrics: Metrics) -> None:
        """Add the figures that are read when scraped."""
        metrics.gauge("flotta_trace_spans_sent", "Spans that the collector took.").set_function(lambda: self.sent)
        metrics.gauge("flotta_trace_spans_dropped", "Spans that nobody took.").set_function(lambda: self.dropped)

    def begin(self, name: str, traceparent: str) -> Span | None:
        """None when there is nothing to trace: no context, a malformed one, or one that is not sampled."""
        parent = parse(traceparent)
        if parent is None or not parent.sampled:
            return None
        own = TraceContext(parent.trace_id, f"{self._ids.randrange(1, 1 << 64):016x}", True)
        return Span(name, parent, own, self._now_ns())

    def end(self, span: Span, attributes: Mapping[str, str], error: str = "") -> None:
        """The span's work is done; `error` says what went wrong."""
        if len(self._ended) >= SPANS_MAX:
            self.dropped += 1
            return
        told: dict[str, Any] = {
            "traceId": span.context.trace_id,
            "spanId": span.context.span_id,
            "parentSpanId": span.parent.span_id,
            "name": span.name,
            "kind": _SERVER,
            "startTimeUnixNano": str(span.began_ns),
            "endTimeUnixNano": str(max(span.began_ns, self._now_ns())),
            "attributes": _attributes(attributes),
            "status": {"code": _ERROR, "message": error} if error else {},
        }
        self._ended.append(told)
        self._news.set()

    async def run(self) -> None:
        """Send what has ended, about once a second."""
        while True:
            await self._news.wait()
            await asyncio.sleep(POST_EVERY_S)
            self._news.clear()
            await self.flush()

    async def flush(self) -> None:
        """Send all that has ended by now."""
        while self._ended:
            some = [self._ended.popleft() for _ in range(min(len(self._ended), POST_SPANS_MAX))]
            scope = {"scope": {"name": "flotta"}, "spans": some}
            body = json.dumps({"resourceSpans": [{"resource": self._resource, "scopeSpans": [scope]}]}).encode()
            try:
                await asyncio.to_thread(self._post, body)
                self.sent += len(some)
            except OSError as error:
                self.dropped += len(some)
                if self._throttle.admit("post") is not None:
                    self._log.warning("the trace collector took nothing", reason=str(error), dropped=self.dropped)

    async def close(self) -> None:
        """Once no span ends any more; waits a little for the collector."""
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await self.flush()
        except TimeoutError:
            self.dropped += len(self._ended)


def open_tracer(endpoint: str | None, service: str, metrics: Metrics, node: str = "") -> Tracer | None:
    """A service's tracer with its metrics, if there is a collector to tell."""
    if endpoint is None:
        return None
    tracer = Tracer(poster(endpoint), service, node)
    tracer.watch(metrics)
    return tracer


def poster(endpoint: str) -> Callable[[bytes], None]:
    """Posts to a collector's URL, without a proxy. OSError whatever goes wrong there."""

    def post(body: bytes) -> None:
        request = urllib.request.Request(endpoint, body, {"Content-Type": "application/json"})
        try:
            with _DIRECT.open(request, timeout=POST_TIMEOUT_S) as answer:
                answer.read(1 << 16)
        except http.client.HTTPException as error:
            raise OSError(f"what answers at {endpoint} is no HTTP server: {error}") from error

    return post


def _attributes(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in values.items()]
