"""Clients that stop half-way: messages never finished, replies never read, peers gone silent, answers given early."""

from __future__ import annotations

import contextlib
import socket

import flotta_native as native
import grpc
import raw_http2 as h2
from rpc_harness import PATIENCE_S, STREAM, Served, call_unary, channel_to, served, until
from rpc_raw import Raw, open_call, raw

CANCELLED, UNIMPLEMENTED = grpc.StatusCode.CANCELLED.value[0], grpc.StatusCode.UNIMPLEMENTED.value[0]


def kinds(running: Served) -> set[str]:
    return {kind for kind, _, _ in running.server.notices()}


def test_half_a_message_and_then_nothing_is_given_up() -> None:
    with served(stall_ms=200) as running, raw(running.port) as client:
        half = h2.message(b"", claimed_bytes=5_000) + b"x" * 100
        client.send(open_call(1), h2.data(1, half))
        client.send(open_call(3))
        client.send(open_call(5, STREAM), h2.data(5, h2.message(b"whole") + half))
        assert [client.code(stream) for stream in (1, 3, 5)] == [CANCELLED] * 3
        (call,) = running.opened()
        until(lambda: native.EVENT_CANCELLED in running.events_of(call))
        assert running.messages_of(call) == [b"whole"]
        assert running.server.stats().stalled_requests == 3
        assert "unfinished_request" in kinds(running)
        until(lambda: running.server.stats().request_bytes == 0)
        assert running.unary == []


def test_a_stream_that_is_silent_between_messages_is_left_alone() -> None:
    with served(stall_ms=300) as running, raw(running.port) as client:
        client.send(open_call(1, STREAM), h2.data(1, h2.message(b"one")))
        (call,) = running.opened()
        client.send(open_call(3), h2.data(3, h2.message(b"", claimed_bytes=9)))
        # Somebody else is given up meanwhile, so time passed.
        assert client.code(3) == CANCELLED
        client.send(h2.data(1, h2.message(b"two"), end=True))
        until(lambda: native.EVENT_HALF_CLOSE in running.events_of(call))
        running.server.finish(call, 0)
        assert client.code(1) == 0


def test_a_reply_whose_client_makes_no_room_is_given_up_with_its_memory() -> None:
    with served(stall_ms=200) as running, raw(running.port, window=100) as client:
        client.send(open_call(1), h2.data(1, h2.message(b"r" * 50_000), end=True))
        client.send(open_call(3, STREAM))
        (call,) = running.opened()
        running.server.send_many([(call, b"s" * 50_000)])
        client.until(lambda: client.resets.get(1) and client.resets.get(3), "the resets")
        assert running.server.stats().stalled_replies == 2
        assert "unread_reply" in kinds(running)
        until(lambda: native.EVENT_CANCELLED in running.events_of(call))
        until(lambda: running.server.stats().reply_bytes == 0)
        until(lambda: running.server.stats().calls == 0)
        client.send(open_call(5), h2.data(5, h2.message(b"small"), end=True))
        assert client.code(5) == 0


def test_a_connection_that_takes_nothing_is_cut_with_its_memory() -> None:
    with served(stall_ms=300) as running, channel_to(running.address) as quiet:
        client = Raw(running.port, read=False)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        reply = b"r" * 400_000
        running.on_unary = lambda call: (call[0], reply if call[2] == b"big" else call[2])
        client.send(*(open_call(n) + h2.data(n, h2.message(b"big"), end=True) for n in range(1, 100, 2)))
        until(lambda: "unread_connection" in kinds(running))
        assert call_unary(quiet, b"y") == b"y"
        until(lambda: running.server.stats().reply_bytes == 0)
        until(lambda: running.server.stats().connections == 1)
        client.close()


