"""Bounds: calls, bytes, connections, streams, metadata, resets; what is over them is refused early and counted."""

from __future__ import annotations

import gzip
import socket

import flotta_native as native
import grpc
import raw_http2 as h2
from rpc_harness import PATIENCE_S, STREAM, UNARY, Served, call_unary, channel_to, code_of, served, until
from rpc_raw import Raw, open_call, raw

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def unary(stream: int, payload: bytes = b"") -> bytes:
    return open_call(stream) + h2.data(stream, h2.message(payload), end=True)


def kinds(running: Served) -> set[str]:
    return {kind for kind, _, _ in running.server.notices()}


def test_calls_over_the_cap_are_refused_at_once_and_there_is_room_again() -> None:
    with served(echo=False, calls_max=5) as running, channel_to(running.address) as channel:
        futures = [channel.unary_unary(UNARY).future(b"%d" % n, timeout=PATIENCE_S) for n in range(4)]
        stream = channel.stream_stream(STREAM)(iter([]), timeout=PATIENCE_S)
        running.opened()
        until(lambda: len(running.unary) == 4)
        for path in (UNARY, STREAM):
            assert code_of(channel, b"", path) == (EXHAUSTED, "too many calls are in flight")
        stats = running.server.stats()
        assert (stats.calls, stats.refused_calls) == (5, 2)
        assert running.server.notices()[0][0] == "too_many_calls"
        running.server.reply_many([(call[0], call[2]) for call in running.unary])
        assert [future.result() for future in futures] == [b"0", b"1", b"2", b"3"]
        running.on_unary = lambda call: (call[0], call[2])
        assert call_unary(channel, b"again") == b"again"
        stream.cancel()
        until(lambda: running.server.stats().calls == 0)


def test_bytes_of_requests_in_work_are_bounded_over_all_connections() -> None:
    with served(echo=False, request_bytes_max=100_000) as running, raw(running.port) as one, raw(running.port) as other:
        one.send(unary(1, b"a" * 60_000))
        until(lambda: len(running.unary) == 1)
        assert running.server.stats().request_bytes == 60_000
        # Also of messages that are not whole yet, and of streams.
        other.send(unary(1, b"b" * 60_000))
        assert other.code(1) == EXHAUSTED.value[0]
        other.send(open_call(3, STREAM), h2.data(3, h2.message(b"", claimed_bytes=90_000) + b"c" * 50_000))
        assert other.code(3) == EXHAUSTED.value[0]
        other.send(h2.data(3, b"", end=True), unary(5, b"d" * 30_000))
        until(lambda: len(running.unary) == 2)
        assert running.server.stats().refused_request_bytes == 2
        running.server.reply_many([(call[0], b"") for call in running.unary])
        assert (one.code(1), other.code(5)) == (0, 0)
        until(lambda: running.server.stats().request_bytes == 0)
        until(lambda: any(event[0] == native.EVENT_CANCELLED for event in running.events))
        assert sum(event[0] == native.EVENT_CANCELLED for event in running.events) == 1


def test_unpacked_bytes_count_too() -> None:
    with served(echo=False, request_bytes_max=100_000) as running, raw(running.port) as client:
        packed = gzip.compress(bytes(150_000))
        body = h2.data(1, h2.message(packed, compressed=True), end=True)
        client.send(open_call(1, grpc_encoding="gzip"), body)
        assert client.code(1) == EXHAUSTED.value[0]
        until(lambda: running.server.stats().request_bytes == 0)


def test_connections_over_the_cap_are_closed() -> None:
    with served(connections_max=2) as running:
        with raw(running.port) as one, raw(running.port) as two:
            for client in (one, two):
                client.send(unary(1))
                assert client.code(1) == 0
            with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE_S) as third:
                assert third.recv(1) == b""
            assert running.server.stats().refused_connections == 1
            assert "too_many_connections" in kinds(running)
        until(lambda: running.server.stats().connections == 0)
        with channel_to(running.address) as channel:
            assert call_unary(channel, b"x") == b"x"


