"""KvGateway and Kv in batches: all requests of a turn are routed in one pass, and their answers leave together.

The native transport's counterpart of `service.py`. Nothing waits for company: what arrived together travels together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from flotta_proto.flotta.kv_pb2 import BatchRequest
from flotta_proto.flotta.storage_pb2 import DELETE, GET, PUT
from flotta_proto.kvdb.gateway_pb2 import DeleteRequest, GetRequest, PutRequest
from flotta_runtime.batches import BatchCall, Replier
from flotta_runtime.clock import Clock
from flotta_runtime.errors import InvalidArgument, PayloadTooLarge
from flotta_runtime.malformed import explain
from google.protobuf.message import DecodeError, Message

from flotta_gateway.call import Call
from flotta_gateway.core.deadlines import Patience
from flotta_gateway.core.operations import Request
from flotta_gateway.dispatcher import Dispatcher
from flotta_gateway.multi import Multi, MultiLimits

M = TypeVar("M", bound=Message)

_METHODS: Final[tuple[tuple[str, int, type[Request]], ...]] = (
    ("Get", GET, GetRequest),
    ("Put", PUT, PutRequest),
    ("Delete", DELETE, DeleteRequest),
)


class GatewayBatches:
    """Implements `flotta_runtime.batches.BatchService`."""

    paths: Final = (*(f"/kvdb.gateway.KvGateway/{name}" for name, _, _ in _METHODS), "/flotta.kv.v1.Kv/Batch")

    def __init__(self, dispatcher: Dispatcher, clock: Clock, patience: Patience, limits: MultiLimits) -> None:
        self._dispatcher = dispatcher
        self._clock = clock
        self._patience = patience
        self._limits = limits
        self._open: dict[int, Sequence[Call]] = {}

    def take(self, calls: Sequence[BatchCall], replier: Replier) -> None:
        now_ms = self._clock.monotonic_ms()
        batch: list[Call] = []
        for number, method, message, _, remaining_ms, _ in calls:
            deadline_ms = self._patience.deadline_ms(now_ms, remaining_ms)
            try:
                made, first = self._calls(method, message, deadline_ms, self._answer(number, replier))
            except (InvalidArgument, PayloadTooLarge) as error:
                replier.fail(number, error)
                continue
            if not made:
                replier.reply(number, b"")
                continue
            self._open[number] = made
            batch += first
        if batch:
            self._dispatcher.submit(batch)

    def ended(self, calls: Sequence[int]) -> None:
        for number in calls:
            for call in self._open.pop(number, ()):
                self._dispatcher.abandon(call)

    def _calls(
        self, method: int, message: bytes, deadline_ms: float, done: Callable[[bytes], None]
    ) -> tuple[Sequence[Call], Sequence[Call]]:
        """All calls of one request, and those to submit now."""
        if method < len(_METHODS):
            _, kind, cls = _METHODS[method]
            single = (Call(kind, _parsed(cls, message), deadline_ms, done),)
            return single, single
        request = _parsed(BatchRequest, message)
        multi = Multi(request, len(message), deadline_ms, self._limits, self._dispatcher, done)
        return multi.calls, multi.first

    def _answer(self, number: int, replier: Replier) -> Callable[[bytes], None]:
        def answer(response: bytes) -> None:
            del self._open[number]
            replier.reply(number, response)

        return answer


def _parsed(cls: type[M], message: bytes) -> M:
    try:
        return cls.FromString(message)
    except DecodeError:
        raise InvalidArgument(explain(cls, message)) from None
