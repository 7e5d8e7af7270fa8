"""Flow control both ways: slow handlers hold back their clients, slow clients their handlers, and nobody else."""

from __future__ import annotations

import threading
from typing import Any

import flotta_native as native
import raw_http2 as h2
from rpc_harness import PATIENCE_S, STREAM, call_unary, channel_to, served, until
from rpc_raw import open_call, raw

WINDOW = 65_536


def test_a_stream_is_taken_no_faster_than_its_handler_consumes() -> None:
    with served(stream_window_bytes=WINDOW) as running, channel_to(running.address) as channel:
        payload = b"x" * 10_000
        total = 200
        future = channel.stream_unary(STREAM).future(iter([payload] * total), timeout=PATIENCE_S)
        (call,) = running.opened()
        window_count = WINDOW // len(payload)
        until(lambda: len(running.messages_of(call)) > window_count)
        # At its handler: what fits, and one that does not. Here: another window at the most.
        until(lambda: running.server.stats().request_bytes > WINDOW)
        assert len(running.messages_of(call)) <= window_count + 1
        assert running.server.stats().request_bytes <= 2 * WINDOW + 2 * len(payload)
        for consumed in range(total):
            until(lambda consumed=consumed: len(running.messages_of(call)) > consumed)
            running.server.credit(call, len(payload))
        until(lambda: native.EVENT_HALF_CLOSE in running.events_of(call))
        assert running.messages_of(call) == [payload] * total
        running.server.send_many([(call, b"done")])
        running.server.finish(call, 0)
        assert future.result() == b"done"
        until(lambda: running.server.stats().request_bytes == 0)


def test_a_message_bigger_than_the_window_comes_whole() -> None:
    with served(stream_window_bytes=WINDOW) as running, channel_to(running.address) as channel:
        running.on_stream = lambda event: (
            running.server.finish(event[1], 0) if event[0] == native.EVENT_HALF_CLOSE else None
        )
        big = bytes(range(256)) * 8_000
        list(channel.stream_stream(STREAM)(iter([big]), timeout=PATIENCE_S))
        (call,) = running.opened()
        assert running.messages_of(call) == [big]


def test_empty_messages_are_not_free() -> None:
    with served(stream_window_bytes=WINDOW) as running, raw(running.port) as client:
        count = 10_000
        client.send(open_call(1, STREAM), h2.data(1, h2.message(b"") * count, end=True))
        (call,) = running.opened()
        until(lambda: running.messages_of(call))
        held = until(lambda: running.server.stats().request_bytes)
        assert len(running.messages_of(call)) <= WINDOW // 64 + 1
        # Each is consumed by a credit of its own.
        consumed = 0
        while consumed < count:
            seen = until(lambda consumed=consumed: len(running.messages_of(call)) - consumed)
            for _ in range(seen):
                running.server.credit(call, 0)
            consumed += seen
        until(lambda: native.EVENT_HALF_CLOSE in running.events_of(call))
        assert len(running.messages_of(call)) == count
        assert held > 0
        until(lambda: running.server.stats().request_bytes == 0)
        running.server.finish(call, 0)
        assert client.code(1) == 0


def test_empty_messages_are_covered_by_the_credit_of_a_later_one() -> None:
    with served(stream_window_bytes=WINDOW) as running, raw(running.port) as client:
        messages = [b"", b"ab", b"", b"", b"cde", b""]
        client.send(open_call(1, STREAM), h2.data(1, b"".join(map(h2.message, messages))))
        (call,) = running.opened()
        until(lambda: len(running.messages_of(call)) == len(messages))
        assert running.server.stats().request_bytes == 6 * 64 + 5
        for credit, left in [(2, 4 * 64 + 3), (1, 4 * 64 + 3), (2, 64), (0, 0)]:
            running.server.credit(call, credit)
            until(lambda left=left: running.server.stats().request_bytes == left, f"{left} bytes after {credit}")
        running.server.finish(call, 0)


