"""Tenants and principals: what is counted, what is held to a rate, and what an unwilling client gains: nothing."""

from __future__ import annotations

import pytest
from flotta_gateway.call import Call
from flotta_gateway.callers import NAMES_MAX, Callers
from flotta_gateway.core.operations import Request
from flotta_proto.flotta.storage_pb2 import GET, PUT
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_runtime.errors import RateLimited
from flotta_runtime.metrics import Metrics
from gateway_support import Cluster

Status = gw.Status


def request(tenant: str = "", principal: str = "") -> gw.GetRequest:
    return gw.GetRequest(key=b"k", ctx=gw.RequestContext(tenant_id=tenant, principal=principal))


def let_in(callers: Callers, asked: Request, now_ms: float, tries: int) -> int:
    done = 0
    for _ in range(tries):
        try:
            callers.admit(asked, now_ms)
            done += 1
        except RateLimited as error:
            assert error.retry_after_ms > 0
    return done


def series(metrics: Metrics, name: str) -> list[str]:
    return [line for line in metrics.render().decode().splitlines() if line.startswith(name)]


def test_requests_are_counted_by_who_asks() -> None:
    metrics = Metrics("test")
    callers = Callers(metrics)
    for asked in (request("dev", "k6"), request("dev", "k6"), request("dev"), request(), gw.PutRequest(key=b"k")):
        callers.admit(asked, 0)
    assert series(metrics, "flotta_gateway_caller_requests_total{") == [
        'flotta_gateway_caller_requests_total{principal="k6",tenant="dev"} 2.0',
        'flotta_gateway_caller_requests_total{principal="",tenant="dev"} 1.0',
    ]


def test_invented_names_make_no_series_without_end() -> None:
    metrics = Metrics("test")
    callers = Callers(metrics, tenant_rate=1)
    for number in range(3_000):
        let_in(callers, request(f"t{number}"), 0, 2)
    assert len(series(metrics, "flotta_gateway_caller_requests_total{")) == NAMES_MAX + 1
    assert len(series(metrics, "flotta_gateway_caller_limited_total{")) <= NAMES_MAX + 1
    counted = sum(float(line.split()[-1]) for line in series(metrics, "flotta_gateway_caller_requests_total{"))
    assert counted == 6_000


def test_a_tenant_has_its_rate_and_leaves_the_others_theirs() -> None:
    callers = Callers(Metrics("test"), tenant_rate=5)
    assert let_in(callers, request("a", "x"), 0, 20) == 5
    assert let_in(callers, request("a", "y"), 0, 20) == 0, "all its principals together"
    assert let_in(callers, request("b"), 0, 20) == 5
    assert let_in(callers, request("a"), 1_000, 20) == 5


def test_a_principal_has_its_rate_within_its_tenant() -> None:
    callers = Callers(Metrics("test"), principal_rate=2)
    assert let_in(callers, request("a", "x"), 0, 9) == 2
    assert let_in(callers, request("a", "y"), 0, 9) == 2
    assert let_in(callers, request("b", "x"), 0, 9) == 2


def test_no_name_is_a_name() -> None:
    callers = Callers(Metrics("test"), tenant_rate=3)
    assert let_in(callers, request(), 0, 9) + let_in(callers, gw.PutRequest(key=b"k"), 0, 9) == 3


@pytest.mark.parametrize("rate", [0, 2])
async def test_the_dispatcher_answers_rate_limited_and_sends_nothing(rate: int) -> None:
    cluster = Cluster(admission=Callers(Metrics("test"), tenant_rate=rate))
    answers: list[bytes] = []
    asked = gw.PutRequest(key=b"k", value=b"v", ctx=gw.RequestContext(tenant_id="dev"))
    cluster.dispatcher.submit([Call(PUT, asked, 6_000, answers.append) for _ in range(5)])
    sent = len(cluster.sent())
    assert sent == (rate or 5)
    told = [gw.PutResponse.FromString(answer).status for answer in answers]
    assert [status.code for status in told] == [Status.RATE_LIMITED] * (5 - sent)
    assert all(status.retry_after_ms and "ctx.tenant_id 'dev'" in status.message for status in told)
    assert cluster.dispatcher.calls_open == sent
    cluster.answer()
    cluster.clock.advance(1_000)
    cluster.dispatcher.submit([Call(GET, request("dev"), 7_000, answers.append)])
    assert len(cluster.sent()) == 1
    cluster.dispatcher.close()
