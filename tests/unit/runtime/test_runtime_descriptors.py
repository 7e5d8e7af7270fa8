"""A process takes the descriptors it may have, and no number of clients takes them all."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import grpc.aio
import pytest
from flotta_runtime import descriptors
from flotta_runtime.server import build_server
from grpc_health.v1 import health_pb2, health_pb2_grpc

Limits = tuple[int, int]
PATIENCE_S = 20


@pytest.fixture
def limits() -> Iterator[Limits]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_becomes_the_hard_one(limits: Limits) -> None:
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    descriptors.raise_soft_limit()
    soft, still = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert still == hard
    assert soft == (descriptors.ENOUGH if hard == resource.RLIM_INFINITY else min(hard, descriptors.ENOUGH))


def test_a_soft_limit_that_is_higher_than_needed_stays(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    monkeypatch.setattr(descriptors, "ENOUGH", 256)
    descriptors.raise_soft_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (512, hard)


def test_connections_get_at_most_half(limits: Limits) -> None:
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    assert descriptors.connections_max(10_000) == 256
    assert descriptors.connections_max(100) == 100


async def test_a_crowd_of_connections_leaves_a_native_port_its_files(limits: Limits) -> None:
    _, hard = limits
    server = build_server((), listen="127.0.0.1:0", token="t", transport="native")
    held = 128
    resource.setrlimit(resource.RLIMIT_NOFILE, (held, hard))
    port = await server.start()
    # The crowd lives in this process too, so it needs room of its own.
    resource.setrlimit(resource.RLIMIT_NOFILE, (8 * held, hard))
    with ExitStack() as crowd:
        connected = [crowd.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(held)]
        closed = 0
        deadline = time.monotonic() + PATIENCE_S
        for one in connected[held // 2 :]:
            one.settimeout(max(0.1, deadline - time.monotonic()))
            closed += one.recv(1) == b""
        assert closed == held // 2
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = health_pb2_grpc.HealthStub(channel).Check
        answer = await call(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S, wait_for_ready=True)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await server.stop(0)
