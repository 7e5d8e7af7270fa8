"""Any member takes any call: a follower carries it to the leader, once.

A forwarded call is marked, so it is never forwarded again; a member that takes one and does not lead says so. What
the leader said comes back as it was said. When the answer of a change is lost on the way, it may have happened, and
the caller is told exactly that.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from flotta_runtime.errors import FlottaError, NotLeader, Timeout
from flotta_runtime.server import Channel, Dial
from flotta_runtime.status import from_rpc_error

FORWARDED = "x-flotta-forwarded"
# grpc's words for a call that was never sent.
_NEVER_SENT = "failed to connect to all addresses"


class Message(Protocol):
    def SerializeToString(self) -> bytes: ...


R = TypeVar("R")


class Forwarder:
    """Channels to the other coordinators, made when first needed."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._channels: dict[str, Channel] = {}

    async def call(self, address: str, method: str, request: Message, reply: type[R], timeout_ms: int) -> R:
        """The leader's answer. NotLeader if `address` does not lead or cannot be reached; other FlottaErrors as the
        leader raised them."""
        target = self._channels.get(address)
        if target is None:
            target = self._channels[address] = self._dial(address)
        parse: Any = reply
        invoke: Any = target.grpc.unary_unary(
            method, request_serializer=type(request).SerializeToString, response_deserializer=parse.FromString
        )
        metadata = (*target.metadata, (FORWARDED, "1"))
        try:
            answer: R = await invoke(request, timeout=timeout_ms / 1000, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _translated(error, address) from error
        return answer

    async def close(self) -> None:
        for target in self._channels.values():
            await target.close()
        self._channels.clear()


def is_forwarded(metadata: Any) -> bool:
    """Did another coordinator send this call?"""
    return any(name == FORWARDED for name, _ in metadata or ())


def _translated(error: grpc.aio.AioRpcError, address: str) -> FlottaError:
    details = error.details() or ""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        if details.startswith(_NEVER_SENT):
            return NotLeader(address)
        if not _is_ours(error):
            return Timeout(f"the connection to the leading coordinator {address} broke before it answered")
    return from_rpc_error(error)


def _is_ours(error: grpc.aio.AioRpcError) -> bool:
    """A status our handler sent comes with trailers; one that the transport made up has none."""
    return bool(error.trailing_metadata())
