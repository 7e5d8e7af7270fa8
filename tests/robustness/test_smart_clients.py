"""Smart clients, blocking and asynchronous, beside nodes that are killed and stopped: no acknowledged write is lost, no
call fails, and they need no gateway.

Each worker counts up under a key of its own, every put conditional on the version before it: a write that was carried
out twice, or one that was denied and yet happened, breaks the chain.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from flotta import AsyncClient, Client, Entry, FlottaError
from flotta_runtime.settings import Transport
from process_cluster import ProcessCluster, replicas_equal, running, until

WORKERS = 4
ENOUGH = 100  # writes of each kind of client between two events
TIMEOUT_MS = 20_000
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass
class Chains:
    """What one kind of client has written: the last (number, version) of each key, and every failure."""

    name: str
    last: dict[str, tuple[int, int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    writes: int = 0

    def wrote(self, key: str, number: int, version: int) -> None:
        self.last[key] = (number, version)
        self.writes += 1

    def next_of(self, key: str) -> tuple[int, int]:
        """The number to write, and the version it must follow."""
        number, version = self.last.get(key, (0, 0))
        return number + 1, version


async def count_up(client: AsyncClient, chains: Chains, key: str, stopping: threading.Event) -> None:
    while not stopping.is_set():
        number, version = chains.next_of(key)
        try:
            made = await client.put(key, str(number), if_version=version, if_absent=not version, timeout_ms=TIMEOUT_MS)
        except FlottaError as error:
            chains.failures.append(f"{type(error).__name__}: {error}")
            return
        chains.wrote(key, number, made)


def count_up_blocking(client: Client, chains: Chains, key: str, stopping: threading.Event) -> None:
    while not stopping.is_set():
        number, version = chains.next_of(key)
        try:
            made = client.put(key, str(number), if_version=version, if_absent=not version, timeout_ms=TIMEOUT_MS)
        except FlottaError as error:
            chains.failures.append(f"{type(error).__name__}: {error}")
            return
        chains.wrote(key, number, made)


async def flowing(kinds: list[Chains]) -> None:
    before = [chains.writes for chains in kinds]

    async def enough() -> bool:
        failed = [failure for chains in kinds for failure in chains.failures]
        assert not failed, failed
        return all(chains.writes >= start + ENOUGH for chains, start in zip(kinds, before, strict=True))

    await until(enough, f"{ENOUGH} writes of every kind of client")


async def upset(cluster: ProcessCluster, kinds: list[Chains]) -> None:
    """Every node in turn is killed, or stopped as an operator stops it, and comes back."""
    await flowing(kinds)
    ends: list[Callable[[str], None]] = [
        lambda node: cluster.kill(node),
        lambda node: os.kill(cluster.pid(node), signal.SIGTERM),
    ]
    for number in range(1, cluster.nodes + 1):
        node = f"node-{number}"
        ends[number % len(ends)](node)
        await flowing(kinds)

        async def gone(node: str = node) -> bool:
            return not cluster.alive(node)

        await until(gone, f"{node} has ended")
        await cluster.command("start", node)
        await flowing(kinds)
        await replicas_are_back(cluster, node)


async def replicas_are_back(cluster: ProcessCluster, node: str) -> None:
    """The node is ALIVE again, so that a quorum is left when the next one goes."""

    async def alive() -> bool:
        status, found = await cluster.admin("GET", f"/admin/nodes/{node}")
        return status == 200 and found["status"] == "ALIVE"

    await until(alive, f"{node} is ALIVE")


@pytest.mark.parametrize("transport", ["native", "grpcio"])
async def test_smart_clients_outlive_their_nodes(tmp_path: Path, transport: Transport) -> None:
    stopping = threading.Event()
    asynchronous, blocking = Chains("asynchronous"), Chains("blocking")
    async with running(tmp_path, shards=4, gateways=1, transport=transport) as cluster:
        addresses = [f"127.0.0.1:{cluster.coordinator_port + number}" for number in range(3)]
        token = cluster.internal_token()
        # Without the gateway, whoever gets through has found the way by itself.
        os.kill(cluster.pid("gateway"), signal.SIGTERM)
        async with AsyncClient.smart(*addresses, internal_token=token) as client:
            with Client.smart(*addresses, internal_token=token) as threaded:
                async with asyncio.TaskGroup() as group:
                    for number in range(WORKERS):
                        group.create_task(count_up(client, asynchronous, f"a{number}", stopping))
                        work = (threaded, blocking, f"b{number}", stopping)
                        group.create_task(asyncio.to_thread(count_up_blocking, *work))
                    try:
                        await upset(cluster, [asynchronous, blocking])
                    finally:
                        stopping.set()
                for chains in (asynchronous, blocking):
                    print(f"{transport}: {chains.name}: {chains.writes} writes, {len(chains.failures)} failed")
                    assert not chains.failures
                    found = [await client.get(key, timeout_ms=TIMEOUT_MS) for key in chains.last]
                    again = [threaded.get(key, timeout_ms=TIMEOUT_MS) for key in chains.last]
                    assert found == again
                    read = [(int(one.value), one.version) for one in found if isinstance(one, Entry)]
                    assert read == list(chains.last.values())
        await replicas_equal(cluster)
