"""Frames that move no call on: as many as calls need are taken, a flood of them ends its connection and no other."""

from __future__ import annotations

import threading

import pytest
import raw_http2 as h2
from rpc_harness import STREAM, UNARY, call_unary, channel_to, served, until
from rpc_raw import open_call, raw

FLOODS = {
    "pings": h2.frame(h2.PING, 0, 0, bytes(8)),
    "settings": h2.settings((h2.INITIAL_WINDOW_SIZE, 65_535)),
    "priorities": h2.frame(h2.PRIORITY, 0, 1, bytes(4) + b"\x10"),
    "windows": h2.window_update(1, 1),
    "unknown": h2.frame(0xEE, 0, 0, b"what"),
}


def unary(stream: int) -> bytes:
    return open_call(stream) + h2.data(stream, h2.message(b"x"), end=True)


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_frames_that_carry_nothing_ends_its_connection_and_no_other(kind: str) -> None:
    with served() as running, channel_to(running.address) as quiet:
        assert call_unary(quiet, b"x") == b"x"
        with raw(running.port, window=65_535) as client:
            client.send(open_call(1, STREAM))
            flood = FLOODS[kind] * 1_000
            while not client.closed:
                client.send(flood)
            assert not client.goaways or client.goaways[-1][1] == "ENHANCE_YOUR_CALM"
        assert call_unary(quiet, b"y") == b"y"
        assert running.server.stats().frame_floods == 1
        assert [notice[0] for notice in running.server.notices()] == ["frame_flood"]


def test_streams_beyond_the_limit_are_refused_and_a_flood_of_them_is_cut() -> None:
    with served(echo=False, streams_per_connection_max=2) as running, raw(running.port) as client:
        headers = h2.call_headers(UNARY)
        for first in range(1, 1 << 24, 2_000):
            streams = range(first, first + 2_000, 2)
            client.send(*(h2.frame(h2.HEADERS, h2.END_HEADERS, stream, headers) for stream in streams))
            if client.closed:
                break
        assert client.closed
        until(lambda: running.server.stats().calls == 0)
        assert running.server.stats().frame_floods == 1


def test_a_turn_of_one_connection_ends_though_more_could_be_read() -> None:
    """Frames come without end for as long as the quiet client needs."""
    with served(idle_frames_per_second_max=1 << 30) as running, channel_to(running.address) as quiet:
        over = threading.Event()

        def flood() -> None:
            with raw(running.port, window=65_535) as client:
                client.send(open_call(1, STREAM))
                while not over.is_set():
                    client.send(FLOODS["windows"] * 1_000)
                assert not client.closed

        threads = [threading.Thread(target=flood) for _ in range(4)]
        for thread in threads:
            thread.start()
        for n in range(50):
            assert call_unary(quiet, b"%d" % n) == b"%d" % n
        over.set()
        for thread in threads:
            thread.join()
        assert running.server.stats().frame_floods == 0


def test_busy_connections_are_no_flood() -> None:
    """Every call with all the frames that an eager client may send for it, and far more calls than the bound."""
    with served(idle_frames_per_second_max=2_000) as running, raw(running.port, window=65_535) as client:
        for stream in range(1, 4_001, 2):
            extra = 2 * h2.window_update(stream, 1) + FLOODS["priorities"]
            client.send(open_call(stream), extra, h2.data(stream, h2.message(b"x")), h2.data(stream, b"", end=True))
        client.until(lambda: len(client.ended) == 2_000)
        assert not client.goaways
        assert running.server.stats().frame_floods == 0


def test_data_is_no_flood_however_small_the_pieces() -> None:
    with served(idle_frames_per_second_max=100) as running, raw(running.port) as client:
        body = h2.message(b"x" * 20_000)
        pieces = [h2.frame(h2.DATA, 0, 1, body[at : at + 1]) for at in range(len(body))]
        client.send(open_call(1), *pieces, h2.data(1, b"", end=True))
        assert client.code(1) == 0
        assert running.unary[0][2] == body[5:]
