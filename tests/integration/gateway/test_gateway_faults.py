"""What clients see while nodes redirect, refuse, die, hang and come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from fake_cluster import FakeCluster, StallingProxy, wait_until
from fake_node import FakeNode
from flotta_proto.flotta import storage_pb2 as sp
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.hashing import shard_index

pytestmark = pytest.mark.parametrize("transport", ["native", "grpcio"])
Start = Callable[..., Awaitable[tuple[Any, Any]]]
KEY = b"k"
SHARD = f"shard-{shard_index(KEY, 4)}"


def put(request_id: str = "") -> gw.PutRequest:
    return gw.PutRequest(
        ctx=gw.RequestContext(request_id=request_id),
        key=KEY,
        value=b"v",
        options=gw.WriteOptions(require_idempotency=bool(request_id)),
    )


def get(consistency: int = gw.STRONG) -> gw.GetRequest:
    return gw.GetRequest(key=KEY, options=gw.ReadOptions(consistency=consistency))  # type: ignore[arg-type]


def others(cluster: FakeCluster) -> list[FakeNode]:
    leader = cluster.leader_of(SHARD)
    return [node for node in cluster.nodes if node is not leader]


def first_time(fault: Any) -> Callable[[sp.Operation], Any]:
    """A fault that strikes once."""
    left = [fault]
    return lambda _op: left.pop() if left else None


async def test_a_leader_hint_is_followed(cluster: FakeCluster, start_gateway: Start) -> None:
    _, stub = await start_gateway(cluster)
    old, new = cluster.leader_of(SHARD), others(cluster)[0]
    cluster.move_leader(SHARD, new, tell=False)
    assert (await stub.Put(put())).status.code == Status.OK
    assert (len(old.seen), len(new.seen)) == (1, 1)
    assert len(cluster.shards.applied) == 1


async def test_hints_in_a_circle_end_with_the_deadline(cluster: FakeCluster, start_gateway: Start) -> None:
    _, stub = await start_gateway(cluster, deadline_default_ms=1_000)
    leader, other = cluster.leader_of(SHARD), others(cluster)[0]

    def to(node: FakeNode) -> Callable[[sp.Operation], sp.Reply]:
        return lambda _op: sp.Reply(code=Status.NOT_LEADER, shard_id=SHARD, leader_hint=node.address)

    leader.fault, other.fault = to(other), to(leader)
    answer = await stub.Put(put())
    # TIMEOUT only if the last attempt was on its way when the time was up.
    assert answer.status.code in (Status.NOT_LEADER, Status.TIMEOUT)
    assert answer.status.leader_hint in (leader.address, other.address)
    assert answer.status.shard_id == SHARD
    assert 4 <= len(leader.seen) + len(other.seen) <= 40  # it tried, with pauses
    assert not cluster.shards.applied


async def test_a_moved_shard_makes_the_map_fresh(cluster: FakeCluster, start_gateway: Start) -> None:
    cluster.coordinator.watchable = False
    gateway, stub = await start_gateway(cluster)
    assert (await stub.Put(put())).status.code == Status.OK
    new = others(cluster)[0]
    cluster.move_leader(SHARD, new, tell=False, epoch=2)
    cluster.record_leader(SHARD, announce=False)
    assert (await stub.Put(put())).status.code == Status.OK
    await wait_until(lambda: gateway.maps.current.version == 6)  # the hint may have been quicker
    assert (await stub.Put(put())).status.code == Status.OK
    assert new.seen[-1].epoch == 2


async def test_a_moved_shard_is_found_by_its_hint_when_the_map_is_behind(
    cluster: FakeCluster, start_gateway: Start
) -> None:
    _, stub = await start_gateway(cluster)
    assert (await stub.Put(put())).status.code == Status.OK
    new = others(cluster)[0]
    cluster.move_leader(SHARD, new, tell=False, epoch=2)
    assert (await stub.Put(put())).status.code == Status.OK
    assert new.seen[-1].epoch == 0  # the map's epoch is not this shard's any more: its ownership is checked instead


async def test_refreshes_are_throttled(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, stub = await start_gateway(cluster, map_refresh_min_ms=400, deadline_default_ms=1_000)
    await stub.Get(get())
    gets, refreshes = cluster.coordinator.gets, gateway.maps.refreshes
    for node in cluster.nodes:
        node.fault = lambda _op: sp.Reply(code=Status.SHARD_MOVED, shard_id=SHARD)
    began = time.monotonic()
    answers = await asyncio.gather(*(stub.Get(get()) for _ in range(50)))
    refreshes_max = 2 + int((time.monotonic() - began) / 0.4)
    # The last attempt of some may be on its way when their time is up.
    assert {answer.status.code for answer in answers} <= {Status.SHARD_MOVED, Status.TIMEOUT}
    assert sum(len(node.seen) for node in cluster.nodes) > 60
    assert 1 <= gateway.maps.refreshes - refreshes <= refreshes_max
    assert cluster.coordinator.gets - gets <= refreshes_max + 1


@pytest.mark.parametrize("code", [Status.UNAVAILABLE, Status.NOT_LEADER, Status.SHARD_MOVED])
async def test_writes_that_certainly_did_not_happen_are_sent_again(
    cluster: FakeCluster, start_gateway: Start, code: int
) -> None:
    _, stub = await start_gateway(cluster)
    cluster.leader_of(SHARD).fault = first_time(sp.Reply(code=code, shard_id=SHARD))  # type: ignore[arg-type]
    assert (await stub.Put(put())).status.code == Status.OK
    assert len(cluster.shards.applied) == 1


@pytest.mark.parametrize("fault", ["die", "apply-and-die"])
async def test_a_write_in_doubt_is_never_sent_twice(cluster: FakeCluster, start_gateway: Start, fault: str) -> None:
    _, stub = await start_gateway(cluster)
    leader = cluster.leader_of(SHARD)
    leader.fault = lambda _op: fault
    answer = await stub.Put(put())
    assert answer.status.code == Status.TIMEOUT
    assert "may have happened" in answer.status.message
    assert len(leader.seen) == 1
    assert not any(node.seen for node in others(cluster))


async def test_a_write_the_node_calls_timed_out_is_never_sent_twice(cluster: FakeCluster, start_gateway: Start) -> None:
    _, stub = await start_gateway(cluster)
    leader = cluster.leader_of(SHARD)
    leader.fault = lambda _op: sp.Reply(code=Status.TIMEOUT, message="no quorum in time", shard_id=SHARD)
    answer = await stub.Put(put())
    assert (answer.status.code, answer.status.message) == (Status.TIMEOUT, "no quorum in time")
    assert sum(len(node.seen) for node in cluster.nodes) == 1


@pytest.mark.parametrize("fault", ["die", "apply-and-die"])
async def test_a_write_with_a_request_id_is_repeated_and_happens_once(
    cluster: FakeCluster, start_gateway: Start, fault: str
) -> None:
    _, stub = await start_gateway(cluster)
    leader = cluster.leader_of(SHARD)
    leader.fault = first_time(fault)
    answer = await stub.Put(put("id-1"))
    assert answer.status.code == Status.OK
    assert answer.version == 101
    assert len(leader.seen) == 2
    assert len(cluster.shards.applied) == 1


async def test_doubt_stays_when_later_attempts_are_refused(cluster: FakeCluster, start_gateway: Start) -> None:
    _, stub = await start_gateway(cluster, deadline_default_ms=1000)
    leader = cluster.leader_of(SHARD)
    unsaid: list[Any] = ["apply-and-die"]
    leader.fault = lambda _op: unsaid.pop() if unsaid else sp.Reply(code=Status.UNAVAILABLE, message="no leader")
    answer = await stub.Put(put("id-1"))
    assert answer.status.code == Status.TIMEOUT
    assert "may have happened" in answer.status.message
    assert len(leader.seen) > 1


async def test_a_read_survives_the_death_of_a_stream(cluster: FakeCluster, start_gateway: Start) -> None:
    _, stub = await start_gateway(cluster)
    await stub.Put(put())
    cluster.leader_of(SHARD).fault = first_time("die")
    answer = await stub.Get(get())
    assert (answer.status.code, answer.kv.value) == (Status.OK, b"v")


async def test_a_killed_leader_costs_nothing_but_the_election(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, stub = await start_gateway(cluster)
    await stub.Put(put())
    old, new = cluster.leader_of(SHARD), others(cluster)[0]
    await old.kill()
    # A write that left before the link noticed may have happened, and would be answered so.
    await wait_until(lambda: sum(link.up for link in gateway.links.links()) == 2)
    writing = asyncio.ensure_future(stub.Put(put()))
    await asyncio.sleep(0.2)
    assert not writing.done()
    # The watch brings the new leader; the write, parked since nobody led, goes there at once.
    cluster.move_leader(SHARD, new)
    assert (await writing).status.code == Status.OK
    assert len(new.seen) >= 1
    assert len(cluster.shards.applied) == 2


async def test_nobody_to_serve_is_unavailable_not_timeout(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, stub = await start_gateway(cluster, deadline_default_ms=1000)
    await stub.Put(put())
    for node in cluster.nodes:
        await node.kill()
    # A write that left before the link noticed may have happened, and would be answered so.
    await wait_until(lambda: not any(link.up for link in gateway.links.links()))
    answer = await stub.Put(put())
    assert answer.status.code == Status.UNAVAILABLE
    assert "cannot be reached" in answer.status.message


async def test_a_restarted_node_is_used_again(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, stub = await start_gateway(cluster)
    await stub.Put(put())
    leader = cluster.leader_of(SHARD)
    await leader.kill()
    await wait_until(lambda: sum(link.up for link in gateway.links.links()) == 2)
    await leader.start(leader.port)
    assert (await stub.Put(put())).status.code == Status.OK
    assert len(leader.tokens) == 2


async def test_the_clients_deadline_holds_against_a_silent_node(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, stub = await start_gateway(cluster)
    await stub.Put(put())  # everybody is connected
    leader = cluster.leader_of(SHARD)
    leader.seen.clear()
    leader.fault = lambda _op: "drop"
    for request in (stub.Put(put(), timeout=0.4), stub.Get(get(), timeout=0.4)):
        try:
            assert (await request).status.code == Status.TIMEOUT
        except grpc.aio.AioRpcError as error:  # on a busy machine the client's own timer may be the first
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await wait_until(lambda: gateway.dispatcher.calls_open == 0)
    assert [op.deadline_ms <= 400 for op in leader.seen] == [True, True]


async def test_a_timeout_says_whether_something_may_have_happened(cluster: FakeCluster, start_gateway: Start) -> None:
    _, stub = await start_gateway(cluster, deadline_default_ms=300)
    await stub.Put(put(), timeout=20)  # everybody is connected
    cluster.leader_of(SHARD).fault = lambda _op: "drop"
    write, read = await stub.Put(put()), await stub.Get(get())
    assert (write.status.code, read.status.code) == (Status.TIMEOUT, Status.TIMEOUT)
    assert "may have happened" in write.status.message
    assert "may have happened" not in read.status.message


async def test_a_read_without_an_answer_is_asked_again(cluster: FakeCluster, start_gateway: Start) -> None:
    _, stub = await start_gateway(cluster, attempt_ms=100, deadline_default_ms=2000)
    await stub.Put(put())
    leader = cluster.leader_of(SHARD)
    leader.fault = first_time("drop")
    assert (await stub.Get(get())).kv.value == b"v"
    leader.fault = first_time("drop")
    assert (await stub.Put(put("id-1"))).status.code == Status.OK
    leader.fault = first_time("drop")
    assert (await stub.Put(put())).status.code == Status.TIMEOUT


async def test_a_late_reply_to_a_given_up_attempt_is_dropped(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, stub = await start_gateway(cluster, attempt_ms=100, deadline_default_ms=500)
    await stub.Put(put(), timeout=20)
    cluster.leader_of(SHARD).delay_s = 0.25
    answer = await stub.Get(get())
    assert answer.status.code == Status.TIMEOUT
    cluster.leader_of(SHARD).delay_s = 0.0
    assert (await stub.Get(get(), timeout=20)).kv.value == b"v"
    assert all(link.operations_open == 0 for link in gateway.links.links())


async def test_overload_is_answered_early(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, stub = await start_gateway(cluster, node_operations_max=5, requests_max=8, deadline_default_ms=1_000)
    cluster.leader_of(SHARD).fault = lambda _op: "drop"
    answers = await asyncio.gather(*(stub.Put(put()) for _ in range(20)))
    codes = [answer.status.code for answer in answers]
    assert codes.count(Status.TIMEOUT) == 5
    assert codes.count(Status.RATE_LIMITED) == 15
    assert all(a.status.retry_after_ms > 0 for a in answers if a.status.code == Status.RATE_LIMITED)
    assert gateway.dispatcher.calls_open == 0
    cluster.leader_of(SHARD).fault = None
    assert (await stub.Put(put(), timeout=20)).status.code == Status.OK


async def test_bytes_are_bounded_too(cluster: FakeCluster, start_gateway: Start) -> None:
    _, stub = await start_gateway(cluster, request_bytes_max=10_000, deadline_default_ms=1_000)
    cluster.leader_of(SHARD).fault = lambda _op: "drop"
    big = gw.PutRequest(key=KEY, value=b"x" * 6_000)
    answers = await asyncio.gather(*(stub.Put(big) for _ in range(3)))
    assert sorted(answer.status.code for answer in answers) == [Status.RATE_LIMITED] * 2 + [Status.TIMEOUT]


async def test_a_clients_leaving_frees_its_request(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, stub = await start_gateway(cluster)
    leader = cluster.leader_of(SHARD)
    leader.fault = lambda _op: "drop"
    writing = stub.Put(put())
    await wait_until(lambda: len(leader.seen) == 1)
    writing.cancel()
    await wait_until(lambda: gateway.dispatcher.calls_open == 0)
    assert all(link.operations_open == 0 for link in gateway.links.links())


async def test_a_half_open_connection_dies_within_its_pings(cluster: FakeCluster, start_gateway: Start) -> None:
    leader = cluster.leader_of(SHARD)
    proxy = await StallingProxy(leader.address).start()
    number = cluster.nodes.index(leader) + 1
    cluster.state.nodes[f"node-{number}"].address = proxy.address
    try:
        gateway, stub = await start_gateway(cluster, keepalive_ms=300, deadline_default_ms=20_000)
        assert (await stub.Put(put())).status.code == Status.OK
        proxy.stall()
        answer = await stub.Put(put())
        assert answer.status.code == Status.TIMEOUT
        assert "may have happened" in answer.status.message
        assert "deadline" not in answer.status.message  # the ping noticed, not the request's clock
        assert sum(link.up for link in gateway.links.links()) == 2
    finally:
        await proxy.stop()


async def test_a_node_that_never_answers_a_connect_counts_as_unreachable(
    cluster: FakeCluster, start_gateway: Start
) -> None:
    proxy = await StallingProxy(cluster.leader_of(SHARD).address).start()
    proxy.stall()
    number = cluster.nodes.index(cluster.leader_of(SHARD)) + 1
    cluster.state.nodes[f"node-{number}"].address = proxy.address
    try:
        _, stub = await start_gateway(cluster, connect_timeout_ms=200)
        answer = await stub.Put(put())
        # Another replica was asked, and it named the leader by the address at which it can be reached.
        assert answer.status.code == Status.OK
    finally:
        await proxy.stop()


async def test_a_wrong_token_is_said_and_harms_nothing(cluster: FakeCluster, start_gateway: Start) -> None:
    for node in cluster.nodes:
        node.token = "another"
    _, stub = await start_gateway(cluster, deadline_default_ms=1_000)
    answer = await stub.Put(put())
    assert answer.status.code == Status.UNAVAILABLE
    assert "Missing or invalid internal gRPC token" in answer.status.message
    assert not any(node.seen for node in cluster.nodes)


async def test_a_stopping_gateway_answers_what_it_has_taken(cluster: FakeCluster, start_gateway: Start) -> None:
    gateway, stub = await start_gateway(cluster)
    await stub.Put(put())
    cluster.leader_of(SHARD).delay_s = 0.15
    writing = stub.Put(put())
    await wait_until(lambda: gateway.dispatcher.calls_open == 1)
    await gateway.stop()
    assert (await writing).status.code == Status.OK
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Put(put(), timeout=0.3)
