"""The load of the cluster simulation: clients of the gateways, over the client API.

Every call is one operation of the history. A client repeats a write of unknown outcome only under its request id.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from cluster_rpc import SimChannel
from cluster_wires import End
from flotta_consensus.sim.clock import stream
from flotta_consensus.sim.history import Operation, Verdict
from flotta_consensus.sim.loop import SimLoop
from flotta_proto.kvdb import gateway_pb2 as pb
from flotta_proto.kvdb.gateway_pb2_grpc import KvGatewayStub
from flotta_runtime.hashing import shard_index
from shard_checks import padded, shortened, tag_of
from shard_model import Answer

if TYPE_CHECKING:
    from cluster_world import Cluster

CODES = pb.Status.Code
REFUSALS = {CODES.NOT_FOUND, CODES.ALREADY_EXISTS, CODES.VERSION_MISMATCH}
CERTAINLY_NOT = {CODES.UNAVAILABLE, CODES.NOT_LEADER, CODES.SHARD_MOVED, CODES.RATE_LIMITED}
ATTEMPTS_MAX = 5


class Outsider:
    """Somebody outside of the cluster, who never dies: clients and operators. Implements `cluster_wires.Endpoint`."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.number = number
        self.ends: dict[End, None] = {}
        self.powered = True
        self._scheduler = cluster.world.scheduler
        self._woken = False
        self.loop: SimLoop | None = SimLoop(
            self._scheduler, self._wake, lambda work: self._scheduler.after(1_000, work) and None
        )

    def accept(self, end: End, greeting: Any) -> None:
        raise RuntimeError("nobody calls a client")

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._scheduler.after(50, self._turn)

    def _turn(self) -> None:
        self._woken = False
        if self.loop is not None:
            asyncio._set_running_loop(self.loop)
            try:
                self.loop.run_ready()
            finally:
                asyncio._set_running_loop(None)
            if self.loop._ready:
                self._wake()


@dataclass(frozen=True, slots=True)
class Keys:
    rows: Sequence[bytes]
    timed: Sequence[bytes]

    @classmethod
    def draw(cls, shards: int, rows: int) -> Keys:
        """So many keys of each shard, and one that expires."""
        found: dict[int, list[bytes]] = {index: [] for index in range(shards)}
        number = 0
        while any(len(keys) <= rows for keys in found.values()):
            key = b"key-%d" % number
            number += 1
            keys = found[shard_index(key, shards)]
            if len(keys) <= rows:
                keys.append(key)
        return cls([key for keys in found.values() for key in keys[1:]], [keys[0] for keys in found.values()])


@dataclass(frozen=True, slots=True)
class Wish:
    """What to do; all attempts share it."""

    kind: str
    key: bytes
    condition: int = 0
    ttl_ms: int = 0
    request_id: bytes = b""
    padding_bytes: int = 0
    eventual: bool = False