def test_streams_of_a_connection_are_advertised_and_more_are_refused() -> None:
    with served(echo=False, streams_per_connection_max=3) as running, raw(running.port) as client:
        client.until(lambda: client.settings.get(h2.MAX_CONCURRENT_STREAMS) == 3)
        client.send(*(unary(stream) for stream in (1, 3, 5, 7)))
        client.until(lambda: client.resets.get(7) == "REFUSED_STREAM")
        until(lambda: len(running.unary) == 3)
        running.server.reply_many([(call[0], b"") for call in running.unary])
        assert [client.code(stream) for stream in (1, 3, 5)] == [0, 0, 0]
        client.send(unary(9))
        until(lambda: len(running.unary) == 4)


def test_too_much_metadata_is_refused_by_gRPC_and_far_too_much_by_HTTP() -> None:
    with served(metadata_bytes_max=8_192) as running, raw(running.port) as client:
        client.send(open_call(1, x="y" * 9_000), h2.data(1, h2.message(b""), end=True))
        assert client.code(1) == EXHAUSTED.value[0]
        block = h2.call_headers(UNARY, x="y" * 40_000)
        pieces = [block[at : at + 10_000] for at in range(0, len(block), 10_000)]
        last = len(pieces) - 1
        frames = [
            h2.frame(h2.CONTINUATION if n else h2.HEADERS, h2.END_HEADERS if n == last else 0, 3, piece)
            for n, piece in enumerate(pieces)
        ]
        client.send(*frames, h2.data(3, h2.message(b""), end=True))
        assert client.answer(3)[":status"] == "431"
        client.send(open_call(5, x="y" * 7_000), h2.data(5, h2.message(b""), end=True))
        assert client.code(5) == 0
        assert len(running.unary) == 1


def test_a_burst_of_cancels_is_no_attack() -> None:
    """h2's own bounds ended such connections."""
    with served(echo=False) as running, channel_to(running.address) as channel:
        for _ in range(3):
            futures = [channel.unary_unary(UNARY).future(b"x") for _ in range(900)]
            until(lambda: running.server.stats().calls == 900)
            for future in futures:
                future.cancel()
            until(lambda: running.server.stats().calls == 0)
        until(lambda: running.ended and set(running.ended) == {call[0] for call in running.unary})
        running.on_unary = lambda call: (call[0], call[2])
        assert call_unary(channel, b"alive") == b"alive"
        stats = running.server.stats()
        assert (stats.connections_total, stats.resets) == (1, 2_700)
        until(lambda: running.server.stats().calls == 0)
        assert not kinds(running)


def test_calls_cancelled_before_they_are_looked_at_are_no_attack_either() -> None:
    with served() as running, raw(running.port) as client:
        flood(client, 1, 2_000)
        client.send(unary(4_001))
        assert client.code(4_001) == 0
        assert client.goaways == []
        until(lambda: running.server.stats().calls == 0)
        assert not kinds(running)


def flood(client: Raw, first: int, count: int) -> None:
    """Open and reset, as fast as they are taken."""
    headers = h2.call_headers(UNARY)
    streams = range(first, first + 2 * count, 2)
    client.send(*(h2.frame(h2.HEADERS, h2.END_HEADERS, stream, headers) + h2.reset(stream) for stream in streams))


def test_a_flood_of_resets_ends_its_connection_and_no_other() -> None:
    with served(resets_per_second_max=200) as running, channel_to(running.address) as quiet:
        assert call_unary(quiet, b"x") == b"x"
        with raw(running.port) as client:
            flood(client, 1, 20_000)
            client.until(lambda: client.closed, "the end of the connection")
            assert client.goaways[-1][1] == "ENHANCE_YOUR_CALM"
        assert call_unary(quiet, b"y") == b"y"
        stats = running.server.stats()
        assert stats.reset_floods + stats.frame_floods == 1
        assert stats.resets < 5_000
        assert kinds(running) & {"reset_flood", "frame_flood"}
        until(lambda: running.server.stats().calls == 0)


def test_a_long_life_of_stray_frames_does_not_end_a_connection() -> None:
    """Frames for streams that are over are answered one by one; h2's own bound is over the life of a connection."""
    with served(message_bytes_max=10) as running, raw(running.port) as client:
        for stream in range(1, 3_001, 2):
            client.send(open_call(stream), h2.data(stream, h2.message(b"", claimed_bytes=11)), h2.reset(stream))
            client.send(h2.data(stream, b"stray", end=True))
        client.send(unary(3_001))
        assert client.code(3_001) == 0
        assert client.goaways == []