def test_who_does_not_read_is_refused_when_replies_fill_their_room_and_others_are_not() -> None:
    with served(reply_bytes_max=1 << 20) as running, channel_to(running.address) as quiet:
        with raw(running.port, window=0) as client:
            client.until(lambda: client.settings and client.granted.get(0), "room for more than HTTP/2 begins with")
            for stream in range(1, 7, 2):
                client.send(open_call(stream), h2.data(stream, h2.message(b"r" * 100_000), end=True))
                # Of its share, an eighth, the second one takes the rest.
                waiting = min(stream // 2 + 1, 2) * 100_000
                until(lambda waiting=waiting: running.server.stats().reply_bytes > waiting)
            assert client.code(5) == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
            assert running.server.stats().refused_reply_bytes == 1
            assert "unread_replies" in kinds(running)
            assert call_unary(quiet, b"y" * 500_000) == b"y" * 500_000
        until(lambda: running.server.stats().reply_bytes == 0)


def test_a_peer_that_answers_no_ping_is_given_up_and_one_that_does_is_kept() -> None:
    with (
        served(keepalive_ms=100, keepalive_timeout_ms=2_000) as running,
        raw(running.port) as awake,
        raw(running.port, attentive=False) as asleep,
    ):
        for client in (awake, asleep):
            client.send(open_call(1), h2.data(1, h2.message(b""), end=True))
            assert client.code(1) == 0
        # Half a frame: nobody can answer a ping within it.
        asleep.send(h2.data(3, b"x" * 1_000)[:500])
        awake.until(lambda: running.server.stats().keepalive_timeouts, "the end of the silent one")
        asleep.until(lambda: asleep.closed)
        assert running.server.stats().keepalive_timeouts == 1
        awake.send(open_call(3), h2.data(3, h2.message(b""), end=True))
        assert awake.code(3) == 0


def test_a_connection_that_never_begins_is_closed() -> None:
    with served(stall_ms=100) as running:
        for beginning in (b"", h2.PREFACE[:10], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
            with (
                socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE_S) as client,
                contextlib.suppress(ConnectionError),  # what it said may not have been read, or have come too late
            ):
                client.sendall(beginning)
                while client.recv(1_000):
                    pass
        until(lambda: running.server.stats().failed_handshakes == 3)
        until(lambda: running.server.stats().connections == 0)


def test_an_answer_before_the_end_of_the_request_is_not_lost_under_a_reset() -> None:
    with served() as running, raw(running.port) as client:
        body = h2.message(b"u" * 500_000)
        client.send(open_call(1, "/no/Such"), h2.data(1, body[:1_000]))
        assert client.code(1) == UNIMPLEMENTED
        # The client goes on until it has said everything; only then is its stream over.
        client.send(h2.data(1, body[1_000:], end=True), open_call(3), h2.data(3, h2.message(b""), end=True))
        assert client.code(3) == 0
        assert client.resets == {}
        until(lambda: running.server.stats().calls == 0)


def test_draining_a_request_that_nobody_wants_is_bounded() -> None:
    with served() as running, raw(running.port) as client:
        client.send(open_call(1, "/no/Such"), h2.data(1, b"u" * 100))
        assert client.code(1) == UNIMPLEMENTED
        # Neither for ever nor without measure.
        client.until(lambda: client.resets.get(1) == "NO_ERROR", "the reset after a while")
        client.send(open_call(3, "/no/Such"))
        assert client.code(3) == UNIMPLEMENTED
        client.send(h2.data(3, b"u" * 1_000_000))
        client.until(lambda: client.granted.get(3, 0) > 600_000)
        client.send(h2.data(3, b"u" * 600_000))
        client.until(lambda: client.resets.get(3) == "NO_ERROR", "the reset after a lot")
        client.send(open_call(5), h2.data(5, h2.message(b""), end=True))
        assert client.code(5) == 0
        assert client.goaways == []


def test_curl_like_uploads_to_a_wrong_path_get_their_answer_every_time() -> None:
    with served() as running, channel_to(running.address) as channel:
        for _ in range(30):
            try:
                channel.unary_unary("/no/Such")(b"u" * 900_000, timeout=PATIENCE_S)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
            else:
                raise AssertionError("it was answered")


def test_deadlines_of_finished_calls_leave_nothing_behind() -> None:
    with served() as running, raw(running.port) as client:
        # Deadlines beyond any test's patience: only their calls' end can drop the timers.
        for stream in range(1, 4_001, 2):
            client.send(open_call(stream, grpc_timeout="99999999H"), h2.data(stream, h2.message(b""), end=True))
            if stream % 500 == 1:
                assert client.code(stream) == 0
        client.send(open_call(4_001, STREAM, grpc_timeout="10H"))
        (call,) = running.opened()
        assert running.server.stats().timers == 1
        running.server.finish(call, 0)
        assert client.code(4_001) == 0
        client.send(h2.data(4_001, b"", end=True))
        until(lambda: running.server.stats().timers == 0)
