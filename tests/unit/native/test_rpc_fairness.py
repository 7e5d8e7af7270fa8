"""Whoever sends much waits for himself: what Python takes in a turn is taken from every connection."""

from __future__ import annotations

import select

import flotta_native as native
import raw_http2 as h2
from rpc_harness import METHODS, call_unary, channel_to, served, until
from rpc_raw import Raw, open_call, raw

FLOOD = 900  # calls, on each connection of two
FIRST_CALLS = 32  # of a connection whose replies are not known yet
BIG_BYTES = 1 << 20


def unary(stream: int, payload: bytes) -> bytes:
    return open_call(stream) + h2.data(stream, h2.message(payload), end=True)


def flooded(client: Raw) -> None:
    client.send(*(unary(stream, b"flood") for stream in range(1, 2 * FLOOD, 2)))


def told(client: Raw) -> None:
    client.until(lambda: client.settings and client.granted.get(0), "room for more than HTTP/2 begins with")


def test_a_quiet_client_is_in_the_next_batch_however_much_waits_before_it() -> None:
    server = native.RpcServer(METHODS)
    port = server.start("127.0.0.1:0")
    with raw(port) as one, raw(port) as two, raw(port) as quiet:
        flooded(one)
        flooded(two)
        until(lambda: server.stats().waiting_calls == 2 * FLOOD)
        quiet.send(unary(1, b"quiet"))
        until(lambda: server.stats().waiting_calls == 2 * FLOOD + 1)
        first, _, _ = server.poll()
        assert b"quiet" in [call[2] for call in first[:32]]
        assert len(first) == 2 * FIRST_CALLS + 1
        seen = answered = first
        while len(seen) < 2 * FLOOD + 1:
            server.reply_many([(call[0], b"") for call in answered])
            until(lambda: select.select([server.notify_fd()], [], [], 0)[0], "more calls")
            answered, _, _ = server.poll()
            assert len(answered) <= 512
            seen = seen + answered
        assert len({call[0] for call in seen}) == len(seen)
        assert len(seen) == 2 * FLOOD + 1
    server.stop(0)


def test_nobody_is_shown_a_call_that_ended_while_it_waited() -> None:
    server = native.RpcServer(METHODS)
    port = server.start("127.0.0.1:0")
    with raw(port) as client, raw(port) as other:
        flooded(client)
        until(lambda: server.stats().waiting_calls == FLOOD)
        shown, _, _ = server.poll()
        assert len(shown) == FIRST_CALLS
        other.send(unary(1, b"other"))
        until(lambda: server.stats().waiting_calls == FLOOD - FIRST_CALLS + 1)
        client.send(*(h2.reset(stream) for stream in range(1, 2 * FLOOD, 2)))
        until(lambda: server.stats().calls == 1)
        unary_calls, _, ended = server.poll()
        assert [call[2] for call in unary_calls] == [b"other"]
        assert sorted(ended) == sorted(call[0] for call in shown)
        assert server.stats().waiting_calls == 0
    server.stop(0)


def test_who_does_not_read_big_replies_is_sent_no_more_and_goes_on_when_it_reads() -> None:
    with served() as running, channel_to(running.address) as quiet, raw(running.port, window=0) as client:
        told(client)
        running.on_unary = lambda call: (call[0], bytes(BIG_BYTES) if call[2] == b"big" else call[2])
        client.send(*(unary(stream, b"big") for stream in range(1, 401, 2)))
        until(lambda: running.server.stats().waiting_calls and running.server.stats().reply_bytes > 8 * BIG_BYTES)
        for n in range(20):
            assert call_unary(quiet, b"%d" % n) == b"%d" % n
        stats = running.server.stats()
        assert stats.waiting_calls >= 200 - FIRST_CALLS - 16
        assert stats.refused_reply_bytes == 0
        for stream in range(1, 401, 2):
            client.send(h2.window_update(stream, 2 * BIG_BYTES))
            assert client.code(stream) == 0
            assert len(client.data.pop(stream)) == BIG_BYTES + 5
        assert running.server.stats().waiting_calls == 0


def test_many_calls_at_once_are_all_answered() -> None:
    with served() as running, raw(running.port) as client:
        for first in range(1, 40_001, 4_000):
            streams = range(first, first + 1_600, 2)
            client.send(*(unary(stream, b"%d" % stream) for stream in streams))
            client.until(lambda streams=streams: all(stream in client.ended for stream in streams))
            assert {client.message(stream)[1] for stream in streams} == {b"%d" % stream for stream in streams}
        assert max(running.batches) <= 512
