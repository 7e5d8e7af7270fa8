"""What handlers may rely on, whichever transport carries their calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from flotta_runtime import errors
from flotta_runtime.metrics import Metrics
from flotta_runtime.server import GrpcServer, build_server, channel_options
from flotta_runtime.settings import Transport
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_methods import BIDI, CLIENT_STREAM, NAME, SERVER_STREAM, UNARY, Kind, failure, path, service

Serve = Callable[..., Awaitable["Served"]]
SOON = 60  # seconds after which something that should happen at once counts as never


class Served:
    """A server with methods of the test's own, and a connection to it."""

    def __init__(self, server: GrpcServer, metrics: Metrics, fatal: list[BaseException]) -> None:
        self.server = server
        self.metrics = metrics
        self.fatal = fatal
        address = f"127.0.0.1:{server.port}"
        self.channel = grpc.aio.insecure_channel(address, options=channel_options())

    def unary(self, name: str, request: bytes = b"", **options: Any) -> Any:
        return self.channel.unary_unary(path(name))(request, **options)

    def stream(self, name: str, **options: Any) -> Any:
        return self.channel.stream_stream(path(name))(**options)

    def handled(self, name: str, kind: str, code: str) -> float | None:
        labels = {"grpc_service": NAME, "grpc_method": name, "grpc_type": kind, "grpc_code": code}
        return self.metrics.registry.get_sample_value("grpc_server_handled_total", labels)


@pytest.fixture(params=["grpcio", "native"])
def transport(request: pytest.FixtureRequest) -> Transport:
    chosen: Transport = request.param
    return chosen


@pytest.fixture
async def serve(transport: Transport) -> AsyncIterator[Serve]:
    running: list[Served] = []

    async def start(**methods: tuple[Kind, Any]) -> Served:
        metrics, fatal = Metrics("unit"), list[BaseException]()
        server = build_server(
            [service(methods)],
            listen="127.0.0.1:0",
            token="t",
            transport=transport,
            metrics=metrics,
            on_fatal=fatal.append,
        )
        await server.start()
        running.append(Served(server, metrics, fatal))
        return running[-1]

    yield start
    for served in running:
        await served.channel.close()
        await served.server.stop(0)


async def until(event: asyncio.Event) -> None:
    async with asyncio.timeout(SOON):
        await event.wait()


# --- unary calls ----------------------------------------------------------------------------------------------------


async def test_metadata_travels_both_ways_text_and_binary(serve: Serve) -> None:
    seen: list[Any] = []

    async def echo(request: bytes, context: Any) -> bytes:
        seen.extend(context.invocation_metadata())
        seen.append(context.peer())
        context.set_trailing_metadata((("x-text", "word"), ("x-raw-bin", b"\x00\xff")))
        return request

    served = await serve(Echo=(UNARY, echo))
    call = served.unary("Echo", b"body", metadata=(("x-in", "one"), ("x-in-bin", b"\xfe\x00")))
    assert await call == b"body"
    assert {("x-in", "one"), ("x-in-bin", b"\xfe\x00")} <= {tuple(pair) for pair in seen if len(pair) == 2}
    assert seen[-1].startswith("ipv4:127.0.0.1:")
    trailing = {tuple(pair) for pair in await call.trailing_metadata()}
    assert {("x-text", "word"), ("x-raw-bin", b"\x00\xff")} <= trailing


async def test_a_handler_knows_its_deadline_and_is_cancelled_at_it(serve: Serve) -> None:
    left: list[float | None] = []
    cancelled = asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        left.append(context.time_remaining())
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return request

    served = await serve(Wait=(UNARY, wait))
    await served.channel.channel_ready()
    got = await failure(served.unary("Wait", timeout=1))
    assert got.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(cancelled)
    assert left[0] is not None and 0 < left[0] < 1.5


async def test_a_call_without_a_deadline_has_none(serve: Serve) -> None:
    async def ask(request: bytes, context: Any) -> bytes:
        return repr(context.time_remaining()).encode()

    served = await serve(Ask=(UNARY, ask))
    assert await served.unary("Ask") == b"None"


async def test_a_handler_is_cancelled_with_its_call(serve: Serve) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return request

    served = await serve(Wait=(UNARY, wait))
    call = served.unary("Wait")
    asking = asyncio.ensure_future(call)
    await until(began)
    call.cancel()
    await until(cancelled)
    await asyncio.gather(asking, return_exceptions=True)
    await served.server.stop(0)
    assert served.handled("Wait", "unary", "CANCELLED") == 1


