"""KvGateway in batches: all requests of a turn are routed in one pass, and their answers leave together.

The native transport's counterpart of `service.py`. Nothing waits for company: what arrived together travels together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from flotta_proto.flotta.storage_pb2 import DELETE, GET, PUT
from flotta_proto.kvdb.gateway_pb2 import DeleteRequest, GetRequest, PutRequest
from flotta_runtime.batches import BatchCall, Replier
from flotta_runtime.clock import Clock
from flotta_runtime.errors import InvalidArgument
from flotta_runtime.malformed import explain
from google.protobuf.message import DecodeError

from flotta_gateway.call import Call
from flotta_gateway.core.deadlines import Patience
from flotta_gateway.core.operations import Request
from flotta_gateway.dispatcher import Dispatcher

_METHODS: Final[tuple[tuple[str, int, type[Request]], ...]] = (
    ("Get", GET, GetRequest),
    ("Put", PUT, PutRequest),
    ("Delete", DELETE, DeleteRequest),
)


class GatewayBatches:
    """Implements `flotta_runtime.batches.BatchService`."""

    paths: Final = tuple(f"/kvdb.gateway.KvGateway/{name}" for name, _, _ in _METHODS)

    def __init__(self, dispatcher: Dispatcher, clock: Clock, patience: Patience) -> None:
        self._dispatcher = dispatcher
        self._clock = clock
        self._patience = patience
        self._open: dict[int, Call] = {}

    def take(self, calls: Sequence[BatchCall], replier: Replier) -> None:
        now_ms = self._clock.monotonic_ms()
        batch: list[Call] = []
        for number, method, message, _, remaining_ms, _ in calls:
            _, kind, cls = _METHODS[method]
            try:
                request = cls.FromString(message)
            except DecodeError:
                replier.fail(number, InvalidArgument(explain(cls, message)))
                continue
            deadline_ms = self._patience.deadline_ms(now_ms, remaining_ms)
            call = self._open[number] = Call(kind, request, deadline_ms, self._answer(number, replier))
            batch.append(call)
        if batch:
            self._dispatcher.submit(batch)

    def ended(self, calls: Sequence[int]) -> None:
        for number in calls:
            call = self._open.pop(number, None)
            if call is not None:
                self._dispatcher.abandon(call)

    def _answer(self, number: int, replier: Replier) -> Callable[[bytes], None]:
        def answer(response: bytes) -> None:
            del self._open[number]
            replier.reply(number, response)

        return answer
