"""The gateway's metrics. How long requests take is in those of its gRPC server (`grpc_server_handling_seconds`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flotta_proto.flotta.storage_pb2 import OperationKind
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.metrics import BATCH_BUCKETS, LoopCount, Metrics

if TYPE_CHECKING:
    from flotta_gateway.dispatcher import Dispatcher
    from flotta_gateway.link_pool import LinkPool
    from flotta_gateway.map_cache import MapCache
    from flotta_gateway.scanner import Scanner


class Telemetry:
    """Counts what the dispatcher tells. Label children are bound once."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._requests = metrics.loop_counter(
            "flotta_gateway_requests_total", "Requests answered, by operation and status code.", ("operation", "code")
        )
        self._resent = metrics.counter(
            "flotta_gateway_resends_total", "Attempts made after a failed one, by what it failed with.", ("code",)
        )
        self._batches = metrics.loop_histogram(
            "flotta_gateway_batch_requests", "Requests routed in one pass.", buckets=BATCH_BUCKETS
        )
        self._answered: dict[tuple[int, int], LoopCount] = {}

    def watch(self, dispatcher: Dispatcher, scanner: Scanner, maps: MapCache, pool: LinkPool) -> None:
        """Add the figures that are read when scraped."""
        gauge = self._metrics.gauge
        gauge("flotta_gateway_requests_open", "Requests not yet answered.").set_function(lambda: dispatcher.calls_open)
        gauge("flotta_gateway_request_bytes_open", "Bytes in requests not yet answered.").set_function(
            lambda: dispatcher.bytes_open
        )
        gauge("flotta_gateway_scan_bytes_open", "Bytes that pages of scans under way may take.").set_function(
            lambda: scanner.bytes_open
        )
        gauge("flotta_gateway_map_version", "Version of the cached shard map.").set_function(
            lambda: maps.current.version
        )
        gauge("flotta_gateway_map_watch_up", "1 while a map watch has spoken.").set_function(
            lambda: 1 if maps.watching else 0
        )
        gauge("flotta_gateway_map_refreshes", "Refreshes of the map that requests asked for.").set_function(
            lambda: maps.refreshes
        )
        gauge("flotta_gateway_links_up", "Storage nodes connected.").set_function(
            lambda: sum(link.up for link in pool.links())
        )
        gauge("flotta_gateway_link_frames", "Frames sent over the open links.").set_function(
            lambda: sum(link.frames_sent for link in pool.links())
        )
        gauge("flotta_gateway_link_operations", "Operations sent over the open links.").set_function(
            lambda: sum(link.operations_sent for link in pool.links())
        )

    def batch(self, size: int) -> None:
        """Requests that were routed together."""
        self._batches.observe(size)

    def answered(self, kind: int, code: int, count: int) -> None:
        """So many requests got their answer."""
        child = self._answered.get((kind, code))
        if child is None:
            names = (OperationKind.Name(kind), Status.Code.Name(code))  # type: ignore[arg-type]
            child = self._answered[kind, code] = self._requests.labels(*names)
        child.value += count

    def resent(self, code: int) -> None:
        """One attempt failed, and another follows."""
        self._resent.labels(Status.Code.Name(code)).inc()  # type: ignore[arg-type]