def test_streams_with_slow_handlers_do_not_stop_other_calls_of_their_connection() -> None:
    with served(stream_window_bytes=1 << 20) as running, channel_to(running.address) as channel:
        # Together more than the window of a connection.
        streams = 24
        stop = threading.Event()

        def requests() -> Any:
            for _ in range(40):
                yield b"y" * 100_000
            stop.wait(PATIENCE_S)

        calls = [channel.stream_stream(STREAM)(requests()) for _ in range(streams)]
        running.opened(streams)
        until(lambda: running.server.stats().request_bytes > streams * (1 << 20) * 1.6)
        assert call_unary(channel, b"z" * 500_000) == b"z" * 500_000
        assert running.server.stats().request_bytes <= streams * (2 * (1 << 20) + 300_000)
        for call in calls:
            call.cancel()
        stop.set()
        until(lambda: running.server.stats().request_bytes == 0)


def test_a_sender_is_told_to_wait_and_told_when_its_client_has_read() -> None:
    with served(stream_window_bytes=WINDOW) as running, raw(running.port, window=0) as client:
        client.send(open_call(1, STREAM), open_call(3, STREAM))
        slow, quick = running.opened(2)
        message = b"m" * 20_000
        told = [running.server.send_many([(slow, message)]) for _ in range(5)]
        # The first may be on its way already, and no longer queued.
        assert told in ([[], [], [], [], [slow]], [[], [], [], [slow], [slow]])
        assert running.server.send_many([(slow, b""), (slow, b""), (quick, b"little"), (404, b"nobody")]) == [slow]
        until(lambda: running.server.stats().reply_bytes > 5 * len(message))
        client.send(h2.window_update(3, 1_000))
        client.until(lambda: client.data.get(3) == h2.message(b"little"))
        assert native.EVENT_DRAINED not in running.events_of(slow)
        client.send(h2.window_update(1, 60_000))
        client.until(lambda: len(client.data.get(1, b"")) == 60_000)
        assert native.EVENT_DRAINED not in running.events_of(slow)
        client.send(h2.window_update(1, 1_000_000))
        until(lambda: native.EVENT_DRAINED in running.events_of(slow))
        assert running.events_of(slow) == [native.EVENT_OPEN, native.EVENT_DRAINED]
        assert running.events_of(quick) == [native.EVENT_OPEN]
        assert running.server.send_many([(slow, message)]) == []
        running.server.finish(slow, 0)
        running.server.finish(quick, 0)
        client.send(h2.data(1, b"", end=True), h2.data(3, b"", end=True))
        assert (client.code(1), client.code(3)) == (0, 0)
        until(lambda: running.server.stats().reply_bytes == 0)
        assert client.data[1] == h2.message(message) * 5 + h2.message(b"") * 2 + h2.message(message)


def test_a_big_reply_is_written_as_its_client_makes_room() -> None:
    with served() as running, raw(running.port, window=1_000) as client:
        payload = bytes(range(256)) * 2_000
        client.send(open_call(1), h2.data(1, h2.message(payload), end=True))
        while len(client.data.get(1, b"")) < len(payload) + 5:
            received = len(client.data.get(1, b""))
            client.send(h2.window_update(1, 50_000))
            client.until(lambda received=received: len(client.data.get(1, b"")) > received)
        assert client.code(1) == 0
        assert client.message(1) == (False, payload)


def test_a_server_stream_to_a_slow_reader_stays_within_its_mark() -> None:
    with served(stream_window_bytes=WINDOW) as running, channel_to(running.address) as channel:
        message = b"s" * 5_000
        total = 1_000
        stream = channel.unary_stream(STREAM)(b"", timeout=PATIENCE_S)
        (call,) = running.opened()
        sent = threading.Event()

        def send() -> None:
            for _ in range(total):
                if running.server.send_many([(call, message)]):
                    drained = running.events_of(call).count(native.EVENT_DRAINED)
                    most.append(running.server.stats().reply_bytes)
                    until(lambda drained=drained: running.events_of(call).count(native.EVENT_DRAINED) > drained)
            running.server.finish(call, 0)
            sent.set()

        most: list[int] = []
        thread = threading.Thread(target=send)
        thread.start()
        assert list(stream) == [message] * total
        assert sent.wait(PATIENCE_S)
        thread.join(PATIENCE_S)
        assert most, "the reader never held the sender back"
        # Its own queue, and what HTTP/2 has taken of it.
        assert max(most) <= WINDOW + 256 * 1024 + 4 * len(message)
