"""Trace contexts as the standard has them, and spans on their way to a collector that may be slow, full or gone."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from typing import Any, ClassVar

import pytest
from flotta_runtime import tracing
from flotta_runtime.settings import SettingsError, TracedSettings, load_settings
from flotta_runtime.trace_context import TraceContext, parse
from flotta_runtime.tracing import SPANS_MAX, Tracer, poster

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


def test_a_context_is_read_and_handed_on() -> None:
    assert parse(SAMPLED) == TraceContext(TRACE, PARENT, True)
    assert parse(f"00-{TRACE}-{PARENT}-00") == TraceContext(TRACE, PARENT, False)
    assert parse(f"00-{TRACE}-{PARENT}-03") == TraceContext(TRACE, PARENT, True), "other flags are for others"
    assert parse(f"cc-{TRACE}-{PARENT}-01-what-the-future-brings") == TraceContext(TRACE, PARENT, True)
    assert TraceContext(TRACE, PARENT, True).header() == SAMPLED


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", SAMPLED[:-1], SAMPLED + "-more", SAMPLED + "\n", " " + SAMPLED, SAMPLED.upper()),
        *(f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01"),
        *(f"00-{TRACE}-{PARENT}", f"00{TRACE}{PARENT}01", f"00-{TRACE[:-1]}g-{PARENT}-01", f"00-{TRACE}-{PARENT}-٠١"),
    ],
)
def test_what_is_no_context_is_none(text: str) -> None:
    assert parse(text) is None


class Collector:
    """Takes bodies, or fails."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.error: OSError | None = None

    def post(self, body: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.bodies.append(json.loads(body))

    def spans(self) -> list[dict[str, Any]]:
        return [
            span
            for body in self.bodies
            for resource in body["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]


async def test_a_span_arrives_with_its_ids_times_and_outcome() -> None:
    collector, now_ns = Collector(), [1_000]
    tracer = Tracer(collector.post, "storage", "node-1", now_ns=lambda: now_ns[0])
    span = tracer.begin("put", SAMPLED)
    assert span is not None and span.context.trace_id == TRACE and span.context.span_id != PARENT
    assert parse(span.context.header()) == span.context
    now_ns[0] = 4_500
    tracer.end(span, {"flotta.shard": "shard-3"}, "TIMEOUT")
    await tracer.flush()
    (told,) = collector.spans()
    assert told == {
        "traceId": TRACE,
        "spanId": span.context.span_id,
        "parentSpanId": PARENT,
        "name": "put",
        "kind": 2,
        "startTimeUnixNano": "1000",
        "endTimeUnixNano": "4500",
        "attributes": [{"key": "flotta.shard", "value": {"stringValue": "shard-3"}}],
        "status": {"code": 2, "message": "TIMEOUT"},
    }
    attributes = collector.bodies[0]["resourceSpans"][0]["resource"]["attributes"]
    assert {one["key"]: one["value"]["stringValue"] for one in attributes} == {
        "service.name": "flotta-storage",
        "service.instance.id": "node-1",
    }


async def test_what_the_client_did_not_sample_is_not_traced() -> None:
    tracer = Tracer(Collector().post, "gateway")
    for text in ("", "nonsense", f"00-{TRACE}-{PARENT}-00"):
        assert tracer.begin("get", text) is None


async def test_spans_are_bounded_and_sent_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector()
    tracer = Tracer(collector.post, "gateway")
    for _ in range(SPANS_MAX + 10):
        span = tracer.begin("get", SAMPLED)
        assert span is not None
        tracer.end(span, {})
    assert tracer.dropped == 10
    await tracer.close()
    assert len(collector.spans()) == tracer.sent == SPANS_MAX
    assert len(collector.bodies) == SPANS_MAX // tracing.POST_SPANS_MAX


async def test_a_collector_that_is_gone_costs_the_spans_alone() -> None:
    collector = Collector()
    tracer = Tracer(collector.post, "gateway")
    collector.error = OSError("nobody there")
    span = tracer.begin("get", SAMPLED)
    assert span is not None
    tracer.end(span, {})
    await tracer.flush()
    assert (tracer.sent, tracer.dropped) == (0, 1)
    collector.error = None
    tracer.end(span, {})
    await tracer.flush()
    assert (tracer.sent, tracer.dropped) == (1, 1)


def test_a_body_is_posted_as_json_and_a_refusal_is_an_os_error() -> None:
    seen: list[tuple[str, str | None, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, self.headers["Content-Type"], body))
            self.send_response(200 if self.path == "/v1/traces" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        poster(f"{url}/v1/traces")(b"{}")
        with pytest.raises(OSError, match="503"):
            poster(f"{url}/full")(b"{}")
        server.shutdown()
        thread.join()
    assert seen == [("/v1/traces", "application/json", b"{}"), ("/full", "application/json", b"{}")]
    with pytest.raises(OSError, match="refused"):
        poster(f"{url}/v1/traces")(b"{}")


class Demo(TracedSettings):
    """A service that can be traced."""

    service: ClassVar[str] = "demo"


def test_a_collector_that_speaks_no_http_is_an_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            with server.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(b"220 mail.example ready\r\n")

        talking = threading.Thread(target=talk)
        talking.start()
        with pytest.raises(OSError, match="no HTTP"):
            poster(f"http://127.0.0.1:{server.getsockname()[1]}/v1/traces")(b"{}")
        talking.join()


def test_the_collector_is_a_url_or_nobody() -> None:
    def endpoint(text: str) -> str | None:
        names = {"KVDB_INTERNAL_GRPC_TOKEN": "t", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": text}
        return load_settings(Demo, [], names).otlp_endpoint

    assert endpoint("http://localhost:4318/v1/traces") == "http://localhost:4318/v1/traces"
    assert endpoint(" ") is None
    for wrong in ("localhost:4318", "ftp://x/", "http://", "file:///etc/passwd"):
        with pytest.raises(SettingsError, match="is no URL such as"):
            endpoint(wrong)
