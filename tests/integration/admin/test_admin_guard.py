"""Who may call, and what every request gets: correlation id, probes, metrics, OpenAPI."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from admin_support import Cluster, admin, client

CLOSED = ["/admin/nodes", "/admin/actuator/metrics", "/admin/cluster/summary", "/nowhere", "/admin/actuator/healthy"]
OPEN = ["/livez", "/metrics", "/openapi.json", "/admin/actuator/info"]


async def test_a_missing_or_wrong_key_is_401(web: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=web.base_url, trust_env=False) as stranger:
        for path in CLOSED:
            for key in (None, "", "wrong", "ADMIN-KEY", "admin-key-"):
                answer = await stranger.get(path, headers={} if key is None else {"X-Admin-Api-Key": key})
                assert answer.status_code == 401, (path, key)
                assert answer.json() == {"error": "invalid_api_key", "path": path}


async def test_probes_and_description_need_no_key(web: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=web.base_url, trust_env=False) as stranger:
        for path in OPEN:
            assert (await stranger.get(path)).status_code == 200, path


async def test_the_allowlist_comes_first_and_looks_at_the_socket_only(cluster: Cluster) -> None:
    forwarded = {"X-Forwarded-For": "10.1.2.3"}
    async with (
        admin(cluster.addresses, allowed_ips=("10.0.0.0/8",)) as service,
        client(service, **forwarded) as web,
    ):
        for path in ("/admin/nodes", "/livez", "/admin/actuator/health"):
            answer = await web.get(path)
            assert answer.status_code == 403
            assert answer.json() == {"error": "ip_not_allowed", "path": path}


async def test_an_address_may_be_held_to_a_rate(cluster: Cluster) -> None:
    limits = {"rate_limit_enabled": True, "rate_limit_per_minute": 3}
    async with admin(cluster.addresses, **limits) as service, client(service) as web:
        assert [(await web.get("/admin/nodes")).status_code for _ in range(3)] == [200] * 3
        answer = await web.get("/admin/nodes")
        assert (answer.status_code, answer.text) == (429, "Rate limit exceeded")
        assert answer.headers["content-type"].startswith("text/plain")
        assert 1 <= int(answer.headers["retry-after"]) <= 20
        assert len(answer.headers["x-correlation-id"]) == 36
        assert (await web.get("/admin/nodes", headers={"X-Admin-Api-Key": "no"})).status_code == 401
        assert (await web.get("/metrics")).status_code == 200, "who watches is not held back"
    async with admin(cluster.addresses, rate_limit_per_minute=3) as service, client(service) as web:
        assert [(await web.get("/admin/nodes")).status_code for _ in range(9)] == [200] * 9, "off unless asked for"


async def test_the_correlation_id_is_echoed_or_made(web: httpx.AsyncClient) -> None:
    echoed = await web.get("/admin/nodes", headers={"X-Correlation-ID": "job-7"})
    assert echoed.headers["x-correlation-id"] == "job-7"
    for bad in ("x" * 200, "a b", "é"):
        answer = await web.get("/admin/nodes", headers=[("X-Correlation-ID", bad.encode("latin-1"))])
        assert len(answer.headers["x-correlation-id"]) == 36
    first, second = [(await web.get("/livez")).headers["x-correlation-id"] for _ in range(2)]
    assert first != second


async def wait_until_ready(web: httpx.AsyncClient, status: int, why: str = "") -> None:
    """A coordinator that is slow to answer is told as another reason first."""
    while True:
        answer = await web.get("/readyz")
        if answer.status_code == status and why in answer.text:
            return
        await asyncio.sleep(0.02)


async def test_readiness_follows_the_coordinators(cluster: Cluster) -> None:
    async with admin(cluster.addresses, request_timeout_ms=200) as service, client(service) as web:
        await wait_until_ready(web, 200)
        assert (await web.get("/admin/actuator/health")).json() == {"status": "UP"}
        cluster.follow(-1)
        await wait_until_ready(web, 503, "no leader")
        health = await web.get("/admin/actuator/health")
        assert (health.status_code, health.json()) == (503, {"status": "DOWN"})
        assert (await web.get("/livez")).status_code == 200


async def test_metrics_count_by_route_pattern(web: httpx.AsyncClient) -> None:
    await web.get("/admin/nodes/some-node")
    await web.get("/admin/nodes/other-node")
    await web.get("/no/such/path")
    text = (await web.get("/metrics")).text
    pattern = 'flotta_admin_http_requests_total{method="GET",route="%s",status="404"} %s.0'
    assert pattern % ("/admin/nodes/{node_id}", 2) in text
    assert pattern % ("unmatched", 1) in text
    names = (await web.get("/admin/actuator/metrics")).json()["names"]
    assert "flotta_admin_http_requests" in names
    detail = (await web.get("/admin/actuator/metrics/flotta_admin_http_requests")).json()
    assert detail["measurements"][0]["value"] >= 3
    assert {tag["tag"] for tag in detail["availableTags"]} == {"method", "route", "status"}
    assert (await web.get("/admin/actuator/metrics/absent")).status_code == 404


async def test_openapi_describes_every_operation_and_field(web: httpx.AsyncClient) -> None:
    schema: dict[str, Any] = (await web.get("/openapi.json")).json()
    bare = [
        f"{name}.{field}"
        for name, model in schema["components"]["schemas"].items()
        for field, details in model.get("properties", {}).items()
        if not details.get("description")
    ]
    assert bare == []
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["description"], where
            assert "422" not in operation["responses"], where
            if path.startswith("/admin/") and "actuator" not in path:
                assert operation["security"] == [{"APIKeyHeader": []}], where
                assert {"401", "403", "503", "504"} <= set(operation["responses"]), where
    for path in ("/admin/nodes/{node_id}/status", "/admin/shards/{shard_id}/leader"):
        assert "text/plain" in schema["paths"][path]["post"]["requestBody"]["content"]
