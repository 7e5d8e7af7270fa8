"""Every field of the gateway API is honoured: what each promises, seen from outside of a real cluster."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from conformance_support import GATEWAY, Doors, Http, names
from flotta_proto.kvdb import gateway_pb2 as pb

Status = pb.Status
REPLIES: dict[str, Any] = {"Get": pb.GetResponse, "Put": pb.PutResponse, "Delete": pb.DeleteResponse}
REQUESTS: dict[str, Any] = {"Get": pb.GetRequest, "Put": pb.PutRequest, "Delete": pb.DeleteRequest}
STRONG, EVENTUAL = pb.STRONG, pb.EVENTUAL
SESSION = pb.READ_YOUR_WRITES
_FRESH = itertools.count()


def call(doors: Doors, method: str, key: bytes, **fields: Any) -> Any:
    request = REQUESTS[method](key=key, **fields)
    return doors.gateway.ask(GATEWAY + method, request, REPLIES[method])


def done(doors: Doors, method: str, key: bytes, **fields: Any) -> Any:
    reply = call(doors, method, key, **fields)
    assert reply.status.code == Status.OK, reply
    return reply


def fresh(name: str) -> bytes:
    return f"{name} {next(_FRESH)} {time.time_ns()}".encode()


def once(request_id: str) -> dict[str, Any]:
    return {"ctx": pb.RequestContext(request_id=request_id), "options": pb.WriteOptions(require_idempotency=True)}


def test_a_row_tells_its_version_and_times(doors: Doors) -> None:
    key = fresh("times")
    first = done(doors, "Put", key, value=b"1")
    created = done(doors, "Get", key).kv
    assert (created.key, created.value, created.version) == (key, b"1", first.version)
    assert created.create_time_ms == created.update_time_ms and created.expire_time_ms == 0
    assert abs(created.create_time_ms - time.time() * 1000) < 60_000
    second = done(doors, "Put", key, value=b"2", options=pb.WriteOptions(ttl_ms=3_600_000))
    changed = done(doors, "Get", key).kv
    assert first.version < second.version == changed.version
    assert changed.create_time_ms == created.create_time_ms <= changed.update_time_ms
    assert changed.expire_time_ms == changed.update_time_ms + 3_600_000
    gone = done(doors, "Delete", key)
    assert gone.version > second.version, "a delete has a version too"
    assert done(doors, "Put", key, value=b"3").version > gone.version
    assert done(doors, "Get", key).kv.expire_time_ms == 0, "no expiry is left over from the row before"


def test_head_only_is_all_but_the_value(doors: Doors) -> None:
    key = fresh("head")
    done(doors, "Put", key, value=b"v" * 1000)
    whole, head = done(doors, "Get", key).kv, done(doors, "Get", key, head_only=True).kv
    assert (head.value, len(whole.value)) == (b"", 1000)
    whole.value = b""
    assert head == whole
    assert call(doors, "Get", fresh("head"), head_only=True).status.code == Status.NOT_FOUND


def test_a_ttl_ends_a_row_for_every_kind_of_read(doors: Doors) -> None:
    key = fresh("ttl")
    done(doors, "Put", key, value=b"v", options=pb.WriteOptions(ttl_ms=300))
    deadline = time.monotonic() + 30
    while call(doors, "Get", key).status.code != Status.NOT_FOUND:
        assert time.monotonic() < deadline, "a TTL of 300 ms has not passed after 30 s"
        time.sleep(0.05)
    created = done(doors, "Put", key, value=b"w", options=pb.WriteOptions(if_not_exists=True))
    assert done(doors, "Get", key).kv.version == created.version, "what has expired does not stand in the way"


def test_conditions_decide_by_version(doors: Doors) -> None:
    key = fresh("conditions")
    wanted = pb.WriteOptions(if_version_equals=1)
    missing = call(doors, "Put", key, value=b"v", options=wanted).status
    assert missing.code == Status.VERSION_MISMATCH
    first = done(doors, "Put", key, value=b"1", options=pb.WriteOptions(if_not_exists=True, if_version_equals=0))
    again = call(doors, "Put", key, value=b"2", options=pb.WriteOptions(if_not_exists=True))
    assert again.status.code == Status.ALREADY_EXISTS
    names(again.status.message, "if_not_exists")
    second = done(doors, "Put", key, value=b"2", options=pb.WriteOptions(if_version_equals=first.version))
    for method, more in (("Put", {"value": b"3"}), ("Delete", {})):
        stale = call(doors, method, key, options=pb.WriteOptions(if_version_equals=first.version), **more)
        assert stale.status.code == Status.VERSION_MISMATCH
        names(stale.status.message, "if_version_equals")
        assert stale.status.shard_id.startswith("shard-")
    assert done(doors, "Get", key).kv.value == b"2"
    done(doors, "Delete", key, options=pb.WriteOptions(if_version_equals=second.version))
    assert call(doors, "Delete", key).status.code == Status.NOT_FOUND


@pytest.mark.parametrize("durability", [0, pb.WAL_SYNC, pb.QUORUM_SYNC, pb.WAL_ASYNC])
def test_each_durability_is_acknowledged_and_read_back(doors: Doors, durability: Any) -> None:
    key = fresh("durability")
    put = done(doors, "Put", key, value=b"v", options=pb.WriteOptions(durability=durability))
    assert done(doors, "Get", key, options=pb.ReadOptions(consistency=STRONG)).kv.version == put.version
    done(doors, "Delete", key, options=pb.WriteOptions(durability=durability))


def test_a_repeated_write_is_done_once_only_where_that_is_asked_for(doors: Doors) -> None:
    key = fresh("once")
    first = done(doors, "Put", key, value=b"1", **once("a"))
    done(doors, "Put", key, value=b"someone else's")
    assert done(doors, "Put", key, value=b"1", **once("a")).version == first.version
    assert done(doors, "Get", key).kv.value == b"someone else's"
    other = call(doors, "Put", key, value=b"2", **once("a")).status
    assert other.code == Status.INVALID_ARGUMENT
    names(other.message, "request_id")
    gone = done(doors, "Delete", key, **once("b"))
    assert done(doors, "Delete", key, **once("b")).version == gone.version, "not NOT_FOUND"
    ctx = pb.RequestContext(request_id="a")
    plain = [done(doors, "Put", key, value=b"3", ctx=ctx).version for _ in range(2)]
    assert plain[0] < plain[1], "an id alone asks for nothing"


READS = [
    pb.ReadOptions(),
    pb.ReadOptions(consistency=STRONG),
    pb.ReadOptions(read_mode=SESSION),
    pb.ReadOptions(read_mode=pb.LOW_LATENCY),
    pb.ReadOptions(consistency=STRONG, read_mode=SESSION),
    pb.ReadOptions(consistency=STRONG, read_mode=pb.LOW_LATENCY),
    pb.ReadOptions(consistency=STRONG, max_staleness_ms=1),
    pb.ReadOptions(consistency=EVENTUAL, read_mode=SESSION),
]


def test_reads_that_must_see_the_last_write_do(doors: Doors) -> None:
    key = fresh("reads")
    for turn in range(10):
        value = b"%d" % turn
        put = done(doors, "Put", key, value=value)
        assert put.revision >= put.version > 0
        session = pb.ReadOptions(consistency=EVENTUAL, read_mode=SESSION, session_revision=put.revision)
        for options in [*READS, session]:
            got = done(doors, "Get", key, options=options)
            assert got.kv.value == value, (turn, options)
            assert got.revision >= put.revision, options


def test_reads_that_may_lag_show_what_was_once_true_and_catch_up(doors: Doors) -> None:
    key = fresh("lag")
    done(doors, "Put", key, value=b"0")
    versions = [done(doors, "Put", key, value=b"%d" % turn).version for turn in range(1, 6)]
    for options in (
        pb.ReadOptions(consistency=EVENTUAL),
        pb.ReadOptions(consistency=EVENTUAL, read_mode=pb.LOW_LATENCY),
        pb.ReadOptions(consistency=EVENTUAL, max_staleness_ms=50),
    ):
        deadline = time.monotonic() + 30
        while (found := call(doors, "Get", key, options=options)).kv.version != versions[-1]:
            # Of the first moment too: a follower may not know yet that the key has been made.
            assert found.status.code in (Status.OK, Status.NOT_FOUND), found
            assert time.monotonic() < deadline, f"never caught up: {options}"


def test_a_revision_of_another_shard_is_no_session_of_this_one(doors: Doors) -> None:
    key = fresh("session")
    put = done(doors, "Put", key, value=b"v")
    far = pb.ReadOptions(consistency=EVENTUAL, read_mode=SESSION, session_revision=put.revision + 1_000_000)
    status = call(doors, "Get", key, options=far).status
    assert status.code == Status.PRECONDITION_FAILED
    names(status.message, "session_revision", str(put.revision + 1_000_000))
    assert status.shard_id == put.status.shard_id


def test_who_asks_is_in_the_metrics_and_a_trace_context_harms_nothing(doors: Doors) -> None:
    key = fresh("who")
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for traceparent in (trace, "nonsense", ""):
        ctx = pb.RequestContext(tenant_id="conformance", principal="tester", traceparent=traceparent)
        done(doors, "Put", key, value=b"v", ctx=ctx)
        done(doors, "Get", key, ctx=ctx)
    metrics = Http(int(doors.gateway.address.rpartition(":")[2]) + 10_000)
    _, text, _ = metrics.call("GET", "/metrics")
    counted = 'flotta_gateway_caller_requests_total{principal="tester",tenant="conformance"}'
    assert f"{counted} 6.0" in text


def test_every_answer_names_the_shard(doors: Doors) -> None:
    for number in range(8):
        key = b"shard of %d" % number
        found = {call(doors, method, key).status.shard_id for method in ("Get", "Put", "Get", "Delete", "Delete")}
        assert len(found) == 1 and found < set(doors.state().shards), found
