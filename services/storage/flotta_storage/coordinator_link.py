"""Calls to whichever coordinator answers: the leader is followed, a silent one is passed by.

Invariants: every call has a deadline; redirects are followed a bounded number of times; the coordinator that answered
last is asked first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc.aio
from flotta_runtime.errors import FlottaError, NotLeader, Unavailable
from flotta_runtime.server import Channel, Dial
from flotta_runtime.status import from_rpc_error

S = TypeVar("S")
T = TypeVar("T")

RPC_TIMEOUT_MS = 1_500


class CoordinatorLink:
    """Channels to the coordinators, made when first used."""

    def __init__(self, coordinators: Sequence[str], dial: Dial) -> None:
        self._coordinators = tuple(coordinators)
        self._dial = dial
        self._channels: dict[str, Channel] = {}
        self._stubs: dict[tuple[str, Callable[[grpc.aio.Channel], Any]], Any] = {}
        self.preferred = self._coordinators[0]

    def channel(self, address: str) -> Channel:
        made = self._channels.get(address)
        if made is None:
            made = self._channels[address] = self._dial(address)
        return made

    def stub(self, kind: Callable[[grpc.aio.Channel], S], address: str) -> S:
        """Made once: a stub makes an object for each method of its service."""
        made: S | None = self._stubs.get((address, kind))
        if made is None:
            made = self._stubs[address, kind] = kind(self.channel(address).grpc)
        return made

    async def call(
        self,
        kind: Callable[[grpc.aio.Channel], S],
        method: Callable[[S], Callable[..., Awaitable[T]]],
        request: Any,
        *,
        timeout_ms: int = 0,
    ) -> T:
        """`kind` is the stub's class, `method(stub)` one of its methods. Unavailable if no coordinator could serve it;
        every other error is the serving coordinator's answer."""
        queue = list(dict.fromkeys((self.preferred, *self._coordinators)))
        asked: dict[str, int] = {}
        last: FlottaError = Unavailable("no coordinator answers")
        while queue:
            address = queue.pop(0)
            if asked.get(address, 0) >= 2 or len(asked) > 2 * len(self._coordinators):
                continue
            asked[address] = asked.get(address, 0) + 1
            link = self.channel(address)
            try:
                answer = await method(self.stub(kind, address))(
                    request, timeout=(timeout_ms or RPC_TIMEOUT_MS) / 1000, metadata=link.metadata
                )
            except grpc.aio.AioRpcError as error:
                last = from_rpc_error(error)
                if isinstance(last, NotLeader):
                    if last.leader_hint:
                        queue.insert(0, last.leader_hint)
                    continue
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    continue
                raise last from error
            self.preferred = address
            return answer
        raise Unavailable(f"no coordinator could serve the call: {last.message}")

    def after(self, address: str) -> str:
        """The next configured coordinator, round and round."""
        if address not in self._coordinators:
            return self._coordinators[0]
        return self._coordinators[(self._coordinators.index(address) + 1) % len(self._coordinators)]

    async def close(self) -> None:
        made, self._channels = self._channels, {}
        self._stubs.clear()
        await asyncio.gather(*(one.close() for one in made.values()))