async def test_a_handler_is_cancelled_when_its_client_is_gone(serve: Serve) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        context.add_done_callback(lambda _: ended.set())
        began.set()
        await asyncio.Event().wait()
        return request

    served = await serve(Wait=(UNARY, wait))
    asking = asyncio.ensure_future(served.unary("Wait"))
    await until(began)
    await served.channel.close()
    await until(ended)
    await asyncio.gather(asking, return_exceptions=True)


async def test_abort_and_set_code_tell_the_status(serve: Serve) -> None:
    async def abort(request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.DATA_LOSS, "ä: gone", (("x-why", "because"),))
        return request

    async def odd(request: bytes, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)
        context.set_details("too far")
        return request

    served = await serve(Abort=(UNARY, abort), Odd=(UNARY, odd))
    got = await failure(served.unary("Abort"))
    assert (got.code(), got.details()) == (grpc.StatusCode.DATA_LOSS, "ä: gone")
    assert ("x-why", "because") in {tuple(pair) for pair in got.trailing_metadata() or ()}
    odd_one = await failure(served.unary("Odd"))
    assert (odd_one.code(), odd_one.details()) == (grpc.StatusCode.OUT_OF_RANGE, "too far")
    await served.server.stop(0)
    assert served.handled("Abort", "unary", "DATA_LOSS") == 1


