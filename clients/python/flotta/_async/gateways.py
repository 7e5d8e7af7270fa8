"""The way to the cluster through its gateways: one at a time, the next when that one cannot be reached.

Invariants:
- What is not safe to repeat is never sent again once it may have reached a gateway.
- Where a gateway is lost, this call and those after it turn to the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from flotta_proto.flotta import kv_pb2
from flotta_proto.flotta.kv_pb2_grpc import KvStub
from flotta_proto.kvdb import gateway_pb2 as pb
from flotta_proto.kvdb.gateway_pb2_grpc import KvGatewayStub
from flotta_runtime.tls import Tls
from google.protobuf.message import Message

from flotta._async.channels import AsyncChannels
from flotta._async.primitives import Channel, sleep
from flotta.errors import InternalError
from flotta.messages import Request, Response, item_of, repeatable, response_of
from flotta.patience import Patience
from flotta.rpc_failures import is_lost, never_connected, raise_transport

_METHODS: dict[type[Request], str] = {pb.GetRequest: "Get", pb.PutRequest: "Put", pb.DeleteRequest: "Delete"}


class AsyncGateways:
    """See the module."""

    def __init__(self, addresses: Sequence[str], tls: Tls | None) -> None:
        self._addresses = tuple(addresses)
        self._channels = AsyncChannels(tls)
        self._current = 0

    async def close(self) -> None:
        """Close the connections; calls that are waiting are cancelled."""
        await self._channels.close()

    async def call(self, request: Request, patience: Patience) -> Response:
        """What a gateway said to one request."""
        response: Response = await self._exchange(
            KvGatewayStub, _METHODS[type(request)], request, repeatable(request), patience
        )
        return response

    async def call_many(self, requests: Sequence[Request], patience: Patience) -> list[Response]:
        """What a gateway said to each request of a batch, in their order."""
        asked = kv_pb2.BatchRequest(items=[item_of(request) for request in requests])
        safe = all(repeatable(request) for request in requests)
        answer: kv_pb2.BatchResponse = await self._exchange(KvStub, "Batch", asked, safe, patience)
        if len(answer.results) != len(requests):
            raise InternalError(f"the gateway gave {len(answer.results)} results for {len(requests)} operations")
        return [response_of(result) for result in answer.results]

    async def scan(self, request: kv_pb2.ScanRequest, patience: Patience) -> kv_pb2.ScanResponse:
        """What a gateway said to the request for a page."""
        response: kv_pb2.ScanResponse = await self._exchange(KvStub, "Scan", request, True, patience)
        return response

    async def _exchange(
        self, stub: Callable[[Channel], Any], method: str, request: Message, safe: bool, patience: Patience
    ) -> Any:
        """`safe`: it may be sent again when nobody knows what became of it."""
        while True:
            current = self._current
            address = self._addresses[current]
            try:
                send = getattr(stub(self._channels.to(address)), method)
                return await send(request, timeout=patience.left_s())
            except grpc.RpcError as error:
                # Unless it never connected, the transport may have delivered what it says failed.
                unsent = never_connected(error)
                again = is_lost(error) and (safe or unsent) and patience.lasts()
                if again:
                    self._current = (current + 1) % len(self._addresses)
                    patience.in_doubt = patience.in_doubt or not unsent
                    await sleep(patience.next_pause_s())
                if not (again and patience.allows_an_attempt()):
                    raise_transport(error, address, unsent and not patience.in_doubt, self._channels.tls)
