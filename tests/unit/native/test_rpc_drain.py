"""Ending in order: calls in flight finish, calls that race the goodbye are served, and nothing is lost or left."""

from __future__ import annotations

import socket
import threading

import flotta_native as native
import grpc
import pytest
import raw_http2 as h2
from rpc_harness import METHODS, PATIENCE_S, STREAM, UNARY, Served, call_unary, channel_to, served, until
from rpc_raw import open_call, raw

LAST_OF_ALL = (1 << 31) - 1


def unary(stream: int, payload: bytes = b"") -> bytes:
    return open_call(stream) + h2.data(stream, h2.message(payload), end=True)


def test_calls_in_flight_finish_and_those_that_race_the_goodbye_are_served() -> None:
    with served(echo=False) as running, raw(running.port, attentive=False) as client:
        client.send(unary(1), open_call(3, STREAM))
        (stream,) = running.opened()
        until(lambda: len(running.unary) == 1)
        running.server.drain()
        client.until(lambda: client.goaways)
        assert client.goaways == [(LAST_OF_ALL, "NO_ERROR")]
        # It has not heard the goodbye yet.
        client.send(unary(5))
        until(lambda: len(running.unary) == 2)
        until(lambda: not connects(running.port), "the end of listening")
        client.answer_pings()
        client.until(lambda: len(client.goaways) == 2)
        assert client.goaways[1] == (5, "NO_ERROR")
        assert not client.closed
        running.server.reply_many([(call[0], b"late") for call in running.unary])
        assert [client.code(number) for number in (1, 5)] == [0, 0]
        client.send(h2.data(3, h2.message(b"last words"), end=True))
        until(lambda: running.messages_of(stream) == [b"last words"])
        assert not client.closed
        running.server.finish(stream, 0)
        assert client.code(3) == 0
        client.until(lambda: client.closed)
        until(lambda: running.server.stats().connections == 0)
        with pytest.raises(RuntimeError, match="drained"):
            running.server.start("127.0.0.1:0")


@pytest.mark.parametrize("piece_bytes", [1, 7, 1 << 20])
def test_a_stream_that_comes_too_late_takes_nobody_with_it_however_much_is_said_about_it(piece_bytes: int) -> None:
    with served(echo=False) as running, raw(running.port, window=65_535) as client:
        client.send(unary(1))
        until(lambda: len(running.unary) == 1)
        running.server.drain()
        client.until(lambda: len(client.goaways) == 2)
        late = [unary(3), h2.window_update(3, 1), h2.reset(3), open_call(5, STREAM), h2.window_update(5, 1 << 20)]
        ping = h2.frame(h2.PING, 0, 0, b"all read")
        said = b"".join([*late, h2.window_update(1, 1), ping])
        for at in range(0, len(said), piece_bytes):
            client.send(said[at : at + piece_bytes])
        client.until(lambda: client.pongs or client.closed)
        assert (client.pongs, client.goaways[2:], client.closed) == ([b"all read"], [], False)
        running.server.reply_many([(running.unary[0][0], b"served")])
        assert client.code(1) == 0
        assert len(running.unary) == 1
        client.until(lambda: client.closed)


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
    except ConnectionRefusedError:
        return False
    return True


def test_no_call_is_lost_while_one_server_after_the_other_takes_over_a_port() -> None:
    running = Served()
    port, outcomes, over = running.port, [], threading.Event()
    with channel_to(f"127.0.0.1:{port}", grpc__initial_reconnect_backoff_ms=10) as channel:

        def load(number: int) -> None:
            sent = 0
            while not over.is_set():
                payload = b"%d/%d" % (number, sent)
                try:
                    outcomes.append(call_unary(channel, payload, wait_for_ready=True) == payload)
                except grpc.RpcError as error:
                    outcomes.append(error)
                sent += 1

        threads = [threading.Thread(target=load, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            known = len(outcomes)
            until(lambda known=known: len(outcomes) > known + 200)
            running.server.stop(grace_ms=int(PATIENCE_S * 1_000))
            assert running.ended == []
            running.close()
            running = Served(listen=f"127.0.0.1:{port}")
        known = len(outcomes)
        until(lambda: len(outcomes) > known + 200)
        over.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    running.close()
    assert set(map(repr, outcomes)) == {"True"}


def test_stop_waits_for_answers_and_cuts_what_never_gets_one() -> None:
    with served(echo=False) as running, channel_to(running.address) as channel:
        future = channel.unary_unary(UNARY).future(b"x", timeout=PATIENCE_S)
        call = until(lambda: running.unary)[0][0]
        stopping = threading.Thread(target=running.server.stop, args=(int(PATIENCE_S * 1_000),))
        stopping.start()
        until(lambda: not connects(running.port), "the end of listening")
        assert stopping.is_alive()
        running.server.reply_many([(call, b"in time")])
        assert future.result() == b"in time"
        stopping.join(PATIENCE_S)
        assert not stopping.is_alive()
    with served(echo=False) as running, channel_to(running.address) as channel:
        future = channel.unary_unary(UNARY).future(b"x", timeout=PATIENCE_S)
        stream = channel.stream_stream(STREAM)(iter([]), timeout=PATIENCE_S)
        running.opened()
        call = until(lambda: running.unary)[0][0]
        running.server.stop(grace_ms=50)
        assert future.exception().code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        with pytest.raises(grpc.RpcError):
            next(stream)
        until(lambda: running.ended == [call])
        until(lambda: running.events[-1][0] == native.EVENT_CANCELLED)
        stats = running.server.stats()
        assert (stats.calls, stats.connections, stats.request_bytes) == (0, 0, 0)


def test_a_server_that_is_let_go_of_ends_its_connections() -> None:
    server = native.RpcServer(METHODS)
    port = server.start("127.0.0.1:0")
    with raw(port) as client:
        client.until(lambda: client.settings)
        del server
        client.until(lambda: client.closed)
    until(lambda: not connects(port), "the end of listening")


def test_servers_that_never_started_or_stop_twice_end_as_well() -> None:
    server = native.RpcServer(METHODS)
    server.stop(1_000)
    server.stop(1_000)
    assert server.poll() == ([], [], [])
    with served() as running:
        running.server.drain()
        running.server.drain()
        running.server.stop(1_000)
