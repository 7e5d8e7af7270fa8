"""Servers over real gRPC on loopback: token, error mapping, limits, health, reflection, ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from flotta_proto.kvdb import coordinator_pb2, coordinator_pb2_grpc, kvstore_pb2, kvstore_pb2_grpc
from flotta_runtime import errors, status
from flotta_runtime.metrics import Metrics
from flotta_runtime.server import REFLECTION_SERVICES, Channel, GrpcServer, build_server, channel
from flotta_runtime.settings import Transport
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

TRANSPORTS: tuple[Transport, ...] = ("grpcio", "native")
RAISES: dict[bytes, Exception] = {
    b"not-leader": errors.NotLeader("h:1", shard_id="shard-1"),
    b"leader-unknown": errors.NotLeader(),
    b"moved": errors.ShardMoved("shard-2", "h:2"),
    b"precondition": errors.PreconditionFailed("not now"),
    b"version": errors.VersionMismatch("it is 3"),
    b"invalid": errors.InvalidArgument("key is empty", field="key"),
    b"large": errors.PayloadTooLarge("value is over 16 MiB", field="value"),
    b"limited": errors.RateLimited("slow down", retry_after_ms=70),
    b"absent": errors.NotFound("no such key"),
    b"exists": errors.AlreadyExists("is there"),
    b"unavailable": errors.Unavailable("no leader", shard_id="shard-3"),
    b"timeout": errors.Timeout("may have happened"),
    b"denied": errors.PermissionDenied("no"),
    b"unauthenticated": errors.Unauthenticated("who?"),
    b"crash": ValueError("private detail"),
}


class KvStore(kvstore_pb2_grpc.KVServiceServicer):
    async def Get(self, request: kvstore_pb2.KeyRequest, context: Any) -> kvstore_pb2.ValueResponse:
        if request.key in RAISES:
            raise RAISES[request.key]
        if request.key == b"invariant":
            raise errors.InvariantError("impossible")
        return kvstore_pb2.ValueResponse(value=request.key)

    async def Set(self, request: kvstore_pb2.KeyValueRequest, context: Any) -> kvstore_pb2.SetResponse:
        return kvstore_pb2.SetResponse(success=True)


class Coordinator(coordinator_pb2_grpc.CoordinatorServicer):
    async def WatchShardMap(
        self, request: coordinator_pb2.WatchShardMapRequest, context: Any
    ) -> AsyncIterator[coordinator_pb2.ShardMapDelta]:
        yield coordinator_pb2.ShardMapDelta(new_map_version=1)
        if request.from_version == 1:
            raise errors.NotLeader("h:3")
        if request.from_version == 2:
            await asyncio.Event().wait()
        if request.from_version == 3:
            raise cygrpc._ServerStoppedError("Server already stopped.")


class Running:
    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.metrics = Metrics("unit", "n")
        self.fatal: list[BaseException] = []
        self.server: GrpcServer = build_server(
            [
                (kvstore_pb2_grpc.add_KVServiceServicer_to_server, KvStore(), "kvdb.kvstore.KVService"),
                (
                    coordinator_pb2_grpc.add_CoordinatorServicer_to_server,
                    Coordinator(),
                    "kvdb.coordinator.Coordinator",
                ),
            ],
            listen="127.0.0.1:0",
            token="the-token",
            transport=transport,
            metrics=self.metrics,
            on_fatal=self.fatal.append,
        )
        self.channel: Channel

    def count(self, method: str, code: str) -> float:
        return (
            self.metrics.registry.get_sample_value(
                "grpc_server_handled_total",
                {
                    "grpc_service": "kvdb.kvstore.KVService",
                    "grpc_method": method,
                    "grpc_type": "unary",
                    "grpc_code": code,
                },
            )
            or 0.0
        )


@pytest.fixture(params=TRANSPORTS)
async def running(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    made = Running(request.param)
    port = await made.server.start()
    made.channel = channel(f"127.0.0.1:{port}", "the-token")
    yield made
    await made.channel.close()
    await made.server.stop(0)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("key", [key for key in RAISES if key != b"crash"])
async def test_an_error_arrives_as_what_it_was(running: Running, key: bytes) -> None:
    stub = kvstore_pb2_grpc.KVServiceStub(running.channel.grpc)
    sent = RAISES[key]
    assert isinstance(sent, errors.FlottaError)
    got = await failure(stub.Get(kvstore_pb2.KeyRequest(key=key)))
    assert got.code().name == sent.grpc_code
    assert got.details() == sent.message
    back = status.from_rpc_error(got)
    assert type(back) is type(sent)
    assert (back.message, back.shard_id, back.leader_hint, back.new_node_hint, back.retry_after_ms) == (
        sent.message,
        sent.shard_id,
        sent.leader_hint,
        sent.new_node_hint,
        sent.retry_after_ms,
    )


async def test_kvdb_trailers_and_words(running: Running) -> None:
    stub = kvstore_pb2_grpc.KVServiceStub(running.channel.grpc)
    got = await failure(stub.Get(kvstore_pb2.KeyRequest(key=b"not-leader")))
    assert got.details() == "Not the leader. Leader hint: h:1"
    assert ("x-leader-hint", "h:1") in tuple(got.trailing_metadata())
    moved = await failure(stub.Get(kvstore_pb2.KeyRequest(key=b"moved")))
    assert moved.details() == "Shard has moved to: h:2"
    assert {("x-shard-id", "shard-2"), ("x-new-node-hint", "h:2")} <= set(moved.trailing_metadata())


def test_an_unavailable_that_the_transport_made_up_may_have_happened() -> None:
    def said(details: str, *trailers: tuple[str, str]) -> errors.FlottaError:
        trailing = grpc.aio.Metadata(*trailers)
        return status.from_rpc_error(
            grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, trailing_metadata=trailing, details=details)
        )

    assert type(said("Socket closed")) is errors.ConnectionLost
    assert said("Socket closed").outcome_unknown
    assert type(said("failed to connect to all addresses; last error: ...")) is errors.Unavailable
    assert type(said("no leader", ("x-flotta-error", "UNAVAILABLE"))) is errors.Unavailable


async def test_a_call_whose_server_dies_may_have_happened(running: Running) -> None:
    stub = coordinator_pb2_grpc.CoordinatorStub(running.channel.grpc)
    stream = stub.WatchShardMap(coordinator_pb2.WatchShardMapRequest(from_version=2))
    await stream.read()
    await running.server.stop(0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert status.from_rpc_error(caught.value).outcome_unknown
    again = await failure(stub.GetShardMap(coordinator_pb2.GetShardMapRequest()))
    assert not status.from_rpc_error(again).outcome_unknown


async def test_words_of_a_kvdb_server_are_understood() -> None:
    def said(words: str) -> errors.FlottaError:
        return status.from_rpc_error(grpc.aio.AioRpcError(grpc.StatusCode.FAILED_PRECONDITION, details=words))

    known = said("Not the leader. Leader hint: h:9001")
    assert isinstance(known, errors.NotLeader)
    assert known.leader_hint == "h:9001"
    unknown = said("Not the leader. Leader hint: null")
    assert isinstance(unknown, errors.NotLeader)
    assert unknown.leader_hint is None


async def test_an_unexpected_exception_keeps_its_text_inside(running: Running) -> None:
    stub = kvstore_pb2_grpc.KVServiceStub(running.channel.grpc)
    got = await failure(stub.Get(kvstore_pb2.KeyRequest(key=b"crash")))
    assert got.code() is grpc.StatusCode.INTERNAL
    assert "private" not in (got.details() or "")
    assert running.fatal == []


async def test_a_broken_invariant_ends_the_process(running: Running) -> None:
    stub = kvstore_pb2_grpc.KVServiceStub(running.channel.grpc)
    await failure(stub.Get(kvstore_pb2.KeyRequest(key=b"invariant")))
    assert [str(error) for error in running.fatal] == ["impossible"]


async def test_protected_methods_need_the_token(running: Running) -> None:
    stub = kvstore_pb2_grpc.KVServiceStub(running.channel.grpc)
    request = kvstore_pb2.KeyValueRequest(key=b"k", value=b"v")
    for metadata in ((), (("x-kvdb-internal-token", "wrong"),), (("x-kvdb-internal-token", ""),)):
        got = await failure(stub.Set(request, metadata=metadata))
        assert got.code() is grpc.StatusCode.UNAUTHENTICATED
        assert got.details() == "Missing or invalid internal gRPC token"
    assert (await stub.Set(request, metadata=running.channel.metadata)).success
    assert running.count("Set", "UNAUTHENTICATED") == 3
    assert running.count("Set", "OK") == 1


async def test_a_method_nobody_serves_is_unimplemented(running: Running) -> None:
    got = await failure(kvstore_pb2_grpc.KVServiceStub(running.channel.grpc).Ping(kvstore_pb2.PingRequest()))
    assert got.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_streams_map_errors_after_their_messages(running: Running) -> None:
    stub = coordinator_pb2_grpc.CoordinatorStub(running.channel.grpc)
    stream = stub.WatchShardMap(coordinator_pb2.WatchShardMapRequest(from_version=1))
    first = await stream.read()
    assert isinstance(first, coordinator_pb2.ShardMapDelta)
    assert first.new_map_version == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.details() == "Not the leader. Leader hint: h:3"


async def test_a_stream_cut_by_a_stop_is_no_surprise(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """What the library raises out of a write while the server stops: nobody is there, and nothing went wrong."""
    stub = coordinator_pb2_grpc.CoordinatorStub(running.channel.grpc)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.WatchShardMap(coordinator_pb2.WatchShardMapRequest(from_version=3), timeout=1):
            pass
    assert caught.value.code() is not grpc.StatusCode.INTERNAL
    assert "unexpected error" not in capsys.readouterr().err


async def test_a_16_mib_value_passes_both_ways(running: Running) -> None:
    stub = kvstore_pb2_grpc.KVServiceStub(running.channel.grpc)
    value = bytes(16 * 1024 * 1024)
    assert len((await stub.Get(kvstore_pb2.KeyRequest(key=value))).value) == len(value)
    got = await failure(stub.Get(kvstore_pb2.KeyRequest(key=bytes(18 * 1024 * 1024))))
    assert got.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_health_per_service_and_while_stopping(running: Running) -> None:
    stub = health_pb2_grpc.HealthStub(running.channel.grpc)

    async def check(service: str) -> int:
        return int((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status)

    assert await check("") == health_pb2.HealthCheckResponse.SERVING
    assert await check("kvdb.kvstore.KVService") == health_pb2.HealthCheckResponse.SERVING
    await running.server.set_serving("kvdb.kvstore.KVService", serving=False)
    assert await check("kvdb.kvstore.KVService") == health_pb2.HealthCheckResponse.NOT_SERVING
    got = await failure(stub.Check(health_pb2.HealthCheckRequest(service="absent")))
    assert got.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("service", REFLECTION_SERVICES)
async def test_reflection_in_both_versions(running: Running, service: str) -> None:
    call = running.channel.grpc.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    stream = call(
        iter(
            [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol="kvdb.kvstore.KVService"),
            ]
        )
    )
    answers = [answer async for answer in stream]
    names = [found.name for found in answers[0].list_services_response.service]
    assert "kvdb.kvstore.KVService" in names
    assert service in names
    assert answers[1].file_descriptor_response.file_descriptor_proto


async def test_a_second_server_on_the_port_fails_loudly(running: Running) -> None:
    second = build_server([], listen=f"127.0.0.1:{running.server.port}", token="t", transport=running.transport)
    with pytest.raises(errors.StartupError, match=f"127.0.0.1:{running.server.port}"):
        await second.start()
    await second.stop(0)


async def test_stop_lets_a_running_stream_end_and_then_cuts_it(running: Running) -> None:
    stub = coordinator_pb2_grpc.CoordinatorStub(running.channel.grpc)
    stream = stub.WatchShardMap(coordinator_pb2.WatchShardMapRequest(from_version=2))
    assert (await stream.read()).new_map_version == 1
    await running.server.stop(50)
    with pytest.raises(grpc.aio.AioRpcError):
        await stream.read()


async def test_a_service_under_a_wrong_name_is_refused_at_start() -> None:
    add = kvstore_pb2_grpc.add_KVServiceServicer_to_server
    with pytest.raises(ValueError, match=r"kvdb\.kvstore\.KvService added"):
        build_server([(add, KvStore(), "kvdb.kvstore.KvService")], listen="127.0.0.1:0", token="t")


def test_an_empty_token_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        build_server([], listen="127.0.0.1:0", token=" ")
