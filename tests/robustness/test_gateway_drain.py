"""Processes stopped by SIGTERM under load, one after the other: not one call fails at a client that has another way.

Two clients have both gateways: the SDK's, and a plain grpc channel that spreads its calls over both addresses and
knows no retry but what gRPC does by itself. Writes carry no request id on the plain channel, so nothing but a call
that certainly was not carried out may be sent again there. A gateway is stopped only once both clients have another:
a channel that waits before it connects again knows of none.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import pytest
from flotta import AsyncClient, FlottaError
from flotta_proto.kvdb import gateway_pb2, gateway_pb2_grpc
from flotta_runtime.settings import Transport
from free_ports import HTTP_OFFSET
from process_cluster import ProcessCluster, replicas_equal, running, until

WORKERS = 8
SHARDS = 4
ENOUGH = 200  # exchanges of each client between two events
SPREADING = [
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    *((f"grpc.{which}_reconnect_backoff_ms", 200) for which in ("initial", "min", "max")),
]
TIMEOUT_S = 15
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Exchange = Callable[[bytes, bytes], Awaitable[None]]
"""Put a value under a key and read it back; raises if either fails."""


@dataclass
class Callers:
    """Workers that call without pause through one client; every failure is kept."""

    name: str
    exchange: Exchange
    calls: int = 0
    failures: list[str] = field(default_factory=list)
    longest_s: float = 0

    async def run(self, stopping: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(WORKERS):
                group.create_task(self._work(b"%s %d" % (self.name.encode(), number), stopping))

    async def _work(self, key: bytes, stopping: asyncio.Event) -> None:
        value = 0
        while not stopping.is_set():
            value, begun = value + 1, time.monotonic()
            try:
                await self.exchange(key, b"%d" % value)
            except (grpc.aio.AioRpcError, FlottaError, AssertionError) as error:
                details = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
                self.failures.append(f"{type(error).__name__}: {details}")
            self.calls += 1
            self.longest_s = max(self.longest_s, time.monotonic() - begun)

    def __str__(self) -> str:
        return f"{self.name}: {self.calls} exchanges, {len(self.failures)} failed, the longest {self.longest_s:.2f} s"


def sdk(client: AsyncClient) -> Exchange:
    async def exchange(key: bytes, value: bytes) -> None:
        await client.put(key, value, timeout_ms=TIMEOUT_S * 1_000)
        entry = await client.get(key, timeout_ms=TIMEOUT_S * 1_000)
        assert entry is not None and entry.value == value, entry

    return exchange


def plain(channel: grpc.aio.Channel) -> Exchange:
    stub = gateway_pb2_grpc.KvGatewayStub(channel)

    async def exchange(key: bytes, value: bytes) -> None:
        put = await stub.Put(gateway_pb2.PutRequest(key=key, value=value), timeout=TIMEOUT_S)
        assert put.status.code == gateway_pb2.Status.OK, put.status
        got = await stub.Get(gateway_pb2.GetRequest(key=key), timeout=TIMEOUT_S)
        assert got.status.code == gateway_pb2.Status.OK and got.kv.value == value, got.status
        # Only this client deletes: that tells its calls from the other's.
        deleted = await stub.Delete(gateway_pb2.DeleteRequest(key=key), timeout=TIMEOUT_S)
        assert deleted.status.code == gateway_pb2.Status.OK, deleted.status

    return exchange


@asynccontextmanager
async def both_clients(addresses: list[str]) -> AsyncIterator[list[Callers]]:
    """They call while the block runs."""
    target, stopping = "ipv4:" + ",".join(addresses), asyncio.Event()
    async with (
        AsyncClient(*addresses) as client,
        grpc.aio.insecure_channel(target, options=SPREADING) as channel,
    ):
        callers = [Callers("sdk", sdk(client)), Callers("round robin", plain(channel))]
        async with asyncio.TaskGroup() as group:
            for one in callers:
                group.create_task(one.run(stopping))
            try:
                yield callers
            finally:
                stopping.set()


async def flowing(callers: list[Callers]) -> None:
    """Every client makes that many calls more."""
    before = [one.calls for one in callers]

    async def enough() -> bool:
        return all(one.calls >= start + ENOUGH for one, start in zip(callers, before, strict=True))

    await until(enough, f"{ENOUGH} exchanges of every client")


async def terminate(cluster: ProcessCluster, name: str) -> float:
    """SIGTERM; how long it took to end."""
    begun = time.monotonic()
    os.kill(cluster.pid(name), signal.SIGTERM)

    async def gone() -> bool:
        return not cluster.alive(name)

    await until(gone, f"{name} has ended")
    return time.monotonic() - begun


async def page(port: int, path: str) -> list[bytes]:
    """The lines of what a process answers over HTTP."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port + HTTP_OFFSET)
    try:
        writer.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
        return (await reader.read()).splitlines()
    finally:
        writer.close()


