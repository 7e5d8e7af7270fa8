"""What a native gRPC port tells of itself: metrics when scraped, and a few log lines when it is attacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import flotta_native
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from flotta_runtime.clock import SYSTEM_CLOCK
from flotta_runtime.logging import get_logger
from flotta_runtime.metrics import Metrics
from flotta_runtime.throttle import Throttle

_GAUGES = {
    "connections": ("flotta_rpc_connections", "Connections that are open."),
    "calls": ("flotta_rpc_calls", "Calls in flight."),
    "waiting_calls": ("flotta_rpc_waiting_calls", "Calls in flight that have come in whole and wait for their turn."),
    "request_bytes": ("flotta_rpc_request_bytes", "Bytes of requests in work."),
    "reply_bytes": ("flotta_rpc_reply_bytes", "Bytes of replies not yet written."),
}
_COUNTERS = {
    "connections_total": ("flotta_rpc_connections_accepted_total", "Connections accepted."),
    "calls_total": ("flotta_rpc_calls_begun_total", "Calls begun, refused ones and unknown methods among them."),
    "failed_handshakes": ("flotta_rpc_failed_handshakes_total", "Connections that did not get through TLS or HTTP/2."),
    "resets": ("flotta_rpc_resets_total", "Streams that clients reset."),
    "reset_floods": ("flotta_rpc_reset_floods_total", "Connections ended because of too many resets."),
    "frame_floods": (
        "flotta_rpc_frame_floods_total",
        "Connections ended because of too many frames that carry nothing.",
    ),
    "deadlines_exceeded": ("flotta_rpc_deadlines_exceeded_total", "Calls ended by their deadline."),
    "stalled_requests": ("flotta_rpc_stalled_requests_total", "Calls whose message never came to its end."),
    "stalled_replies": ("flotta_rpc_stalled_replies_total", "Calls whose client did not read."),
    "keepalive_timeouts": ("flotta_rpc_keepalive_timeouts_total", "Connections ended because nobody answered a ping."),
    "bytes_in": ("flotta_rpc_received_bytes_total", "Bytes of messages received, as they came."),
    "bytes_out": ("flotta_rpc_sent_bytes_total", "Bytes of messages sent, as they went."),
    "messages_in": ("flotta_rpc_messages_received_total", "Messages received."),
    "messages_out": ("flotta_rpc_messages_sent_total", "Messages sent."),
    "packed_messages_in": ("flotta_rpc_compressed_messages_received_total", "Messages that came compressed."),
    "packed_messages_out": ("flotta_rpc_compressed_messages_sent_total", "Messages that went compressed."),
}
_REFUSED = {
    "refused_connections": "connections",
    "refused_calls": "calls",
    "refused_request_bytes": "request_bytes",
    "refused_reply_bytes": "reply_bytes",
}
_WORDS = {
    "accept_failed": "connections cannot be accepted",
    "calls_wait": "calls wait: a client sends more than is served",
    "frame_flood": "a client floods its connection with frames that carry nothing",
    "reset_flood": "a client opens calls and resets them, over and over",
    "too_big": "calls are refused: their messages are too big, packed or not",
    "too_many_calls": "calls are refused: too many are in flight",
    "too_many_connections": "connections are refused: there are too many",
    "unfinished_request": "a client leaves its requests unfinished",
    "unread_connection": "a client does not read what is sent to it",
    "unread_replies": "calls are refused: their client does not read its replies",
    "unread_reply": "a client does not read its reply",
}


def buckets_of(counts: Sequence[int]) -> list[tuple[str, float]]:
    """The buckets of a native histogram as Prometheus has them: bounds in seconds, each count with all below it."""
    bounds = (*(str(bound_us / 1e6) for bound_us in flotta_native.TIME_BOUNDS_US), "+Inf")
    return list(zip(bounds, accumulate(counts), strict=True))


class StatsCollector(Collector):
    """Makes metrics of a server's own figures."""

    def __init__(self, metrics: Metrics, server: flotta_native.RpcServer) -> None:
        self._server = server
        metrics.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        stats = self._server.stats()
        for field, (name, text) in _GAUGES.items():
            yield GaugeMetricFamily(name, text, value=getattr(stats, field))
        for field, (name, text) in _COUNTERS.items():
            yield CounterMetricFamily(name, text, value=getattr(stats, field))
        refused = CounterMetricFamily("flotta_rpc_refused_total", "What was refused, by the bound.", labels=("bound",))
        for field, bound in _REFUSED.items():
            refused.add_metric((bound,), getattr(stats, field))
        yield refused
        took = HistogramMetricFamily(
            "flotta_rpc_call_seconds", "Time from the head of a unary call to its answer.", labels=("method",)
        )
        for path, counts, total_ns in self._server.call_times():
            took.add_metric((path,), buckets_of(counts), total_ns / 1e9)
        yield took


class Attacks:
    """Tells of what clients try, a line a kind and period."""

    def __init__(self) -> None:
        self._throttle = Throttle(SYSTEM_CLOCK)
        self._log = get_logger("grpc")

    def tell(self, server: flotta_native.RpcServer) -> None:
        for kind, address, count in server.notices():
            left_out = self._throttle.admit(kind)
            if left_out is not None:
                self._log.warning(_WORDS.get(kind, kind), client=address, times=count, lines_left_out=left_out)
