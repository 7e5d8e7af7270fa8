"""Links between two hubs of one process: handshake, order, bounds, and every way a link can end."""

import contextlib
import os
import select
import socket
import struct
import time
from pathlib import Path

import flotta_native as native
import pytest
from native_links import BYE, DATA, PATIENCE_MS, PATIENCE_S, PING, PONG, End, HalfOpen, Pair, framed, hello


def test_hello_and_greeting_travel_and_frames_keep_their_order() -> None:
    server, client = End(), End()
    port = server.hub.listen("127.0.0.1:0")
    link = client.hub.connect(f"localhost:{port}", "requests", b"who I am", timeout_ms=PATIENCE_MS)
    assert client.hub.send_many([(link, b"too early")]) == [link]
    _, served, data = server.of(native.LINK_HELLO)
    assert isinstance(data, tuple)
    purpose, opaque, peer = data
    assert (purpose, opaque, peer.tls_common_name, peer.tls_sans) == ("requests", b"who I am", None, [])
    assert peer.address.startswith("ipv4:127.0.0.1:")
    assert server.hub.send_many([(served, b"too early")]) == [served]
    server.hub.accept(served, b"welcome")
    assert client.of(native.LINK_UP, link)[2] == b"welcome"
    sent = [b"%d" % number for number in range(1000)]
    assert client.hub.send_many([(link, frame) for frame in sent]) == []
    assert server.frames(served, 1000) == sent
    assert server.hub.send_many([(served, frame) for frame in reversed(sent)]) == []
    assert client.frames(link, 1000) == sent[::-1]
    stats = client.hub.stats()
    assert (stats.links, stats.frames_in, stats.frames_out, stats.not_taken) == (1, 1000, 1000, 1)
    assert stats.bytes_out == server.hub.stats().bytes_in


def test_links_travel_over_unix_sockets(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "links"))
        listener.listen()
        client = End()
        client.hub.connect(f"unix:{tmp_path}/links", "test", b"", timeout_ms=PATIENCE_MS)
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(PATIENCE_S)
            assert accepted.recv(len(hello()), socket.MSG_WAITALL) == hello()
            accepted.sendall(framed(2, b"welcome"))
            assert client.of(native.LINK_UP)[2] == b"welcome"


def test_a_refusal_says_why_and_the_link_is_gone() -> None:
    server, client = End(), End()
    address = f"127.0.0.1:{server.hub.listen('127.0.0.1:0')}"
    link = client.hub.connect(address, "test", b"", timeout_ms=PATIENCE_MS)
    served = server.of(native.LINK_HELLO)[1]
    server.hub.refuse(served, "wrong cluster")
    server.hub.accept(served, b"changed my mind")
    assert client.of(native.LINK_REFUSED, link)[2] == "wrong cluster"
    assert client.down(link) == "refused: wrong cluster"
    assert server.down(served) == "refused: wrong cluster"
    assert client.hub.stats().links == server.hub.stats().links == 0
    assert link != client.hub.connect(address, "test", b"", timeout_ms=PATIENCE_MS)


def test_nobody_listens_nobody_answers_nobody_is_called_that() -> None:
    client = End()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        link = client.hub.connect(f"127.0.0.1:{port}", "test", b"", timeout_ms=PATIENCE_MS)
        assert "cannot be reached" in client.down(link)
        silent.listen()
        link = client.hub.connect(f"127.0.0.1:{port}", "test", b"", timeout_ms=500)
        assert client.down(link) == "nobody accepted it in time"
    link = client.hub.connect("no port", "test", b"", timeout_ms=PATIENCE_MS)
    assert "cannot be reached" in client.down(link)


