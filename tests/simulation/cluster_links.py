"""Links between gateways and storage nodes in the simulated cluster: both ends of what `link_session.py` and
`request_links.py` do over native links, frame for frame. A link that breaks loses what was on it, in both directions.
"""

from __future__ import annotations

import asyncio
from typing import Any

from cluster_wires import REFUSED, End, Endpoint, Wires
from flotta_gateway.storage_link import Carrier, LinkOptions, SessionEnded, SessionFactory
from flotta_proto.flotta import storage_pb2 as pb
from flotta_storage.batch_handler import BatchHandler
from flotta_storage.budget import Budget
from flotta_storage.outbox import Connections, Outbox

LINK = "link"
ACCEPTED = b"accepted"


class GatewayLink:
    """The storage node's end."""

    def __init__(self, end: End, handler: BatchHandler, budget: Budget, connections: Connections) -> None:
        self._end = end
        self._handler = handler
        self._connections = connections
        self._outbox = Outbox(budget, self._wake)
        self._woken = False
        if connections.leaving:
            end.close()
            return
        end.on_message = self._frame
        end.on_end = lambda reason: connections.remove(self._outbox)
        connections.add(self._outbox)
        end.send(ACCEPTED)

    def _frame(self, data: bytes) -> None:
        operations = pb.OperationFrame.FromString(data).operations
        self._outbox.expected += len(operations)
        self._handler.handle(operations, self._outbox.put)

    def _wake(self) -> None:
        """What was answered by the end of the turn leaves together."""
        if not self._woken and self._end.owner.loop is not None:
            self._woken = True
            self._end.owner.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._woken = False
        while (taken := self._outbox.take()) is not None:
            frame, size = taken
            self._end.send(frame.SerializeToString())
            self._outbox.sent(size)


def sim_sessions(wires: Wires, owner: Endpoint, options: LinkOptions) -> SessionFactory:
    return lambda address, carrier: SimSession(wires, owner, address, carrier, options.connect_timeout_ms)


class SimSession:
    """The gateway's end; implements `storage_link.Session`."""

    def __init__(self, wires: Wires, owner: Endpoint, address: str, carrier: Carrier, timeout_ms: int) -> None:
        self._wires = wires
        self._owner = owner
        self._address = address
        self._carrier = carrier
        self._timeout_ms = timeout_ms
        self._end: End | None = None
        self._woken = False
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[SessionEnded] = asyncio.get_running_loop().create_future()

    async def connect(self) -> None:
        self._end = end = self._wires.connect(self._owner, self._address, (LINK,))
        end.on_message, end.on_end = self._message, self._down
        both: tuple[asyncio.Future[Any], ...] = (self._accepted, self._ended)
        await asyncio.wait(both, timeout=self._timeout_ms / 1000, return_when=asyncio.FIRST_COMPLETED)
        if self._ended.done():
            raise self._ended.result()
        if not self._accepted.done():
            raise SessionEnded(f"no connection within {self._timeout_ms} ms")

    async def carry(self) -> None:
        self.wake()
        raise await self._ended

    def wake(self) -> None:
        if not self._woken and self._end is not None:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._flush)

    def finish(self) -> None:
        self._close("every operation is answered")

    async def close(self) -> None:
        self._close("the gateway closes this connection")

    def _close(self, reason: str) -> None:
        end, self._end = self._end, None
        if end is not None:
            end.close()
        self._down(reason)

    def _flush(self) -> None:
        self._woken = False
        while self._end is not None and (frame := self._carrier.next_frame()):
            self._end.send(frame)

    def _message(self, data: bytes) -> None:
        if data == ACCEPTED:
            if not self._accepted.done():
                self._accepted.set_result(None)
        elif self._end is not None:
            self._carrier.received(data)

    def _down(self, reason: str) -> None:
        self._end = None
        if not self._ended.done():
            words = "the connection was refused" if reason == REFUSED else reason
            self._ended.set_result(SessionEnded(words))
