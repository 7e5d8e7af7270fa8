"""A span for each operation that carries a sampled trace context, from when it came until its answer is handed over."""

from __future__ import annotations

from collections.abc import Sequence

from flotta_proto.flotta.storage_pb2 import Operation, OperationKind, Reply
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.tracing import Tracer

from flotta_storage.answers import ReplyCallback


class OperationTracer:
    """Goes around the reply callback of a batch, of those batches alone in which something is traced."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def around(self, operations: Sequence[Operation], reply: ReplyCallback) -> ReplyCallback:
        spans = {}
        for operation in operations:
            if operation.traceparent and operation.kind in OperationKind.values():
                name = f"flotta.storage.v1.Shards/{OperationKind.Name(operation.kind).capitalize()}"
                span = self._tracer.begin(name, operation.traceparent)
                if span is not None:
                    spans[operation.call] = span
        if not spans:
            return reply

        def ended(replies: list[Reply]) -> None:
            for one in replies:
                span = spans.pop(one.call, None)
                if span is not None:
                    code = Status.Code.Name(one.code)
                    attributes = {"flotta.shard": one.shard_id, "flotta.status": code}
                    self._tracer.end(span, attributes, "" if one.code == Status.OK else code)
            reply(replies)

        return ended