async def test_many_calls_at_once_get_their_own_answers(serve: Serve) -> None:
    async def later(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(int(request) % 3 / 1000)
        return request * 2

    served = await serve(Later=(UNARY, later))
    asked = [str(number).encode() for number in range(300)]
    answers = await asyncio.gather(*(served.unary("Later", request) for request in asked))
    assert answers == [request * 2 for request in asked]
    assert served.handled("Later", "unary", "OK") == 300
    began = served.metrics.registry.get_sample_value(
        "grpc_server_handling_seconds_count", {"grpc_type": "unary", "grpc_service": NAME, "grpc_method": "Later"}
    )
    assert began == 300


# --- streams --------------------------------------------------------------------------------------------------------


async def count_up(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for number in range(int(request)):
        yield str(number).encode()


async def count_up_writing(request: bytes, context: Any) -> None:
    for number in range(int(request)):
        await context.write(str(number).encode())


async def join(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b",".join([request async for request in requests])


async def join_reading(requests: object, context: Any) -> bytes:
    parts = []
    while (request := await context.read()) is not grpc.aio.EOF:
        parts.append(request)
    return b",".join(parts)


async def double(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request * 2


async def double_writing(requests: object, context: Any) -> None:
    await context.send_initial_metadata((("x-hello", "there"),))
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(request * 2)
    context.set_trailing_metadata((("x-bye", "now"),))


async def test_every_kind_of_stream_in_both_forms(serve: Serve) -> None:
    served = await serve(
        Up=(SERVER_STREAM, count_up),
        UpWriting=(SERVER_STREAM, count_up_writing),
        Join=(CLIENT_STREAM, join),
        JoinReading=(CLIENT_STREAM, join_reading),
        Double=(BIDI, double),
        DoubleWriting=(BIDI, double_writing),
    )
    for name in ("Up", "UpWriting"):
        call = served.channel.unary_stream(path(name))(b"4")
        assert [message async for message in call] == [b"0", b"1", b"2", b"3"]
        assert [message async for message in served.channel.unary_stream(path(name))(b"0")] == []
    for name in ("Join", "JoinReading"):
        assert await served.channel.stream_unary(path(name))(iter([b"a", b"", b"c"])) == b"a,,c"
        assert await served.channel.stream_unary(path(name))(iter([])) == b""
    for name in ("Double", "DoubleWriting"):
        talk = served.stream(name)
        for word in (b"x", b"", b"yz"):
            await talk.write(word)
            assert await talk.read() == word * 2
        await talk.done_writing()
        assert await talk.read() is grpc.aio.EOF
        assert await talk.code() is grpc.StatusCode.OK
    assert ("x-hello", "there") in {tuple(pair) for pair in await talk.initial_metadata()}
    assert ("x-bye", "now") in {tuple(pair) for pair in await talk.trailing_metadata()}
    assert served.handled("Up", "server_stream", "OK") == 2
    assert served.handled("Join", "client_stream", "OK") == 2
    assert served.handled("Double", "bidi_stream", "OK") == 1


async def test_errors_end_a_stream_after_its_messages(serve: Serve) -> None:
    async def some(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        if request == b"fatal":
            raise errors.InvariantError("impossible")
        raise errors.NotLeader("h:1", shard_id="shard-1")

    served = await serve(Some=(SERVER_STREAM, some))
    call = served.channel.unary_stream(path("Some"))(b"")
    assert await call.read() == b"one"
    got = await failure(call.read())
    assert (got.code(), got.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "Not the leader. Leader hint: h:1")
    assert ("x-leader-hint", "h:1") in {tuple(pair) for pair in got.trailing_metadata() or ()}
    assert served.fatal == []
    call = served.channel.unary_stream(path("Some"))(b"fatal")
    assert await call.read() == b"one"
    assert (await failure(call.read())).code() is grpc.StatusCode.INTERNAL
    assert [str(error) for error in served.fatal] == ["impossible"]


async def test_a_stream_whose_client_cancels_ends_its_handler_and_its_generator(serve: Serve) -> None:
    closed = asyncio.Event()

    async def forever(requests: object, context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            closed.set()

    served = await serve(Forever=(BIDI, forever))
    talk = served.stream("Forever")
    assert await talk.read() == b"first"
    talk.cancel()
    await until(closed)


async def test_a_client_that_does_not_read_holds_its_handler_up(serve: Serve) -> None:
    """64 MiB at most are asked for; a few are under way while nobody reads, and all arrive once somebody does."""
    chunk, chunks = bytes(64 << 10), 1_000
    written = 0
    blocked = asyncio.Event()

    async def pour(request: bytes, context: Any) -> None:
        nonlocal written
        for _ in range(chunks):
            writing = asyncio.ensure_future(context.write(chunk))
            done, _ = await asyncio.wait({writing}, timeout=0.5)
            if not done:
                blocked.set()
            await writing
            written += 1

    served = await serve(Pour=(SERVER_STREAM, pour))
    call = served.channel.unary_stream(path("Pour"))(b"")
    await call.read()
    await until(blocked)
    assert written < chunks / 2
    rest = 0
    while await call.read() is not grpc.aio.EOF:
        rest += 1
    assert rest == chunks - 1


async def test_a_handler_that_does_not_read_holds_its_client_up(serve: Serve) -> None:
    chunk, chunks = bytes(64 << 10), 1_000
    go = asyncio.Event()

    async def swallow(requests: AsyncIterator[bytes], context: Any) -> bytes:
        await go.wait()
        return str(sum([len(request) async for request in requests])).encode()

    served = await serve(Swallow=(CLIENT_STREAM, swallow))
    call = served.channel.stream_unary(path("Swallow"))()
    sent = 0
    while True:
        writing = asyncio.ensure_future(call.write(chunk))
        done, _ = await asyncio.wait({writing}, timeout=0.5)
        if not done:
            break
        sent += 1
        assert sent < chunks / 2
    go.set()
    await writing
    for _ in range(chunks - sent - 1):
        await call.write(chunk)
    await call.done_writing()
    assert await call == str(chunks * len(chunk)).encode()


# --- stopping -------------------------------------------------------------------------------------------------------


async def test_a_stop_lets_calls_in_flight_be_answered_and_takes_no_new_ones(serve: Serve) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        began.set()
        await go.wait()
        return request

    served = await serve(Wait=(UNARY, wait))
    first = asyncio.ensure_future(served.unary("Wait", b"first"))
    await until(began)
    stopping = asyncio.create_task(served.server.stop(SOON * 1_000))
    async with asyncio.timeout(SOON):
        while (got := await failure(served.unary("Wait", b"second", timeout=0.3))).code() is not (
            grpc.StatusCode.UNAVAILABLE
        ):
            pass
    assert got.code() is grpc.StatusCode.UNAVAILABLE
    assert not stopping.done()
    go.set()
    assert await first == b"first"
    async with asyncio.timeout(SOON):
        await stopping


async def test_a_stop_cuts_off_what_is_not_answered_within_its_grace(serve: Serve) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return request

    served = await serve(Wait=(UNARY, wait))
    asked = asyncio.ensure_future(failure(served.unary("Wait")))
    await until(began)
    await served.server.stop(50)
    await until(ended)
    assert (await asked).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_a_watch_of_the_health_sees_the_stop(serve: Serve) -> None:
    served = await serve()
    watch = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    await served.server.set_serving(NAME, serving=False)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await served.server.set_serving(NAME, serving=True)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    stopping = asyncio.create_task(served.server.stop(500))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await failure(watch.read())
    await stopping