class Client:
    """One closed loop."""

    def __init__(self, cluster: Cluster, outsider: Outsider, number: int, keys: Keys) -> None:
        self.number = number
        self.idle = True
        self._cluster = cluster
        self.outsider = outsider
        self._keys = keys
        self._rng = stream(cluster.world.seed, f"cluster/client/{number}")
        self._versions: dict[bytes, int] = {}
        self._requests = 0
        self._stopped = False
        self._gateway = self._rng.randrange(len(cluster.gateways))
        cluster.spawn(outsider, self._run())

    def stop(self) -> None:
        """No new operation; the one that runs goes on to its end."""
        self._stopped = True

    async def _run(self) -> None:
        rng, mean_ms = self._rng, self._cluster.profile.think_mean_ms
        while not self._stopped:
            await asyncio.sleep(rng.expovariate(1 / mean_ms) / 1000)
            self.idle = False
            await self._fulfil(self._draw())
            self.idle = True

    def _draw(self) -> Wish:
        rng = self._rng
        timed = rng.random() < 0.15
        key = rng.choice(self._keys.timed if timed else self._keys.rows)
        dice = rng.random()
        if dice < 0.4:
            return Wish("get", key, eventual=rng.random() < 0.1)
        kind = "delete" if dice < 0.5 else "create" if dice < 0.6 else "put"
        condition = self._versions.get(key, 0) if kind != "create" and rng.random() < 0.3 else 0
        ttl_ms = rng.choice((5, 200, 3_000)) if timed and kind != "delete" and rng.random() < 0.7 else 0
        request_id = b""
        if kind == "delete" or rng.random() < 0.4:  # nothing else marks a delete in the log
            self._requests += 1
            request_id = b"flotta:%d:%d-%d" % (self._cluster.world.wall_ms, self.number, self._requests)
        padding_bytes = rng.randrange(600) if kind != "delete" and rng.random() < 0.3 else 0
        return Wish(kind, key, condition, ttl_ms, request_id, padding_bytes)

    async def _fulfil(self, wish: Wish) -> None:
        """Attempts until it is done, or refused for good, or in doubt and not repeatable."""
        rng = self._rng
        for _ in range(ATTEMPTS_MAX):
            if rng.random() < 0.1:
                self._gateway = rng.randrange(len(self._cluster.gateways))
            operation = await self._attempt(wish)
            if operation.verdict is Verdict.OK:
                return
            if operation.verdict is Verdict.UNKNOWN and not wish.request_id:
                return
            self._gateway = rng.randrange(len(self._cluster.gateways))
            await asyncio.sleep(rng.random() * 0.2)

    async def _attempt(self, wish: Wish) -> Operation:
        cluster, rng = self._cluster, self._rng
        now_us = cluster.world.scheduler.now_us
        shard = shard_index(wish.key, cluster.profile.shards)
        operation = cluster.history.call(self.number, shard, wish.kind, wish.key, 0, now_us)
        if wish.request_id:
            operation.notes["request_id"] = wish.request_id
        if wish.eventual:
            operation.notes["eventual"] = True
        if wish.kind != "get":
            operation.args = (padded(tag_of(operation), wish.padding_bytes), wish.condition)
        address = cluster.gateways[self._gateway].address
        channel: Any = SimChannel(cluster.wires, self.outsider, address, None)
        try:
            response = await self._call(KvGatewayStub(channel), wish, operation, rng.choice((0.5, 1.5, 4.0)))
        except grpc.aio.AioRpcError as error:
            never_sent = (error.details() or "").startswith("failed to connect")
            self._judge(operation, Verdict.REJECTED if never_sent else Verdict.UNKNOWN, error.code().name)
        else:
            self._take(operation, response)
        operation.returned_us = cluster.world.scheduler.now_us
        cluster.world.transcript.note(
            f"client {self.number}",
            f"{operation.number} {operation.kind} {operation.key.decode()} -> {operation.verdict.value} "
            f"{operation.reason or shortened(operation.result)} @{operation.revision}",
        )
        return operation

    async def _call(self, stub: KvGatewayStub, wish: Wish, operation: Operation, timeout: float) -> Any:
        ctx = pb.RequestContext(request_id=wish.request_id.decode())
        if wish.kind == "get":
            consistency = pb.EVENTUAL if wish.eventual else pb.STRONG
            return await stub.Get(
                pb.GetRequest(ctx=ctx, key=wish.key, options=pb.ReadOptions(consistency=consistency)), timeout=timeout
            )
        options = pb.WriteOptions(
            require_idempotency=bool(wish.request_id),
            ttl_ms=wish.ttl_ms,
            if_version_equals=wish.condition,
            if_not_exists=wish.kind == "create",
        )
        if wish.kind == "delete":
            return await stub.Delete(pb.DeleteRequest(ctx=ctx, key=wish.key, options=options), timeout=timeout)
        value = operation.args[0]
        return await stub.Put(pb.PutRequest(ctx=ctx, key=wish.key, value=value, options=options), timeout=timeout)

    def _take(self, operation: Operation, response: Any) -> None:
        """What the gateway says, as the checkers have it."""
        code = response.status.code
        if code == CODES.OK and operation.kind == "get":
            operation.result = (response.kv.value, response.kv.version)
            operation.revision = response.revision
            self._versions[operation.key] = response.kv.version
            self._judge(operation, Verdict.OK, "")
        elif code == CODES.OK:
            operation.result = Answer("OK", response.revision, response.version)
            operation.revision = response.revision
            self._versions[operation.key] = response.version
            self._judge(operation, Verdict.OK, "")
        elif code in REFUSALS and operation.kind == "get":
            self._judge(operation, Verdict.OK, "")
        elif code in REFUSALS:
            operation.result = Answer(CODES.Name(code), 0)
            self._judge(operation, Verdict.OK, "")
        elif code in CERTAINLY_NOT:
            self._judge(operation, Verdict.REJECTED, f"{CODES.Name(code)} {response.status.message}"[:90])
        else:
            self._judge(operation, Verdict.UNKNOWN, f"{CODES.Name(code)} {response.status.message}"[:90])

    def _judge(self, operation: Operation, verdict: Verdict, reason: str) -> None:
        operation.verdict, operation.reason = verdict, reason
        self._cluster.world.transcript.count(f"operations_{verdict.value}")


def pause_of(rng: random.Random, mean_ms: int) -> float:
    """Seconds until the next one, exponential."""
    return rng.expovariate(1 / mean_ms) / 1000
