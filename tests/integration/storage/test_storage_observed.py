"""A request traced from its client through gateway and node, and a compaction that an operator ordered."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flotta_gateway.app import start
from flotta_gateway.settings import GatewaySettings
from flotta_proto.flotta import storage_pb2 as pb
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_proto.kvdb.gateway_pb2_grpc import KvGatewayStub
from flotta_runtime.auth import token_metadata
from flotta_runtime.tls import open_channel
from storage_cluster import TOKEN, Cluster, delete, get, put

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
Status = gw.Status
pytestmark = pytest.mark.parametrize("transport", ["native", "grpcio"])


class Collector:
    """Takes OTLP over HTTP; spans by the service that sent them."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, dict[str, Any]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for resource in body["resourceSpans"]:
                    (service,) = [
                        one["value"]["stringValue"]
                        for one in resource["resource"]["attributes"]
                        if one["key"] == "service.name"
                    ]
                    outer.spans += [(service, span) for scope in resource["scopeSpans"] for span in scope["spans"]]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


async def test_a_trace_goes_from_the_client_to_the_node(cluster: Cluster, collector: Collector) -> None:
    await cluster.start_coordinator()
    await cluster.start("node-1", otlp_endpoint=collector.endpoint)
    await cluster.create_shards(1, ["node-1"])
    await cluster.settle(put(b"warm", b"v"))
    gateway = await start(
        GatewaySettings(
            listen="127.0.0.1:0",
            http_listen="127.0.0.1:0",
            internal_token=TOKEN,
            transport=cluster.transport,
            coordinators=(f"127.0.0.1:{cluster.coordinator_port}",),
            otlp_endpoint=collector.endpoint,
            stop_timeout_ms=500,
        )
    )
    channel = open_channel(None, f"127.0.0.1:{gateway.port}", ())
    stub = KvGatewayStub(channel)
    sampled = gw.RequestContext(traceparent=f"00-{TRACE}-{CLIENT}-01")
    unsampled = gw.RequestContext(traceparent=f"00-{TRACE}-{CLIENT}-00")
    for ctx in (sampled, unsampled, gw.RequestContext()):
        assert (await stub.Put(gw.PutRequest(key=b"k", value=b"v", ctx=ctx))).status.code == Status.OK
    assert (await stub.Get(gw.GetRequest(key=b"absent", ctx=sampled))).status.code == Status.NOT_FOUND
    await channel.close()
    await gateway.stop()
    await cluster.stop("node-1")

    found = {(service, span["name"].rpartition("/")[2]): span for service, span in collector.spans}
    assert len(collector.spans) == len(found) == 4, collector.spans
    for kind, outcome in (("Put", ""), ("Get", "NOT_FOUND")):
        outer, inner = found["flotta-gateway", kind], found["flotta-storage", kind]
        assert (outer["traceId"], outer["parentSpanId"]) == (TRACE, CLIENT)
        assert (inner["traceId"], inner["parentSpanId"]) == (TRACE, outer["spanId"])
        assert outer["status"].get("message", "") == inner["status"].get("message", "") == outcome
        assert int(outer["startTimeUnixNano"]) <= int(inner["startTimeUnixNano"])


async def test_a_collector_that_is_not_there_costs_no_request(cluster: Cluster) -> None:
    await cluster.start_coordinator()
    node = await cluster.start("node-1", otlp_endpoint="http://127.0.0.1:1/v1/traces")
    await cluster.create_shards(1, ["node-1"])
    traceparent = f"00-{TRACE}-{CLIENT}-01"
    (written,) = await cluster.settle(put(b"k", b"v", traceparent=traceparent))
    assert written.code == Status.OK
    await cluster.until(
        lambda: (node.metrics.registry.get_sample_value("flotta_trace_spans_dropped") or 0) > 0, timeout_s=60
    )


async def test_a_compaction_gives_the_room_of_deleted_rows_back(cluster: Cluster) -> None:
    await cluster.open(1)
    node = cluster.nodes["node-1"]
    await cluster.create_shards(2, ["node-1"])
    keys = [b"%d" % number for number in range(200)]
    stub, metadata = cluster.shards("node-1"), token_metadata(TOKEN)
    value_of = node.metrics.registry.get_sample_value

    async def compacted(expected: int) -> int:
        """Bytes in files, once so many replicas were compacted."""
        await cluster.until(lambda: value_of("flotta_storage_compactions") == expected)
        assert node.backend is not None
        return (await asyncio.to_thread(node.backend.engine.statistics))["table_bytes"]

    await cluster.settle(*(put(key, os.urandom(1000)) for key in keys), put(b"kept", b"v"))
    assert (await stub.Compact(pb.CompactRequest(), metadata=metadata)).replicas == 2
    assert await compacted(2) > 200_000
    await cluster.settle(*(delete(key) for key in keys))
    assert (await stub.Compact(pb.CompactRequest(shard_ids=["shard-0", "shard-9"]), metadata=metadata)).replicas == 1
    assert await compacted(3) > 50_000, "the other shard was not meant"
    assert (await stub.Compact(pb.CompactRequest(shard_ids=["shard-1"]), metadata=metadata)).replicas == 1
    assert await compacted(4) < 50_000
    found = await cluster.settle(get(b"kept"), *(get(key) for key in keys))
    assert [one.code for one in found] == [Status.OK, *[Status.NOT_FOUND] * len(keys)]
