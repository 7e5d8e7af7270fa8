"""A span for each request that its client traces, and the gateway's span as the parent of what the node does.

Invariant: a request that is not traced pays nothing but one look. One that is abandoned leaves no span: its client is
gone, and what became of it is nobody's answer.
"""

from __future__ import annotations

from flotta_proto.flotta.storage_pb2 import Operation, OperationKind
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.tracing import Tracer

from flotta_gateway.call import Call
from flotta_gateway.core.replies import MESSAGE


class CallTracer:
    """Implements the dispatcher's `Traces`."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def follow(self, call: Call, operation: Operation) -> None:
        name = OperationKind.Name(operation.kind).capitalize()
        span = self._tracer.begin(f"kvdb.gateway.KvGateway/{name}", operation.traceparent)
        answer = call.done
        if span is None or answer is None:
            return
        operation.traceparent = span.context.header()

        def done(response: bytes) -> None:
            status = MESSAGE[call.kind].FromString(response).status
            code = Status.Code.Name(status.code)
            attributes = {"flotta.shard": status.shard_id, "flotta.status": code}
            self._tracer.end(span, attributes, "" if status.code == Status.OK else code)
            answer(response)

        call.done = done
