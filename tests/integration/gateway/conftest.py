"""A gateway in this process before a fake cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
import pytest
from fake_cluster import FakeCluster
from fake_node import TOKEN
from flotta_gateway.app import Gateway, start
from flotta_gateway.settings import GatewaySettings
from flotta_proto.kvdb.gateway_pb2_grpc import KvGatewayStub

StartGateway = Callable[..., Awaitable[tuple[Gateway, KvGatewayStub]]]


@pytest.fixture
def transport() -> str:
    """How a gateway reaches its nodes. Modules whose tests depend on it run with both."""
    return "native"


@pytest.fixture
async def cluster(transport: str) -> AsyncIterator[FakeCluster]:
    made = await FakeCluster(native=transport == "native").start()
    yield made
    await made.stop()


@pytest.fixture
async def start_gateway(transport: str) -> AsyncIterator[StartGateway]:
    """Call with a cluster and settings; get a gateway and a stub on it."""
    stops: list[Callable[[], Awaitable[Any]]] = []

    async def make(cluster: FakeCluster, **settings: Any) -> tuple[Gateway, KvGatewayStub]:
        settings.setdefault("transport", transport)
        settings.setdefault("coordinators", tuple(one.address for one in cluster.coordinators))
        gateway = await start(
            GatewaySettings(
                listen="127.0.0.1:0", http_listen="127.0.0.1:0", internal_token=TOKEN, stop_timeout_ms=500, **settings
            )
        )
        stops.append(gateway.stop)
        options = [("grpc.max_send_message_length", 20 << 20), ("grpc.max_receive_message_length", 20 << 20)]
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", options=options)
        stops.append(channel.close)
        return gateway, KvGatewayStub(channel)

    yield make
    for stop in reversed(stops):
        await stop()
