"""The asynchronous client against a gateway that misbehaves on command."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import flotta
import grpc
import pytest
from fake_gateway import FakeGateway
from flotta import AsyncClient, Consistency, Entry, Get, Guarantee
from flotta_proto.flotta import storage_pb2
from flotta_proto.kvdb import gateway_pb2 as gw

NOBODY = "127.0.0.1:1"


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    made = await FakeGateway().start()
    yield made
    await made.kill()


@pytest.fixture
async def client(gateway: FakeGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address, timeout_ms=2_000) as made:
        yield made


async def test_what_is_put_is_got(client: AsyncClient) -> None:
    version = await client.put("text", "wört")
    assert await client.get(b"text") == Entry(b"text", "wört".encode(), version, 1000, 1000 + version, 0)
    second = await client.put(b"\0\xff", b"", ttl_ms=10)
    assert second > version
    assert await client.get(b"\0\xff") == Entry(b"\0\xff", b"", second, 1000, 1000 + second, 5000)
    head = await client.get("text", head_only=True)
    assert head is not None
    assert (head.value, head.version) == (b"", version)
    assert await client.delete("text") == second + 1
    assert await client.delete("text") is None
    assert await client.get("text") is None


async def test_an_entry_says_how_it_was_read(client: AsyncClient) -> None:
    version = await client.put("k", "v")
    strong = await client.get("k")
    weak = await client.get("k", consistency=Consistency.EVENTUAL)
    assert strong is not None and weak is not None
    assert (strong.guarantee, strong.shard_id, strong.revision) == (Guarantee.LINEARIZABLE, "shard-0", version)
    assert weak.guarantee is Guarantee.BOUNDED
    assert strong == weak
    (batched,) = await client.batch([Get("k")])
    assert isinstance(batched, Entry)
    assert batched.guarantee is Guarantee.LINEARIZABLE


async def test_options_travel(client: AsyncClient, gateway: FakeGateway) -> None:
    await client.get("k", consistency=Consistency.EVENTUAL, max_staleness_ms=9)
    await client.put("k", "v", ttl_ms=5)
    await client.put("k", "v", if_version=1, request_id="mine")
    await client.delete("k", if_version=2)
    get, put, conditional, delete = gateway.seen
    assert (get.options.consistency, get.options.max_staleness_ms) == (gw.EVENTUAL, 9)
    assert put.options.ttl_ms == 5
    assert put.options.require_idempotency
    assert (conditional.ctx.request_id, conditional.options.if_version_equals) == ("mine", 1)
    assert delete.options.if_version_equals == 2


async def test_request_ids_carry_the_time_and_are_not_reused(client: AsyncClient, gateway: FakeGateway) -> None:
    before = time.time_ns() // 1_000_000
    await client.put("k", "v")
    await client.put("k", "v")
    ids = [request.ctx.request_id for request in gateway.seen]
    assert len(set(ids)) == 2
    for request_id in ids:
        prefix, made_ms, rest = request_id.split(":")
        assert prefix == "flotta"
        assert before <= int(made_ms) <= before + 60_000
        assert len(rest) == 24


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (gw.Status.INVALID_ARGUMENT, flotta.InvalidArgumentError),
        (gw.Status.PAYLOAD_TOO_LARGE, flotta.PayloadTooLargeError),
        (gw.Status.ALREADY_EXISTS, flotta.AlreadyExistsError),
        (gw.Status.VERSION_MISMATCH, flotta.VersionMismatchError),
        (gw.Status.PRECONDITION_FAILED, flotta.PreconditionFailedError),
        (gw.Status.UNAVAILABLE, flotta.UnavailableError),
        (gw.Status.NOT_LEADER, flotta.UnavailableError),
        (gw.Status.SHARD_MOVED, flotta.UnavailableError),
        (gw.Status.TIMEOUT, flotta.OutcomeUnknownError),
        (gw.Status.INTERNAL, flotta.InternalError),
        (99, flotta.InternalError),
    ],
)
async def test_each_status_has_its_error(
    client: AsyncClient, gateway: FakeGateway, code: int, error: type[flotta.FlottaError]
) -> None:
    gateway.script = [gw.Status(code=code, message="why it is so", shard_id="shard-3")]  # type: ignore[arg-type]
    with pytest.raises(error, match="why it is so") as caught:
        await client.put("k", "v")
    assert type(caught.value) is error
    assert caught.value.shard_id == "shard-3"
    assert len(gateway.seen) == 1


async def test_overload_is_waited_out(client: AsyncClient, gateway: FakeGateway) -> None:
    busy = gw.Status(code=gw.Status.RATE_LIMITED, message="busy", retry_after_ms=30)
    gateway.script = [busy, busy]
    assert await client.put("k", "v") == 1
    assert len(gateway.seen) == 3
    gateway.script = [gw.Status(code=gw.Status.RATE_LIMITED, message="busy", retry_after_ms=60_000)]
    with pytest.raises(flotta.RateLimitedError) as caught:
        await client.put("k", "v")
    assert caught.value.retry_after_ms == 60_000


async def test_a_lost_answer_to_an_idempotent_write_is_asked_for_again(
    client: AsyncClient, gateway: FakeGateway
) -> None:
    gateway.script = [grpc.StatusCode.UNAVAILABLE]
    assert await client.put("k", "v") == 1
    first, second = gateway.seen
    assert first.ctx.request_id == second.ctx.request_id
    assert gateway.version == 1


async def test_a_lost_answer_to_a_plain_write_is_unknown(gateway: FakeGateway) -> None:
    async with AsyncClient(gateway.address, idempotent_writes=False) as client:
        gateway.script = [grpc.StatusCode.UNAVAILABLE]
        with pytest.raises(flotta.OutcomeUnknownError):
            await client.put("k", "v")
        assert len(gateway.seen) == 1
        assert gateway.seen[0].ctx.request_id == ""
        assert not gateway.seen[0].options.require_idempotency


async def test_doubt_is_not_forgotten(client: AsyncClient, gateway: FakeGateway) -> None:
    gateway.script = [grpc.StatusCode.UNAVAILABLE, gw.Status(code=gw.Status.UNAVAILABLE, message="no leader")]
    with pytest.raises(flotta.OutcomeUnknownError, match="may have been carried out"):
        await client.put("k", "v")


async def test_reads_are_repeated(client: AsyncClient, gateway: FakeGateway) -> None:
    await client.put("k", "v")
    gateway.script = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]
    entry = await client.get("k")
    assert entry is not None
    assert entry.value == b"v"


async def test_the_timeout_holds(client: AsyncClient, gateway: FakeGateway) -> None:
    await client.put("k", "v")  # connected
    gateway.script = ["hang"]
    with pytest.raises(flotta.OutcomeUnknownError, match=gateway.address):
        await client.put("k", "v", timeout_ms=150)


async def test_the_next_gateway_is_used_when_one_is_down(gateway: FakeGateway) -> None:
    async with AsyncClient(NOBODY, gateway.address, idempotent_writes=False) as client:
        assert await client.put("k", "v") == 1
        assert await client.put("k", "w") == 2


async def test_nobody_there_is_unavailable_and_names_the_address() -> None:
    async with AsyncClient(NOBODY, timeout_ms=300) as client:
        with pytest.raises(flotta.UnavailableError, match=NOBODY):
            await client.put("k", "v")


async def test_too_large_a_request_is_said_so(client: AsyncClient) -> None:
    with pytest.raises(flotta.PayloadTooLargeError):
        await client.put("k", b"x" * (18 << 20), timeout_ms=10_000)


async def test_being_turned_away_ends_no_doubt(client: AsyncClient, gateway: FakeGateway) -> None:
    busy = gw.Status(code=gw.Status.RATE_LIMITED, message="busy", retry_after_ms=60_000)
    gateway.script = [grpc.StatusCode.UNAVAILABLE, busy]
    with pytest.raises(flotta.OutcomeUnknownError, match="may have been carried out"):
        await client.put("k", "v")


def test_guarantees_have_the_numbers_of_the_wire_everywhere() -> None:
    for guarantee in Guarantee:
        if guarantee is Guarantee.UNKNOWN:
            continue
        assert gw.ServedGuarantee.Value(guarantee.name) == guarantee.value
        assert storage_pb2.ReadGuarantee.Value(guarantee.name) == guarantee.value
    assert len(gw.ServedGuarantee.values()) == len(storage_pb2.ReadGuarantee.values()) == len(Guarantee)
