"""Storage nodes behind a real gateway, over links and over gRPC streams: stops, kills, and who is let in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import certificates
import flotta_native
import pytest
from certificates import Authority, Pair
from flotta_gateway.app import Gateway, start
from flotta_gateway.settings import GatewaySettings
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_proto.kvdb.gateway_pb2_grpc import KvGatewayStub
from flotta_runtime.auth import REFUSAL, token_metadata
from flotta_runtime.links import Links, hello_of
from flotta_runtime.tls import Tls, TlsFiles, open_channel
from flotta_runtime.turns import Turns
from storage_cluster import TOKEN, Cluster

THREE = ["node-1", "node-2", "node-3"]
Status = gw.Status
BOTH = pytest.mark.parametrize("transport", ["native", "grpcio"])


@pytest.fixture
async def gateway(cluster: Cluster) -> AsyncIterator[Gateway]:
    """Over three nodes with four shards."""
    await cluster.open(3)
    await cluster.create_shards(4, THREE)
    made = await start(
        GatewaySettings(
            listen="127.0.0.1:0",
            http_listen="127.0.0.1:0",
            internal_token=TOKEN,
            transport=cluster.transport,
            coordinators=(f"127.0.0.1:{cluster.coordinator_port}",),
            deadline_default_ms=20_000,
            stop_timeout_ms=500,
            **(certificates.settings(cluster.tls_files) if cluster.tls_files is not None else {}),
        )
    )
    yield made
    await made.stop()


class Load:
    """Clients that write and read back, each its own keys, and keep every answer that was not OK."""

    def __init__(self, gateway: Gateway, clients: int, tls: TlsFiles | None = None) -> None:
        self._channel = open_channel(Tls(tls) if tls is not None else None, f"127.0.0.1:{gateway.port}", ())
        self._stub = KvGatewayStub(self._channel)
        self._stop = asyncio.Event()
        self.done = 0
        self.failed: list[str] = []
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(clients)]

    async def _client(self, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            key, value = b"%d-%d" % (number, turn % 20), b"%d" % turn
            put = await self._stub.Put(gw.PutRequest(key=key, value=value))
            got = await self._stub.Get(gw.GetRequest(key=key))
            for what, status in (("put", put.status), ("get", got.status)):
                if status.code != Status.OK:
                    self.failed.append(f"{what} of {key!r}: {Status.Code.Name(status.code)} {status.message}")
            if put.status.code == got.status.code == Status.OK:
                assert got.kv.value == value
            self.done += 1

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)
        await self._channel.close()


@BOTH
async def test_nodes_that_stop_and_come_back_fail_no_call(cluster: Cluster, gateway: Gateway) -> None:
    load = Load(gateway, 10)
    await cluster.until(lambda: load.done > 50)
    for node_id in THREE:
        await cluster.stop(node_id)
        before = load.done
        await cluster.until(lambda before=before: load.done > before + 50)
        await cluster.start(node_id)
        await cluster.until(lambda: sum(link.up for link in gateway.links.links()) == 3)
        before = load.done
        await cluster.until(lambda before=before: load.done > before + 50)
    await load.stop()
    assert load.failed == []


async def check_links(cluster: Cluster, gateway: Gateway) -> None:
    """Everything goes over links, or nothing does. A node that has just come back may not have heard of Raft yet."""
    native = gateway._native
    assert (native is not None) == (cluster.transport == "native")
    if native is not None:
        assert native.hub.stats().links == len(cluster.nodes)
        for node in cluster.nodes.values():
            assert node._native is not None
            hub = node._native.hub
            await cluster.until(lambda hub=hub: hub.stats().raft_frames_in > 0 and hub.stats().raft_frames_out > 0)
        assert native.hub.stats().frames_out > 0


@BOTH
async def test_one_link_for_each_node_or_none(cluster: Cluster, gateway: Gateway) -> None:
    load = Load(gateway, 10)
    await cluster.until(lambda: load.done > 100)
    await load.stop()
    assert load.failed == []
    await check_links(cluster, gateway)


class TestWithTls:
    """Everybody shows a certificate and asks for one."""

    @pytest.fixture
    def authority(self, tmp_path: Path) -> Authority:
        return Authority(tmp_path / "authority")

    @pytest.fixture
    def pair(self, authority: Authority) -> Pair:
        return authority.sign("everybody")

    @pytest.fixture
    def tls(self, authority: Authority, pair: Pair) -> TlsFiles:
        return authority.files(pair, mutual=True)

    @BOTH
    async def test_links_and_streams_are_made_anew_with_replaced_certificates(
        self, cluster: Cluster, gateway: Gateway, authority: Authority, pair: Pair
    ) -> None:
        load = Load(gateway, 5, cluster.tls_files)
        await cluster.until(lambda: load.done > 50)
        await check_links(cluster, gateway)
        certificates.replace(pair, authority.sign("everybody-else"))
        await cluster.until(
            lambda: all(node._tls is not None and node._tls.generation for node in cluster.nodes.values())
        )
        for node_id in THREE:
            await cluster.stop(node_id)
            await cluster.start(node_id)
            await cluster.until(lambda: sum(link.up for link in gateway.links.links()) == 3)
        before = load.done
        await cluster.until(lambda: load.done > before + 50)
        await load.stop()
        assert load.failed == []
        await check_links(cluster, gateway)


class Stranger:
    """Owns a link that should not come to be."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def up(self, greeting: bytes) -> None:
        self.ended.set_result("let in")

    def down(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

    def frame(self, data: bytes) -> None: ...

    def next_frame(self) -> bytes:
        return b""

    def not_taken(self) -> None: ...


async def test_strangers_are_refused_with_a_reason(cluster: Cluster) -> None:
    await cluster.open(1)
    address = f"127.0.0.1:{cluster.nodes['node-1'].port}"
    links = Links(flotta_native.LinkHub(), Turns())
    reading = asyncio.create_task(links.run())

    async def told(purpose: str, token: str) -> str:
        stranger = Stranger()
        links.connect(address, purpose, hello_of(token_metadata(token)), stranger, 5_000)
        async with asyncio.timeout(20):
            return await stranger.ended

    assert await told("requests", "guess") == REFUSAL
    assert await told("requests", "") == REFUSAL
    assert await told("raft", "guess") == "missing or wrong internal token"
    assert "the message was meant for ''" in await told("raft", TOKEN)
    assert await told("cats", TOKEN) == "this process takes no links for 'cats'"
    assert await told("requests", TOKEN) == "let in"
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    links.shut_down()
