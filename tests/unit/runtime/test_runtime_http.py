"""The small HTTP endpoint of every service."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from flotta_runtime.errors import StartupError
from flotta_runtime.http import status_server
from flotta_runtime.metrics import Metrics


async def test_live_ready_and_metrics() -> None:
    metrics = Metrics("unit", "n-1")
    metrics.counter("unit_things_total", "Things.").inc(3)
    state = (False, "shard-3 has no leader")
    server = status_server(metrics, lambda: state, "127.0.0.1:0")
    port = await server.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert (await client.get("/livez")).status_code == 200
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {"status": "unavailable", "reason": "shard-3 has no leader"}
        state = (True, "serving")
        assert (await client.get("/readyz")).status_code == 200
        text = (await client.get("/metrics")).text
        assert "unit_things_total 3.0" in text
        assert 'flotta_service_info{node="n-1",service="unit"} 1.0' in text
        assert (await client.get("/other")).status_code == 404
        refused = await client.post("/livez")
        assert refused.status_code == 405
        assert refused.headers["allow"] == "GET, HEAD"
        assert (await client.head("/livez")).text == ""
    second = status_server(metrics, lambda: state, f"127.0.0.1:{port}")
    with pytest.raises(StartupError, match=f"127.0.0.1:{port}"):
        await second.start()
    await server.stop()
    await server.stop()


async def test_tasks_of_the_scraped_loop_are_counted() -> None:
    metrics = Metrics("unit")

    def counted() -> float:
        found = metrics.registry.get_sample_value("flotta_asyncio_tasks")
        assert found is not None
        return found

    before, gate = counted(), asyncio.Event()
    waiting = [asyncio.create_task(gate.wait()) for _ in range(3)]
    assert counted() == before + 3
    gate.set()
    await asyncio.gather(*waiting)
    assert counted() == before
    assert await asyncio.to_thread(counted) == 0
