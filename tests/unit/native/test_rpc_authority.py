"""A target that is no host, in `:authority`: what grpc's channels send for several addresses, or for a path."""

from __future__ import annotations

import hpack
import pytest
import raw_http2 as h2
from rpc_harness import UNARY, call_unary, channel_to, served
from rpc_raw import raw

ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'


def test_a_channel_to_several_addresses_calls_them_all() -> None:
    with served() as one, served() as other:
        target = f"ipv4:{one.address},{other.address}"
        with channel_to(target, grpc__service_config=ROUND_ROBIN) as channel:
            while not (one.unary and other.unary):
                assert call_unary(channel, b"x" * 100) == b"x" * 100
            # The headers of later calls name what the first ones said.
            for n in range(200):
                assert call_unary(channel, b"%d" % n, metadata=[("x", f"{n % 7}")]) == b"%d" % n
        assert one.server.stats().connections_total == other.server.stats().connections_total == 1


@pytest.mark.parametrize("authority", ["", "a,b", "/run/x.sock", "%2Frun%2Fx.sock", "[::1]:1,[::1]:2", "a b", "ü"])
def test_every_client_may_write_what_it_likes(authority: str) -> None:
    with served() as running, raw(running.port) as client:
        client.send(
            h2.call(1, h2.call_headers(UNARY, authority), b"plain"),
            h2.call(3, h2.call_headers(UNARY, "kv.example.com:7000"), b"other"),
        )
        assert client.code(3) == 0
        assert running.unary[-1][2] == b"other"
        if authority not in ("", "ü"):
            assert (client.code(1), running.unary[0][2]) == (0, b"plain")


def test_the_table_of_headers_stays_in_step() -> None:
    """What is written first is named by its index later, and evicts as much as the client thinks."""
    encoder = hpack.Encoder()
    with served() as running, raw(running.port) as client:
        for stream in range(1, 200, 2):
            fields = [
                *((":method", "POST"), (":scheme", "http"), (":path", UNARY), ("te", "trailers")),
                (":authority", "10.0.0.1:7000,10.0.0.2:7000" if stream % 6 else "x" * (stream % 50)),
                *(("content-type", "application/grpc"), ("x-number", "n" * (stream % 90) + f"{stream}")),
            ]
            fields.sort(key=lambda field: field[0][0] != ":")
            block = encoder.encode(fields, huffman=False)
            client.send(h2.frame(h2.HEADERS, h2.END_HEADERS, stream, block))
            client.send(h2.data(stream, h2.message(b"%d" % stream), end=True))
            assert client.code(stream) == 0
            metadata = dict(running.unary[-1][3] or ())
            assert metadata["x-number"] == "n" * (stream % 90) + f"{stream}"


def test_a_host_in_huffmans_code_is_taken_and_several_are_not() -> None:
    """What remains, as docs/operations.md says."""
    with served() as running, raw(running.port) as client:
        for stream, authority in ((1, "kv.example.com:7000"), (3, "10.0.0.1:7000,10.0.0.2:7000")):
            head = h2.call_headers(UNARY, "").replace(h2.literal(":authority", ""), b"")
            block = h2.literal(":method", "POST")
            packed = hpack.Encoder().encode([(":authority", authority)], huffman=True)
            assert block in head
            head = head.replace(block, block + packed, 1)
            client.send(h2.call(stream, head, b"x"))
        assert client.code(1) == 0
        client.until(lambda: client.resets.get(3) == "PROTOCOL_ERROR")
