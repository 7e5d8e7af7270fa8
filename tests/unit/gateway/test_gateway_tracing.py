"""A client's trace context: handed on to the node, with the gateway's own span in between where somebody is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flotta_gateway.call import Call
from flotta_gateway.core.operations import Request
from flotta_gateway.tracing import CallTracer
from flotta_proto.flotta.storage_pb2 import DELETE, GET, PUT
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_runtime.trace_context import parse
from flotta_runtime.tracing import Tracer
from gateway_support import Cluster

Status = gw.Status
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED = f"00-{TRACE}-00f067aa0ba902b7-01"


def asked(traceparent: str) -> list[tuple[int, Request]]:
    ctx = gw.RequestContext(traceparent=traceparent)
    return [
        (GET, gw.GetRequest(key=b"k", ctx=ctx)),
        (PUT, gw.PutRequest(key=b"k", value=b"v", ctx=ctx)),
        (DELETE, gw.DeleteRequest(key=b"k", ctx=ctx)),
    ]


@pytest.mark.parametrize(
    ("given", "handed_on"), [(SAMPLED, SAMPLED), (SAMPLED[:-1] + "0", SAMPLED[:-1] + "0"), ("nonsense", ""), ("", "")]
)
async def test_the_context_reaches_the_node_and_a_malformed_one_is_left_out(given: str, handed_on: str) -> None:
    cluster = Cluster()
    answers: list[bytes] = []
    cluster.dispatcher.submit([Call(kind, request, 6_000, answers.append) for kind, request in asked(given)])
    assert [operation.traceparent for operation in cluster.sent()] == [handed_on] * 3
    assert answers == []
    cluster.dispatcher.close()


async def test_spans_tell_what_became_of_a_request_and_are_the_parents_of_the_node_s() -> None:
    bodies: list[Any] = []
    tracer = Tracer(lambda body: bodies.append(json.loads(body)), "gateway")
    cluster = Cluster(traces=CallTracer(tracer))
    answers: list[bytes] = []
    calls = [Call(kind, request, 6_000, answers.append) for kind, request in asked(SAMPLED)]
    cluster.dispatcher.submit(calls)
    contexts = [parse(operation.traceparent) for operation in cluster.sent()]
    assert {context.trace_id for context in contexts if context} == {TRACE}
    cluster.answer(Status.NOT_FOUND, message="no such key")
    bad = gw.GetRequest(key=b"k", ctx=gw.RequestContext(traceparent=SAMPLED, tenant_id="x" * 300))
    cluster.dispatcher.submit([Call(GET, bad, 6_000, answers.append)])
    assert len(answers) == 4
    await tracer.flush()
    spans = bodies[0]["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert [span["name"].rpartition("/")[2] for span in spans] == ["Get", "Put", "Delete"]
    assert [span["spanId"] for span in spans] == [context.span_id for context in contexts if context]
    for span in spans:
        told = {one["key"]: one["value"]["stringValue"] for one in span["attributes"]}
        assert told["flotta.status"] == span["status"]["message"] == "NOT_FOUND"
        assert told["flotta.shard"].startswith("shard-")
    cluster.dispatcher.close()
