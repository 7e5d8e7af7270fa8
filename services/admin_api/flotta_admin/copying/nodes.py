"""Rows out of shards and into them, over whichever nodes have them: leaders are followed, calls repeated.

Reading and loading may both be repeated (a load of the very same rows is a success), so an answer that did not come
is only a reason to ask again. Invariant: once nothing has come for `PATIENCE_S`, it is given up with the last reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc.aio
from flotta_proto.flotta import storage_pb2 as pb
from flotta_proto.flotta.storage_pb2_grpc import BackupsStub
from flotta_proto.kvdb import coordinator_pb2
from flotta_runtime.errors import NotFound, NotLeader, RateLimited, ShardMoved, Timeout, Unavailable
from flotta_runtime.server import Channel, Dial
from flotta_runtime.status import from_rpc_error

from flotta_admin.coordinator import Coordinators

T = TypeVar("T")
PATIENCE_S: Final = 60.0
PIECE_TIMEOUT_S: Final = 20.0
LOAD_TIMEOUT_S: Final = 15.0
PAUSE_S: Final = 0.05
PAUSE_S_MAX: Final = 1.0

_AGAIN = (NotLeader, ShardMoved, NotFound, Unavailable, Timeout, RateLimited)


class _Patience:
    """How long it is since anything came."""

    def __init__(self) -> None:
        self._now = asyncio.get_running_loop().time
        self._last = self._now()

    def renew(self) -> None:
        self._last = self._now()

    @property
    def over(self) -> bool:
        return self._now() - self._last >= PATIENCE_S


class NodeLinks:
    """Of one copy. `close()` when done."""

    def __init__(self, coordinators: Coordinators, dial: Dial) -> None:
        self._coordinators = coordinators
        self._dial = dial
        self._channels: dict[str, Channel] = {}
        self._map: coordinator_pb2.ClusterState | None = None

    async def close(self) -> None:
        made, self._channels = self._channels, {}
        await asyncio.gather(*(one.close() for one in made.values()))

    async def dump(
        self, shard_id: str, begin: Callable[[], Awaitable[None]], piece: Callable[[bytes], Awaitable[None]]
    ) -> tuple[pb.DumpHead, pb.DumpEnd]:
        """All of a shard, from whichever replica serves it. `begin` is called before the first piece, and again
        whenever it begins anew."""

        patience = _Patience()

        async def taken(rows: bytes) -> None:
            await piece(rows)
            patience.renew()

        async def once(address: str) -> tuple[pb.DumpHead, pb.DumpEnd]:
            await begin()
            link = self._link(address)
            call = BackupsStub(link.grpc).Dump(pb.DumpRequest(shard_id=shard_id), metadata=link.metadata)
            try:
                return await _read(call, taken)
            finally:
                call.cancel()

        return await self._repeatedly(shard_id, once, patience, replicas=True)

    async def load(self, shard_id: str, rows: bytes, group_time_ms: int) -> int:
        """How many of the rows were not there yet."""
        request = pb.LoadRequest(shard_id=shard_id, rows=rows, group_time_ms=group_time_ms)

        async def once(address: str) -> int:
            link = self._link(address)
            call = BackupsStub(link.grpc).Load(request, metadata=link.metadata, timeout=LOAD_TIMEOUT_S)
            return (await call).rows

        return await self._repeatedly(shard_id, once, _Patience(), replicas=False)

    async def _repeatedly(
        self, shard_id: str, once: Callable[[str], Awaitable[T]], patience: _Patience, *, replicas: bool
    ) -> T:
        """Until it is answered. With `replicas` any of them may, the leader first."""
        attempts, hint = 0, ""
        while True:
            try:
                address = hint or await self._address(shard_id, attempts if replicas else 0)
                return await _translated(once(address))
            except _AGAIN as error:
                if patience.over:
                    text = f"{shard_id}: nothing has come for {PATIENCE_S:.0f} s: {error.message}"
                    raise Unavailable(text, shard_id=shard_id) from error
                hint = (error.leader_hint or "") if isinstance(error, NotLeader) else ""
                self._map = None
                await asyncio.sleep(min(PAUSE_S_MAX, PAUSE_S * 2 ** min(attempts, 10)))
                attempts += 1

    async def _address(self, shard_id: str, attempt: int) -> str:
        if self._map is None:
            self._map = await self._coordinators.state()
        shard = self._map.shards.get(shard_id)
        if shard is None:
            raise Unavailable(f"the map has no {shard_id}", shard_id=shard_id)
        others = [node_id for node_id in shard.replicas if node_id != shard.leader]
        names = [name for name in (shard.leader, *others) if name in self._map.nodes]
        if not names:
            raise Unavailable(f"{shard_id} has no leader yet", shard_id=shard_id)
        return self._map.nodes[names[attempt % len(names)]].address

    def _link(self, address: str) -> Channel:
        if address not in self._channels:
            self._channels[address] = self._dial(address)
        return self._channels[address]


async def _translated(work: Awaitable[T]) -> T:
    try:
        return await work
    except grpc.aio.AioRpcError as failure:
        raise from_rpc_error(failure) from failure


async def _read(call: Any, piece: Callable[[bytes], Awaitable[None]]) -> tuple[pb.DumpHead, pb.DumpEnd]:
    head, end, taken = pb.DumpHead(), None, 0
    while True:
        try:
            part = await asyncio.wait_for(call.read(), PIECE_TIMEOUT_S)
        except TimeoutError as error:
            raise Timeout(f"nothing came for {PIECE_TIMEOUT_S:.0f} s") from error
        if part is grpc.aio.EOF:
            break
        kind = part.WhichOneof("part")
        if kind == "rows":
            await piece(part.rows)
            taken += len(part.rows)
        elif kind == "head":
            head = part.head
        else:
            end = part.end
    if end is None or end.row_bytes != taken:
        raise Unavailable("a dump ended early")
    return head, end
