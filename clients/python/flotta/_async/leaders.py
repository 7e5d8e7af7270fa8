"""The way to the cluster without a gateway: by a shard map of one's own, straight to the leaders.

Invariants:
- Of one key one operation is under way at a time, in their order; after one that was not done, or not certainly, the
  later ones of its key are not begun.
- An operation that was sent by a hint carries no epoch: the node checks that the key is its own.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from functools import partial

from flotta_proto.flotta.kv_pb2 import ScanRequest, ScanResponse
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.tls import Tls

from flotta._async.channels import AsyncChannels
from flotta._async.map_watch import AsyncMapWatch
from flotta._async.node_stream import AsyncNodeStream
from flotta._async.primitives import Lock, run_all, sleep
from flotta.errors import InvalidArgumentError, UnavailableError
from flotta.messages import Request, Response
from flotta.patience import Patience
from flotta.routing import Item, Outcome, Step, item_of, settle
from flotta.shard_map import Route

ATTEMPT_TIMEOUT_S = 1.5  # of what may be sent again
TOKEN_HEADER = "x-kvdb-internal-token"
_GOES_ON = (Status.OK, Status.NOT_FOUND, Status.ALREADY_EXISTS, Status.VERSION_MISMATCH, Status.PRECONDITION_FAILED)
_REFUSED = (Status.INVALID_ARGUMENT, Status.PAYLOAD_TOO_LARGE)

_Sent = tuple[Item, Route]


class AsyncLeaders:
    """See the module."""

    def __init__(self, coordinators: Sequence[str], internal_token: str, tls: Tls | None) -> None:
        self._metadata = ((TOKEN_HEADER, internal_token),) if internal_token else ()
        self._channels = AsyncChannels(tls)
        self._streams: dict[str, AsyncNodeStream] = {}
        self._opening = Lock()
        self.map = AsyncMapWatch(coordinators, self._channels.to)

    async def close(self) -> None:
        """Close the connections; calls that are waiting fail."""
        await self.map.stop()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            await stream.stop()
        await self._channels.close()

    async def call(self, request: Request, patience: Patience) -> Response:
        """What the shard said to one request."""
        return (await self.call_many([request], patience))[0]

    async def call_many(self, requests: Sequence[Request], patience: Patience) -> list[Response]:
        """What the shards said to each request, in their order."""
        await self._need_map(patience)
        items = [item_of(request) for request in requests]
        chains: dict[bytes, deque[Item]] = {}
        for item in items:
            chains.setdefault(item.key, deque()).append(item)
        while True:
            for chain in chains.values():
                _shorten(chain)
            chains = {key: chain for key, chain in chains.items() if chain}
            if not chains:
                break
            later = await self._round([chain[0] for chain in chains.values()], patience)
            if later and patience.lasts():
                async with self._opening:
                    self.map.fetch_soon()
                await sleep(patience.next_pause_s())
                if patience.allows_an_attempt():
                    continue
            for item in later:
                item.out_of_time()
        return [item.response for item in items if item.response is not None]

    async def scan(self, request: ScanRequest, patience: Patience) -> ScanResponse:
        """Putting pages together is the gateways' work."""
        raise InvalidArgumentError('a smart client has no scan; use a client of a gateway for it: Client("host:7000")')

    async def _need_map(self, patience: Patience) -> None:
        """Wait for the first map; raises UnavailableError when there is none in time."""
        async with self._opening:
            await self.map.start()
        if not await self.map.known.wait(patience.left_s()):
            raise UnavailableError(f"there is no shard map: {self.map.trouble}")

    async def _round(self, items: Sequence[Item], patience: Patience) -> list[Item]:
        """Ask for each of them once. Returns those that should be asked for again after a pause."""
        groups: dict[tuple[str, bool], list[_Sent]] = {}
        later: list[Item] = []
        for item in items:
            route = self.map.current.route_of(item.key)
            if route is None:
                later.append(item)
                continue
            item.keep_session(route)
            by_hint = bool(item.hint)
            address = item.addressed(route, random.random())
            if not address:
                message = "no node of the shard is known"
                item.last = Status(code=Status.UNAVAILABLE, message=message, shard_id=route.shard_id)
                later.append(item)
                continue
            item.operation.shard_id = route.shard_id
            item.operation.epoch = 0 if by_hint else route.epoch
            groups.setdefault((address, item.safe), []).append((item, route))
        asking = [partial(self._ask, address, group, safe, patience) for (address, safe), group in groups.items()]
        for (address, _), outcomes in zip(groups, await run_all(asking), strict=True):
            for item, route, outcome in outcomes:
                if settle(item, address, outcome, route) is Step.LATER:
                    later.append(item)
        return later

    async def _ask(
        self, address: str, group: Sequence[_Sent], safe: bool, patience: Patience
    ) -> list[tuple[Item, Route, Outcome]]:
        timeout_s = min(patience.left_s(), ATTEMPT_TIMEOUT_S) if safe else patience.left_s()
        for item, _ in group:
            item.operation.deadline_ms = max(1, int(timeout_s * 1000))
        stream = await self._stream(address)
        outcomes = await stream.ask([item.operation for item, _ in group], timeout_s)
        return [(item, route, outcome) for (item, route), outcome in zip(group, outcomes, strict=True)]

    async def _stream(self, address: str) -> AsyncNodeStream:
        async with self._opening:
            stream = self._streams.get(address)
            if stream is None or not stream.usable:
                stream = self._streams[address] = AsyncNodeStream(self._channels.to(address), self._metadata)
            return stream


def _shorten(chain: deque[Item]) -> None:
    """Drop what is answered; after an answer that lets the later ones not begin, answer them too."""
    while chain and (response := chain[0].response) is not None:
        chain.popleft()
        code = response.status.code
        if code in _GOES_ON or code in _REFUSED:
            continue
        follows = Status.RATE_LIMITED if code == Status.RATE_LIMITED else Status.UNAVAILABLE
        message = "not begun: an earlier operation of this key was not done, or not certainly"
        retry_after_ms = response.status.retry_after_ms
        for item in chain:
            item.answer(Status(code=follows, message=message, retry_after_ms=retry_after_ms))