@pytest.mark.parametrize("answer", [b"", b"\0\0\x06\4\0\0\0\0\0" + bytes(6), b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_who_does_not_speak_links_is_called_that(answer: bytes) -> None:
    client = End()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        link = client.hub.connect(address, "test", b"", timeout_ms=PATIENCE_MS)
        stranger, _ = listener.accept()
        with stranger:
            stranger.sendall(answer)
        assert client.down(link) == native.LINK_NOT_SPOKEN


def test_a_hello_that_nobody_answers_is_given_up_on_both_sides() -> None:
    server, client = End(native.LinkHub(hello_timeout_ms=500)), End()
    address = f"127.0.0.1:{server.hub.listen('127.0.0.1:0')}"
    link = client.hub.connect(address, "test", b"", timeout_ms=PATIENCE_MS)
    served = server.of(native.LINK_HELLO)[1]
    assert server.down(served) == "it was not answered in time"
    assert client.down(link) == "the peer closed it: it was not answered in time"
    server.hub.accept(served, b"late")


@pytest.mark.parametrize("said", [b"", b"FLOTTA", b"GET / HTTP/1.1\r\n\r\n", b"FLOTTA/1\n" + framed(DATA, b"x")])
def test_who_says_no_proper_hello_is_turned_away_and_nobody_is_told(said: bytes) -> None:
    server = End(native.LinkHub(hello_timeout_ms=50))
    with socket.create_connection(("127.0.0.1", server.hub.listen("127.0.0.1:0")), PATIENCE_S) as stranger:
        stranger.sendall(said)
        stranger.settimeout(PATIENCE_S)
        with contextlib.suppress(ConnectionResetError):  # what it said was not read to its end
            assert stranger.recv(1) == b""
    deadline = time.monotonic() + PATIENCE_S
    while (server.hub.stats().turned_away, server.hub.stats().links) != (1, 0):
        assert time.monotonic() < deadline, server.hub.stats()
        time.sleep(0.005)
    assert server.hub.poll() == []


def test_links_over_the_bound_are_turned_away_on_either_side() -> None:
    pair = Pair(native.LinkHub(connections_max=1), native.LinkHub(connections_max=1))
    second = pair.client.hub.connect(pair.address, "test", b"", timeout_ms=PATIENCE_MS)
    assert pair.client.down(second) == "there are too many links"
    other = End()
    third = other.hub.connect(pair.address, "test", b"", timeout_ms=PATIENCE_MS)
    assert other.of(native.LINK_REFUSED, third)[2] == "there are too many links"
    assert other.down(third) == "refused: there are too many links"
    assert pair.server.hub.stats().turned_away == 1
    assert pair.client.hub.send_many([(pair.link, b"still fine")]) == []
    assert pair.server.frames(pair.served, 1) == [b"still fine"]


def test_big_frames_and_small_ones_arrive_whole() -> None:
    pair = Pair(native.LinkHub(frame_bytes_max=20 << 20), native.LinkHub(frame_bytes_max=20 << 20))
    sent = [os.urandom(size) for size in (20 << 20, 0, 1, 16 << 10, 16385, 3 << 20, 100)]
    assert pair.client.hub.send_many([(pair.link, frame) for frame in sent]) == []
    assert pair.server.frames(pair.served, len(sent)) == sent
    assert pair.client.hub.send_many([(pair.link, bytes((20 << 20) + 1)), (pair.link, b"next")]) == [pair.link]
    assert pair.server.frames(pair.served, 1) == [b"next"]


def test_a_frame_over_the_readers_bound_ends_the_link() -> None:
    pair = Pair(None, native.LinkHub(frame_bytes_max=1000))
    pair.client.hub.send_many([(pair.link, bytes(1001))])
    assert pair.server.down(pair.served) == "the peer broke the protocol: a Data frame of 1001 bytes, allowed are 1000"
    assert pair.client.down(pair.link).startswith("the peer closed it: the peer broke the protocol")


def test_a_reader_that_stops_is_not_read_for_and_loses_nothing() -> None:
    pair = Pair(native.LinkHub(unsent_bytes_max=1 << 20), native.LinkHub(unread_bytes_max=1 << 20))
    number = taken = 0
    refused_at = None
    deadline = time.monotonic() + PATIENCE_S
    # The kernel's buffers fill first; once they are full, what the sender holds no longer shrinks.
    while refused_at is None or time.monotonic() < refused_at + 0.2:
        assert time.monotonic() < deadline
        frame = struct.pack("<I", number) + bytes(60_000)
        if pair.client.hub.send_many([(pair.link, frame)]):
            refused_at = refused_at or time.monotonic()
            time.sleep(0.01)
        else:
            refused_at = None
            number += 1
    assert pair.client.hub.unsent_bytes(pair.link) > (1 << 20) - 61_000
    read_bytes = pair.server.hub.stats().bytes_in
    assert read_bytes < 3 << 20
    while taken < number:
        (frame,) = pair.server.frames(pair.served, 1)
        assert struct.unpack_from("<I", frame) == (taken,)
        taken += 1
    assert pair.client.hub.send_many([(pair.link, b"on we go")]) == []
    assert pair.server.frames(pair.served, 1) == [b"on we go"]


def test_closing_writes_what_was_taken_and_tells_the_peer_why() -> None:
    pair = Pair()
    sent = [os.urandom(1 << 20) for _ in range(20)]
    assert pair.client.hub.send_many([(pair.link, frame) for frame in sent]) == []
    pair.client.hub.close(pair.link, "that is all")
    pair.client.hub.close(pair.link, "another reason")
    assert pair.client.hub.send_many([(pair.link, b"late")]) == [pair.link]
    assert pair.server.frames(pair.served, 20) == sent
    assert pair.server.down(pair.served) == "the peer closed it: that is all"
    assert pair.client.down(pair.link) == "that is all"
    assert pair.client.hub.unsent_bytes(pair.link) == 0
    pair.client.hub.close(pair.link, "gone")


def test_closing_towards_a_peer_that_reads_nothing_ends_in_time() -> None:
    pair = Pair(native.LinkHub(keepalive_timeout_ms=100), native.LinkHub(unread_bytes_max=1))
    pair.client.hub.send_many([(pair.link, bytes(30 << 20))])
    pair.client.hub.send_many([(pair.link, bytes(30 << 20))])
    pair.client.hub.close(pair.link, "enough")
    assert pair.client.down(pair.link) == "enough"


def test_a_link_that_is_closed_before_it_was_accepted_is_down_at_once() -> None:
    server, client = End(), End()
    address = f"127.0.0.1:{server.hub.listen('127.0.0.1:0')}"
    link = client.hub.connect(address, "test", b"", timeout_ms=PATIENCE_MS)
    client.hub.close(link, "no need")
    assert client.down(link) == "no need"


def test_a_hub_that_goes_takes_its_links_along() -> None:
    pair = Pair()
    link, other = pair.served, End()
    outgoing = other.hub.connect(pair.address, "test", b"", timeout_ms=PATIENCE_MS)
    pair.server.hub.accept(pair.server.of(native.LINK_HELLO)[1], b"")
    other.of(native.LINK_UP, outgoing)
    pair.client.hub.shut_down()
    pair.client.hub.shut_down()
    assert pair.server.down(link) == "the peer closed it: the process is ending"
    assert pair.client.hub.poll() == []
    late = pair.client.hub.connect(pair.address, "test", b"", timeout_ms=PATIENCE_MS)
    assert pair.client.hub.send_many([(late, b"x")]) == [late]
    assert other.hub.send_many([(outgoing, b"not me")]) == []


def test_a_peer_that_says_nothing_is_asked_and_then_given_up() -> None:
    client = End(native.LinkHub(keepalive_ms=50, keepalive_timeout_ms=50))
    peer = HalfOpen(client)
    with peer.socket:
        reason = client.down(peer.link)
        assert reason.startswith("the peer said nothing for ")
        assert peer.read(5) == framed(PING)


def test_a_peer_that_answers_pings_stays_and_pings_are_answered() -> None:
    client = End(native.LinkHub(keepalive_ms=20, keepalive_timeout_ms=PATIENCE_MS))
    peer = HalfOpen(client)
    with peer.socket:
        for _ in range(3):
            assert peer.read(5) == framed(PING)
            peer.socket.sendall(framed(PONG))
        peer.socket.sendall(framed(PING))
        while peer.read(5) != framed(PONG):
            pass
        peer.socket.sendall(framed(DATA, b"here"))
        assert client.frames(peer.link, 1) == [b"here"]


def test_a_peer_that_takes_nothing_is_given_up() -> None:
    # Time enough to copy what is sent, and for the test to get its turn: it must not fall silent itself.
    client = End(native.LinkHub(keepalive_ms=750, keepalive_timeout_ms=750))
    peer = HalfOpen(client)
    with peer.socket:
        client.hub.send_many([(peer.link, bytes(60 << 20))])
        peer.socket.setblocking(False)
        deadline = time.monotonic() + PATIENCE_S
        # It says something all the time and reads nothing.
        while not [event for event in client.events if event[0] == native.LINK_DOWN]:
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError):  # it is being given up, or has been
                peer.socket.sendall(framed(PONG))
            if select.select([client.hub.notify_fd()], [], [], 0.01)[0]:
                client.events += client.hub.poll()
        assert client.down(peer.link) == "the peer took nothing for 1500 ms"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (framed(BYE, b"maintenance"), "the peer closed it: maintenance"),
        (framed(9), "the peer broke the protocol: 9 is no kind of frame"),
        (framed(2), "the peer broke the protocol: Accept while Up"),
        (framed(5, bytes(8)), "the peer broke the protocol: Raft while Up"),
        (framed(DATA, b"first")[:7], "the peer went away"),
    ],
)
def test_every_end_says_why(said: bytes, reason: str) -> None:
    client = End()
    peer = HalfOpen(client)
    with peer.socket:
        peer.socket.sendall(framed(DATA, b"before") + said)
        peer.socket.shutdown(socket.SHUT_WR)
        assert client.frames(peer.link, 1) == [b"before"]
        assert client.down(peer.link) == reason


def test_options_and_arguments_out_of_bounds_are_named() -> None:
    with pytest.raises(ValueError, match="keepalive_ms is 0"):
        native.LinkHub(keepalive_ms=0)
    client = End()
    with pytest.raises(ValueError, match="purpose has 256 bytes"):
        client.hub.connect("127.0.0.1:1", "p" * 256, b"", timeout_ms=1)
    with pytest.raises(ValueError, match="hello has 65537 bytes"):
        client.hub.connect("127.0.0.1:1", "p", bytes(65537), timeout_ms=1)
    with pytest.raises(OSError, match="999"):
        client.hub.listen("999.1.1.1:1")
