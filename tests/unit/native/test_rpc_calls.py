"""Calls over the native server with grpcio's client: every kind, metadata, statuses, deadlines, cancels."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import flotta_native as native
import grpc
import pytest
from rpc_harness import (
    METHODS,
    PATIENCE_S,
    STREAM,
    UNARY,
    Served,
    call_unary,
    channel_to,
    code_of,
    connected,
    served,
    until,
)


def test_unary_calls_are_echoed_in_batches_over_one_connection() -> None:
    with served() as running, channel_to(running.address) as channel:
        payloads = [b"%d" % number * number for number in range(300)]
        futures = [channel.unary_unary(UNARY).future(payload, timeout=PATIENCE_S) for payload in payloads]
        assert [future.result() for future in futures] == payloads
        stats = running.server.stats()
        assert (stats.connections, stats.calls_total, stats.messages_out) == (1, 300, 300)
        assert [(path, sum(counts)) for path, counts, _ in running.server.call_times()] == [(UNARY, 300)]
        until(lambda: running.server.stats().calls == 0)
        assert (running.server.stats().request_bytes, running.server.stats().reply_bytes) == (0, 0)
        assert len({id(call[5]) for call in running.unary}) == 1, "one peer object a connection"
        assert running.unary[0][5].address.startswith("ipv4:127.0.0.1:")
        assert all(call[3] is None for call in running.unary)
        assert all(0 < call[4] <= PATIENCE_S * 1_100 for call in running.unary)


def test_metadata_statuses_and_trailers_come_through_both_ways() -> None:
    trailers = (("x-hint", "a b"), ("grpc-status-details-bin", b"\x00\xff"), ("more-bin", b""), ("x-hint", "c"))
    with served(echo=False) as running, channel_to(running.address) as channel:
        running.on_unary = lambda call: (call[0], 9, "ünfit 50%\n", None, trailers)
        sent = (("k", "v"), ("x-bin", b"\x00\x01\xff"), ("k", "w w"))
        with pytest.raises(grpc.RpcError) as caught:
            call_unary(channel, b"", metadata=sent, timeout=None)
        error = caught.value
        assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "ünfit 50%\n")
        # Headers of one name keep their order.
        assert sorted(error.trailing_metadata()) == sorted(trailers)
        assert [value for key, value in error.trailing_metadata() if key == "x-hint"] == ["a b", "c"]
        assert sorted(running.unary[0][3]) == sorted(sent)
        assert running.unary[0][4] is None
        running.on_unary = lambda call: (call[0], 0, "", b"yes", (("note", "n"),))
        reply, call = channel.unary_unary(UNARY).with_call(b"x", timeout=PATIENCE_S)
        assert (reply, [*call.trailing_metadata()]) == (b"yes", [("note", "n")])


def test_unknown_paths_are_unimplemented_and_name_the_path() -> None:
    with served() as running, channel_to(running.address) as channel:
        assert code_of(channel, b"", "/no/Such") == (grpc.StatusCode.UNIMPLEMENTED, "there is no method /no/Such")
        assert running.unary == []


def test_a_deadline_is_kept_by_the_server_and_the_call_named_as_ended() -> None:
    with served(echo=False) as running, channel_to(running.address) as channel:
        connected(channel)
        assert code_of(channel, b"", timeout=1)[0] == grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: running.ended)
        assert running.ended == [running.unary[0][0]]
        running.server.reply_many([(running.ended[0], b"late"), (1 << 60, b"nobody")])
        until(lambda: len(running.server.call_times()) == 1)
        [(path, counts, total_ns)] = running.server.call_times()
        assert (path, sum(counts)) == (UNARY, 1) and total_ns > 0
        running.on_unary = lambda call: (call[0], call[2])
        assert call_unary(channel, b"next") == b"next"


def test_a_cancelled_call_is_named_as_ended_and_an_unseen_one_is_never_shown() -> None:
    with served(echo=False) as running, channel_to(running.address) as channel:
        future = channel.unary_unary(UNARY).future(b"")
        until(lambda: running.unary)
        future.cancel()
        until(lambda: running.ended)
        assert running.ended == [running.unary[0][0]]
        assert running.server.stats().resets == 1
        [(path, counts, total_ns)] = running.server.call_times()
        assert (path, sum(counts)) == (UNARY, 1) and total_ns > 0, "a call that was given up took its time, too"
        gone = channel.unary_unary(UNARY).future(b"")
        until(lambda: len(running.unary) == 2)
        channel.close()
        until(lambda: len(running.ended) == 2)
        assert gone.code() == grpc.StatusCode.CANCELLED


def test_bidirectional_streams_carry_messages_headers_half_close_and_trailers() -> None:
    with served() as running, channel_to(running.address) as channel:

        def echo(event: tuple[int, int, int, object]) -> None:
            kind, call, method, data = event
            assert method == 1
            if kind == native.EVENT_OPEN:
                running.server.initial_metadata(call, (("head", "h"), ("head-bin", b"\x01")))
            elif kind == native.EVENT_MESSAGE:
                assert isinstance(data, bytes)
                running.server.send_many([(call, data), (call, b"")])
                running.server.credit(call, len(data))
            elif kind == native.EVENT_HALF_CLOSE:
                running.server.finish(call, 5, "all gone", (("tail", "t"),))

        running.on_stream = echo
        stream = channel.stream_stream(STREAM)(iter([b"a", b"", b"ccc"]), timeout=PATIENCE_S, metadata=(("k", "v"),))
        received: list[bytes] = []
        with pytest.raises(grpc.RpcError) as caught:
            received.extend(stream)
        assert received == [b"a", b"", b"", b"", b"ccc", b""]
        assert [*stream.initial_metadata()] == [("head", "h"), ("head-bin", b"\x01")]
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "all gone")
        assert [*stream.trailing_metadata()] == [("tail", "t")]
        _, call, _, (metadata, remaining_ms, peer) = running.events[0]
        assert metadata == (("k", "v"),)
        assert 0 < remaining_ms <= PATIENCE_S * 1_100
        assert peer.address.startswith("ipv4:127.0.0.1:")
        message, half_close = native.EVENT_MESSAGE, native.EVENT_HALF_CLOSE
        assert running.events_of(call) == [native.EVENT_OPEN, message, message, message, half_close]
        until(lambda: running.server.stats().calls == 0)
        assert running.server.stats().request_bytes == 0


def test_client_streaming_and_server_streaming() -> None:
    with served() as running, channel_to(running.address) as channel:

        def answer(event: tuple[int, int, int, object]) -> None:
            kind, call, _, data = event
            if kind == native.EVENT_MESSAGE:
                assert isinstance(data, bytes)
                running.server.credit(call, len(data))
            elif kind == native.EVENT_HALF_CLOSE:
                total = b"%d" % sum(len(message) for message in running.messages_of(call))
                running.server.send_many([(call, total)] * 3 if total == b"1" else [(call, total)])
                running.server.finish(call, 0)

        running.on_stream = answer
        assert channel.stream_unary(STREAM)(iter([b"x" * 1_000] * 100), timeout=PATIENCE_S) == b"100000"
        assert list(channel.unary_stream(STREAM)(b"1", timeout=PATIENCE_S)) == [b"1"] * 3


def test_a_stream_that_its_client_leaves_is_cancelled_last() -> None:
    with served() as running, channel_to(running.address) as channel:
        stop = threading.Event()

        def requests():
            yield b"one"
            stop.wait(PATIENCE_S)

        stream = channel.stream_stream(STREAM)(requests())
        (call,) = running.opened()
        until(lambda: running.messages_of(call))
        stream.cancel()
        until(lambda: native.EVENT_CANCELLED in running.events_of(call))
        stop.set()
        assert running.events_of(call) == [native.EVENT_OPEN, native.EVENT_MESSAGE, native.EVENT_CANCELLED]
        late = channel.stream_stream(STREAM)(iter([]), timeout=0.2)
        with pytest.raises(grpc.RpcError) as caught:
            next(late)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: running.events[-1][0] == native.EVENT_CANCELLED)
        assert running.server.send_many([(call, b"to nobody")]) == []


def test_a_unary_call_with_two_messages_or_none_is_refused() -> None:
    with served() as running, channel_to(running.address) as channel:
        for messages in ([], [b"a", b"b"]):
            with pytest.raises(grpc.RpcError) as caught:
                channel.stream_unary(UNARY)(iter(messages), timeout=PATIENCE_S)
            assert caught.value.code() == grpc.StatusCode.INTERNAL
            assert "one message" in caught.value.details()
        assert running.unary == []


def test_malformed_answers_are_refused_whole() -> None:
    with served(echo=False) as running, channel_to(running.address) as channel:
        future = channel.unary_unary(UNARY).future(b"", timeout=PATIENCE_S)
        call = until(lambda: running.unary)[0][0]
        for bad in [(call, 1), (call, b"", 3), (call, 17, "", None, None), (call, 1, "", None, (("UP", "x"),))]:
            with pytest.raises((ValueError, TypeError)):
                running.server.reply_many([(call, b"good"), bad])
        for name, value in [("grpc-status", "0"), ("x", "\n"), ("x-bin", "text"), ("x", 5)]:
            with pytest.raises((ValueError, TypeError)):
                running.server.initial_metadata(call, ((name, value),))
        assert not future.done()
        running.server.reply_many([(call, b"fine")])
        assert future.result() == b"fine"


def test_bad_options_and_addresses_are_named() -> None:
    with pytest.raises(ValueError, match="calls_max is 0"):
        native.RpcServer(METHODS, calls_max=0)
    with pytest.raises(OSError, match="no-such-host-anywhere"):
        native.RpcServer(METHODS).start("no-such-host-anywhere:1")
    with served() as running, pytest.raises(OSError, match="in use"):
        native.RpcServer(METHODS).start(running.address)


def test_unix_sockets_are_served_and_a_leftover_one_is_replaced(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/rpc.sock"
    for _ in range(2):
        running = Served(listen=listen)
        # By itself grpcio names the path, percent-encoded, which is no authority to HTTP/2.
        with channel_to(listen, grpc__default_authority="localhost") as channel:
            assert call_unary(channel, b"x") == b"x"
            assert running.unary[0][5].address == "unix:"
            with pytest.raises(OSError, match="in use"):
                native.RpcServer(METHODS).start(listen)
        running.close()
        assert not (tmp_path / "rpc.sock").exists()
        # What a killed process leaves behind.
        left = socket.socket(socket.AF_UNIX)
        left.bind(f"{tmp_path}/rpc.sock")
        left.close()


def test_all_addresses_of_a_name_are_served() -> None:
    addresses = {info[4][0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    with served(listen="localhost:0") as running:
        for address in addresses:
            with socket.create_connection((address, running.port), timeout=PATIENCE_S):
                pass
    with served(listen="[::]:0") as running:
        for address in ("127.0.0.1", "[::1]"):
            with channel_to(f"{address}:{running.port}") as channel:
                assert call_unary(channel, b"x") == b"x"
        families = {call[5].address.rsplit(":", 1)[0] for call in running.unary}
        assert families == {"ipv4:127.0.0.1", "ipv6:[::1]"}
