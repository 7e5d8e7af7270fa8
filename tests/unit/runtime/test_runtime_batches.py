"""Batch services on the native transport: what they are given, how they answer, what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from flotta_runtime import errors, status
from flotta_runtime.batches import BatchCall, Replier
from flotta_runtime.metrics import Metrics
from flotta_runtime.server import GrpcServer, build_server
from flotta_runtime.turns import Turns
from grpc_methods import UNARY, failure, path, service

SOON = 60
GUARDED = "/flotta.test.Guarded/Do"
Take = Callable[[Sequence[BatchCall], Replier], None]


class Recorder:
    """A batch service that does what a test gives it to do, and remembers what it was given."""

    def __init__(self, *paths: str, take: Take) -> None:
        self.paths = paths
        self.taken: list[BatchCall] = []
        self.gone: list[int] = []
        self.news = asyncio.Event()
        self._take = take

    def take(self, calls: Sequence[BatchCall], replier: Replier) -> None:
        self.taken.extend(calls)
        self.news.set()
        self._take(calls, replier)

    def ended(self, calls: Sequence[int]) -> None:
        self.gone.extend(calls)
        self.news.set()


class Served:
    def __init__(self, server: GrpcServer, metrics: Metrics, fatal: list[BaseException]) -> None:
        self.server, self.metrics, self.fatal = server, metrics, fatal
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")

    def call(self, method: str, request: bytes = b"", **options: Any) -> Any:
        return self.channel.unary_unary(method)(request, **options)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"grpc_type": "unary", **labels})


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    running: list[Served] = []

    async def start(*batches: Recorder, turns: Turns | None = None) -> Served:
        async def plain(request: bytes, context: Any) -> bytes:
            return b"plain " + request

        metrics, fatal = Metrics("unit"), list[BaseException]()
        server = build_server(
            [service({"Plain": (UNARY, plain), "Fast": (UNARY, plain), "Other": (UNARY, plain)})],
            listen="127.0.0.1:0",
            token="the-token",
            transport="native",
            metrics=metrics,
            batches=batches,
            turns=turns,
            on_fatal=fatal.append,
        )
        await server.start()
        running.append(Served(server, metrics, fatal))
        return running[-1]

    yield start
    for served in running:
        await served.channel.close()
        await served.server.stop(0)


def echo(calls: Sequence[BatchCall], replier: Replier) -> None:
    for call in calls:
        replier.reply(call.call, call.message + b" %d" % call.method)


def keep(calls: Sequence[BatchCall], replier: Replier) -> None:
    """Answer nothing."""


async def until(recorder: Recorder, what: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not what():
            recorder.news.clear()
            await recorder.news.wait()


async def test_its_methods_go_to_the_batch_service_and_the_others_to_their_handlers(serve: Serve) -> None:
    first, second = Recorder(path("Other"), path("Fast"), take=echo), Recorder("/test.More/It", take=echo)
    served = await serve(first, second)
    assert await served.call(path("Fast"), b"a") == b"a 1"
    assert await served.call(path("Other"), b"b") == b"b 0"
    assert await served.call("/test.More/It", b"c") == b"c 0"
    assert await served.call(path("Plain"), b"d") == b"plain d"
    assert [call.method for call in first.taken] == [1, 0]
    assert len(second.taken) == 1


async def test_a_call_comes_with_metadata_deadline_and_peer(serve: Serve) -> None:
    recorder = Recorder(path("Fast"), take=echo)
    served = await serve(recorder)
    await served.call(path("Fast"), b"", metadata=(("x-a", "b"), ("x-c-bin", b"\x00")), timeout=30)
    await served.call(path("Fast"), b"")
    full, bare = recorder.taken
    assert full.metadata is not None
    assert dict(full.metadata) == {"x-a": "b", "x-c-bin": b"\x00"}
    assert full.remaining_ms is not None and 0 < full.remaining_ms < 60_000
    assert full.peer.address.startswith("ipv4:127.0.0.1:")
    assert full.peer.tls_common_name is None
    assert (bare.metadata, bare.remaining_ms) == (None, None)


async def test_errors_arrive_with_code_message_and_trailers(serve: Serve) -> None:
    def refuse(calls: Sequence[BatchCall], replier: Replier) -> None:
        for call in calls:
            replier.fail(call.call, errors.NotLeader("h:1", shard_id="shard-7"))

    served = await serve(Recorder(path("Fast"), take=refuse))
    got = status.from_rpc_error(await failure(served.call(path("Fast"))))
    assert isinstance(got, errors.NotLeader)
    assert (got.leader_hint, got.shard_id) == ("h:1", "shard-7")


async def test_a_protected_method_is_only_given_calls_with_the_token(serve: Serve) -> None:
    recorder = Recorder(GUARDED, take=echo)
    served = await serve(recorder)
    for metadata in ((), (("x-kvdb-internal-token", "wrong"),)):
        got = await failure(served.call(GUARDED, metadata=metadata))
        assert got.code() is grpc.StatusCode.UNAUTHENTICATED
        assert got.details() == "Missing or invalid internal gRPC token"
    assert recorder.taken == []
    assert await served.call(GUARDED, b"x", metadata=(("x-kvdb-internal-token", "the-token"),)) == b"x 0"
    labels = {"grpc_service": "flotta.test.Guarded", "grpc_method": "Do"}
    assert served.sample("grpc_server_handled_total", **labels, grpc_code="UNAUTHENTICATED") == 2


async def test_calls_that_end_before_their_answer_are_named(serve: Serve) -> None:
    recorder = Recorder(path("Fast"), take=keep)
    served = await serve(recorder)
    await served.channel.channel_ready()
    late = await failure(served.call(path("Fast"), timeout=1))
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    cancelled = asyncio.ensure_future(served.call(path("Fast")))
    await until(recorder, lambda: len(recorder.taken) == 2)
    cancelled.cancel()
    await until(recorder, lambda: len(recorder.gone) == 2)
    assert recorder.gone == [call.call for call in recorder.taken]
    labels = {"grpc_service": "test.Bytes", "grpc_method": "Fast"}
    assert served.sample("grpc_server_handled_total", **labels, grpc_code="CANCELLED") == 2


async def test_answers_given_later_arrive_and_late_ones_are_dropped(serve: Serve) -> None:
    repliers: list[Replier] = []
    recorder = Recorder(path("Fast"), take=lambda calls, replier: repliers.append(replier))
    served = await serve(recorder)
    asked = asyncio.ensure_future(served.call(path("Fast"), b"x"))
    await until(recorder, lambda: len(recorder.taken) == 1)
    await failure(served.call(path("Fast"), timeout=1))
    await until(recorder, lambda: len(recorder.gone) == 1)
    for call in recorder.taken:
        repliers[0].reply(call.call, b"late")
        repliers[0].reply(call.call, b"twice")
    assert await asked == b"late"
    assert await served.call(path("Plain"), b"y") == b"plain y"


async def test_every_call_is_counted_once_with_its_code_and_its_time(serve: Serve) -> None:
    def even_odd(calls: Sequence[BatchCall], replier: Replier) -> None:
        for call in calls:
            if int(call.message) % 2:
                replier.fail(call.call, errors.NotFound("odd"))
            else:
                replier.reply(call.call, b"")

    recorder = Recorder(path("Fast"), take=even_odd)
    served = await serve(recorder)
    calls = [served.call(path("Fast"), b"%d" % number) for number in range(201)]
    await asyncio.gather(*calls, return_exceptions=True)
    labels = {"grpc_service": "test.Bytes", "grpc_method": "Fast"}
    assert served.sample("grpc_server_started_total", **labels) == 201
    assert served.sample("grpc_server_handled_total", **labels, grpc_code="OK") == 101
    assert served.sample("grpc_server_handled_total", **labels, grpc_code="NOT_FOUND") == 100
    assert served.sample("grpc_server_handling_seconds_count", **labels) == 201
    assert served.sample("grpc_server_handling_seconds_bucket", **labels, le="+Inf") == 201
    assert (served.sample("grpc_server_handling_seconds_sum", **labels) or 0) > 0


async def test_a_service_that_raises_fails_its_batch_and_nothing_else(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    def some(calls: Sequence[BatchCall], replier: Replier) -> None:
        if calls[0].message == b"first":
            replier.reply(calls[0].call, b"was answered")
        if calls[0].message == b"fatal":
            raise errors.InvariantError("impossible")
        raise KeyError("private detail")

    served = await serve(Recorder(path("Fast"), take=some))
    assert await served.call(path("Fast"), b"first") == b"was answered"
    got = await failure(served.call(path("Fast"), b"second"))
    assert got.code() is grpc.StatusCode.INTERNAL
    assert "private" not in (got.details() or "")
    assert served.fatal == []
    assert (await failure(served.call(path("Fast"), b"fatal"))).code() is grpc.StatusCode.INTERNAL
    assert [str(error) for error in served.fatal] == ["impossible"]
    assert "unexpected error in a handler" in capsys.readouterr().err


async def test_a_malformed_answer_harms_no_other_of_its_turn(serve: Serve) -> None:
    waiting: list[BatchCall] = []

    def pair(calls: Sequence[BatchCall], replier: Replier) -> None:
        waiting.extend(calls)
        if len(waiting) < 3:
            return
        good, bad, ugly = waiting
        replier.reply(good.call, b"good")
        (replier.reply(bad.call, "text"),)  # type: ignore[arg-type]
        replier.fail(ugly.call, errors.NotLeader("no ascii: ä\n"))

    recorder = Recorder(path("Fast"), take=pair)
    served = await serve(recorder)
    asked = []
    for number in range(3):
        asked.append(asyncio.ensure_future(served.call(path("Fast"), b"")))
        await until(recorder, lambda number=number: len(recorder.taken) > number)
    assert await asked[0] == b"good"
    for call in asked[1:]:
        assert (await failure(call)).code() is grpc.StatusCode.INTERNAL


async def test_what_is_put_off_in_a_turn_is_answered_in_it(serve: Serve) -> None:
    """The service shares the port's turns: what it puts off runs, and its answers leave, in one turn."""
    turns = Turns()
    order: list[str] = []

    def put_off(calls: Sequence[BatchCall], replier: Replier) -> None:
        def answer() -> None:
            order.append("answered")
            for call in calls:
                replier.reply(call.call, b"")

        turns.soon(answer)
        asyncio.get_running_loop().call_soon(order.append, "next turn")

    served = await serve(Recorder(path("Fast"), take=put_off), turns=turns)
    await served.call(path("Fast"))
    assert order == ["answered", "next turn"]


async def test_a_stop_waits_for_what_a_batch_service_still_owes(serve: Serve) -> None:
    repliers: list[Replier] = []
    recorder = Recorder(path("Fast"), take=lambda calls, replier: repliers.append(replier))
    served = await serve(recorder)
    asked = asyncio.ensure_future(served.call(path("Fast")))
    await until(recorder, lambda: bool(recorder.taken))
    stopping = asyncio.create_task(served.server.stop(SOON * 1_000))
    done, _ = await asyncio.wait({stopping}, timeout=0.1)
    assert not done
    repliers[0].reply(recorder.taken[0].call, b"still")
    assert await asked == b"still"
    async with asyncio.timeout(SOON):
        await stopping