async def start_again(cluster: ProcessCluster, name: str, port: int) -> None:
    """Back, and /readyz says so."""
    await cluster.command("start", name)

    async def ready() -> bool:
        return (await page(port, "/readyz"))[0].split()[1] == b"200"

    await until(ready, f"{name} is ready")


async def reached(port: int) -> None:
    """The plain channel calls this gateway too."""

    async def called() -> bool:
        lines = await page(port, "/metrics")
        found = [line for line in lines if line.startswith(b"grpc_server_started_total") and b'"Delete"' in line]
        return any(float(line.split()[-1]) > 0 for line in found)

    await until(called, f"the gateway at {port} is called")


def told(callers: list[Callers], ended: list[tuple[str, float]], transport: str) -> None:
    took = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in ended)
    print(f"\n{transport}: ended after {took}\n" + "\n".join(map(str, callers)))


def none_failed(*callers: Callers) -> None:
    failures = [failure for one in callers for failure in one.failures]
    assert not failures, failures[:5]


@pytest.mark.parametrize("transport", ["native", "grpcio"])
async def test_gateways_that_stop_lose_no_call(tmp_path: Path, transport: Transport) -> None:
    ended: list[tuple[str, float]] = []
    async with running(tmp_path, shards=SHARDS, gateways=2, transport=transport) as cluster:
        addresses = [cluster.gateway_address(1), cluster.gateway_address(2)]
        async with both_clients(addresses) as callers:
            await flowing(callers)
            for number, name in ((0, "gateway"), (1, "gateway-2"), (0, "gateway")):
                ended.append((name, await terminate(cluster, name)))
                await flowing(callers)
                await start_again(cluster, name, cluster.gateway_port + number)
                await reached(cluster.gateway_port + number)
                await flowing(callers)
        told(callers, ended, transport)
        # grpcio's server cancels a call now and then that comes while it stops: only a client that sends it again by
        # itself does not see that.
        none_failed(*(callers if transport == "native" else callers[:1]))


@pytest.mark.parametrize("transport", ["native", "grpcio"])
async def test_storage_nodes_that_stop_hand_over_first_and_lose_no_call(tmp_path: Path, transport: Transport) -> None:
    ended: list[tuple[str, float]] = []
    async with running(tmp_path, shards=SHARDS, gateways=2, transport=transport) as cluster:
        addresses = [cluster.gateway_address(1), cluster.gateway_address(2)]

        async def leads(name: str) -> bool:
            return any(shard["leader"] == name for shard in (await cluster.shards()).values())

        async with both_clients(addresses) as callers:
            await flowing(callers)
            for number, name in enumerate(("node-1", "node-2", "node-3")):
                led = await leads(name)
                ended.append((f"{name} ({'a' if led else 'no'} leader)", await terminate(cluster, name)))
                assert "stopping as a leader" not in cluster.log(name), "a leadership was not handed over"
                await flowing(callers)
                await start_again(cluster, name, cluster.node_port + number)
                await flowing(callers)
        told(callers, ended, transport)
        none_failed(*callers)
        assert any("a leader" in name for name, _ in ended), "nobody that led was stopped"
        await replicas_equal(cluster)
