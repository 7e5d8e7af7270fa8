"""A client of the cluster simulation that scans: pages of random ranges, both ways, each from any gateway.

What a STRONG page shows, and what it leaves out, are reads of its keys: each stands at the revision at which the page
read the key's shard, and lies between the page's request and its answer. They go into the history as such.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import grpc.aio
from cluster_clients import CODES, Keys, Outsider
from cluster_rpc import SimChannel
from flotta_consensus.sim.checkers import SafetyViolation
from flotta_consensus.sim.clock import stream
from flotta_consensus.sim.history import Verdict
from flotta_proto.flotta.kv_pb2 import ScanRequest, ScanResponse
from flotta_proto.flotta.kv_pb2_grpc import KvStub
from flotta_runtime.hashing import shard_index

if TYPE_CHECKING:
    from cluster_world import Cluster

PAGES_MAX = 60
TOKEN_HEAD_BYTES = 5  # in front of the key that a token holds


class ScanClient:
    """One closed loop. `number`: unlike any other client's."""

    def __init__(self, cluster: Cluster, outsider: Outsider, number: int, keys: Keys) -> None:
        self.number = number
        self.idle = True
        self._cluster = cluster
        self._outsider = outsider
        self._keys = sorted((*keys.rows, *keys.timed))
        self._rng = stream(cluster.world.seed, f"cluster/scans/{number}")
        self._stopped = False
        cluster.spawn(outsider, self._run())

    def stop(self) -> None:
        """No new scan; the one that runs goes on to its end."""
        self._stopped = True

    async def _run(self) -> None:
        rng, mean_ms = self._rng, self._cluster.profile.think_mean_ms
        while not self._stopped:
            await asyncio.sleep(rng.expovariate(1 / (4 * mean_ms)) / 1000)
            self.idle = False
            await self._scan()
            self.idle = True

    async def _scan(self) -> None:
        """Page after page, until there is none or one fails for good."""
        rng, count = self._rng, self._cluster.world.transcript.count
        low, high = sorted(rng.choices(self._keys, k=2))
        request = ScanRequest(start=low, end=high if rng.random() < 0.7 else b"", reverse=rng.random() < 0.4)
        request.limit = rng.choice((1, 2, 3, 50))
        before = b""
        shown: list[bytes] = []
        for _ in range(PAGES_MAX):
            called_us = self._cluster.world.scheduler.now_us
            page = await self._page(request)
            if page is None:
                count("scans_broken_off")
                return
            count("scan_pages")
            names = [entry.key for entry in page.entries]
            shown += names
            if shown != sorted(shown, reverse=request.reverse):
                raise SafetyViolation(f"a scan went back: {shown[-5:]}")
            token = page.next_page_token
            bound = token[TOKEN_HEAD_BYTES:]
            self._reads(request, page, before, bound, called_us)
            if not token:
                count("scans_ended")
                return
            before, request.page_token = bound, token

    async def _page(self, request: ScanRequest) -> ScanResponse | None:
        rng, cluster = self._rng, self._cluster
        for _ in range(5):
            address = rng.choice(cluster.gateways).address
            channel: Any = SimChannel(cluster.wires, self._outsider, address, None)
            try:
                page: ScanResponse = await KvStub(channel).Scan(request, timeout=rng.choice((0.5, 1.5, 4.0)))
            except grpc.aio.AioRpcError:
                continue
            if page.status.code == CODES.OK:
                return page
            if page.status.code == CODES.INVALID_ARGUMENT:
                raise SafetyViolation(f"a scan was refused: {page.status.message}")
            await asyncio.sleep(rng.random() * 0.2)
        return None

    def _reads(self, request: ScanRequest, page: ScanResponse, before: bytes, bound: bytes, called_us: int) -> None:
        """Every key that the page is about, shown or not."""
        cluster = self._cluster
        found = {entry.key: (entry.value, entry.version) for entry in page.entries}
        revisions = {shard.shard_id: shard.revision for shard in page.shards}
        low, high = request.start, request.end
        if request.reverse:
            high = before or high
            low = max(low, bound)
        else:
            low = before or low
            high = bound or high
        inside = [key for key in self._keys if low <= key and (not high or key < high)]
        if set(found) - set(inside):
            raise SafetyViolation(f"a page shows what it is not about: {set(found) - set(inside)}")
        for key in inside:
            first = shard_index(key, cluster.profile.shards)
            operation = cluster.history.call(self.number, first, "get", key, 0, called_us)
            operation.result = found.get(key)
            if not cluster.profile.any_count:
                operation.revision = revisions[self._owner(key, revisions)]
            operation.verdict, operation.returned_us = Verdict.OK, cluster.world.scheduler.now_us
            operation.notes["told"] = True

    def _owner(self, key: bytes, read: Collection[str]) -> str:
        """Which of the shards that a page read had the key: a divided one is read with all of its children."""
        count = self._cluster.profile.shards
        first = shard_index(key, count)
        family = [shard_id for shard_id in read if int(shard_id.removeprefix("shard-")) % count == first]
        return f"shard-{shard_index(key, count * len(family))}"
