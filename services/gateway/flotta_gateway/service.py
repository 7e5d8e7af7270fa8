"""KvGateway and Kv over grpc.aio: gathers requests into a batch and awaits each one's answer.

A frame to a node costs as much as 50 loop turns. So while other requests are open, a batch is held until no further
request has arrived for some turns; with none open there is no load, and a request goes at once.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from flotta_proto.flotta.kv_pb2 import BatchRequest, BatchResponse, ScanRequest, ScanResponse
from flotta_proto.flotta.kv_pb2_grpc import KvServicer
from flotta_proto.flotta.storage_pb2 import DELETE, GET, PUT
from flotta_proto.kvdb.gateway_pb2 import (
    DeleteRequest,
    DeleteResponse,
    GetRequest,
    GetResponse,
    PutRequest,
    PutResponse,
)
from flotta_proto.kvdb.gateway_pb2_grpc import KvGatewayServicer
from flotta_runtime.clock import Clock

from flotta_gateway.call import Call
from flotta_gateway.core.deadlines import Patience
from flotta_gateway.core.operations import Request
from flotta_gateway.dispatcher import Dispatcher
from flotta_gateway.multi import Multi, MultiLimits
from flotta_gateway.scanner import Scanner

# grpc.aio takes some turns to hand over a request.
_QUIET_TURNS = 8
_BATCH_MAX = 64

R = TypeVar("R", GetResponse, PutResponse, DeleteResponse)


class GatewayService(KvGatewayServicer):
    """The client API."""

    def __init__(self, dispatcher: Dispatcher, clock: Clock, patience: Patience) -> None:
        self._dispatcher = dispatcher
        self._clock = clock
        self._patience = patience
        self._batch: list[Call] = []
        self._counted = 0  # size of the batch at the last turn
        self._quiet_turns = 0

    async def Get(self, request: GetRequest, context: Any) -> GetResponse:
        return await self._handle(GET, request, context, GetResponse)

    async def Put(self, request: PutRequest, context: Any) -> PutResponse:
        return await self._handle(PUT, request, context, PutResponse)

    async def Delete(self, request: DeleteRequest, context: Any) -> DeleteResponse:
        return await self._handle(DELETE, request, context, DeleteResponse)

    async def _handle(self, kind: int, request: Request, context: Any, expected: type[R]) -> R:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()

        def deliver(response: bytes) -> None:
            if not answer.done():  # the client may be gone, and this handler about to notice
                answer.set_result(response)

        call = Call(kind, request, _deadline_ms(self._patience, self._clock, context), deliver)
        if not self._batch:
            loop.call_soon(self._gather, loop)
        self._batch.append(call)
        try:
            return expected.FromString(await answer)
        except asyncio.CancelledError:
            self._dispatcher.abandon(call)
            raise

    def _gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once a turn, from the first request of a batch until the batch goes."""
        size = len(self._batch)
        self._quiet_turns = self._quiet_turns + 1 if size == self._counted else 0
        self._counted = size
        if self._quiet_turns < _QUIET_TURNS and size < _BATCH_MAX and self._dispatcher.calls_open:
            loop.call_soon(self._gather, loop)
            return
        batch, self._batch = self._batch, []
        self._counted = self._quiet_turns = 0
        self._dispatcher.submit(batch)


class MultiService(KvServicer):
    """Requests that are batches already, and scans. Both transports serve scans from here."""

    def __init__(
        self, dispatcher: Dispatcher, scanner: Scanner, clock: Clock, patience: Patience, limits: MultiLimits
    ) -> None:
        self._dispatcher = dispatcher
        self._scanner = scanner
        self._clock = clock
        self._patience = patience
        self._limits = limits

    async def Scan(self, request: ScanRequest, context: Any) -> ScanResponse:
        return await self._scanner.page(request, _deadline_ms(self._patience, self._clock, context))

    async def Batch(self, request: BatchRequest, context: Any) -> BatchResponse:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def deliver(response: bytes) -> None:
            if not answer.done():
                answer.set_result(response)

        deadline_ms = _deadline_ms(self._patience, self._clock, context)
        multi = Multi(request, request.ByteSize(), deadline_ms, self._limits, self._dispatcher, deliver)
        if not multi.calls:
            return BatchResponse()
        self._dispatcher.submit(multi.first)
        try:
            return BatchResponse.FromString(await answer)
        except asyncio.CancelledError:
            for call in multi.calls:
                self._dispatcher.abandon(call)
            raise


def _deadline_ms(patience: Patience, clock: Clock, context: Any) -> float:
    remaining_s = context.time_remaining()
    return patience.deadline_ms(clock.monotonic_ms(), None if remaining_s is None else remaining_s * 1000)
