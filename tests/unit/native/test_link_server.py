"""Links on the port of a gRPC server: beside calls, over TLS, and where nobody speaks them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import flotta_native as native
import grpc
import pytest
from certificates import Authority
from native_links import PATIENCE_MS, End
from rpc_harness import call_unary, served


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def client_tls(authority: Authority, name: str = "") -> native.ClientTls:
    own = authority.sign(name) if name else None
    cert, key = (own.cert.read_bytes(), own.key.read_bytes()) if own else (None, None)
    return native.ClientTls(authority.cert.read_bytes(), cert, key)


def test_calls_and_links_share_a_port() -> None:
    server, client = End(), End()
    with served(links=server.hub) as running:
        link = client.hub.connect(running.address, "test", b"", timeout_ms=PATIENCE_MS)
        served_link = server.of(native.LINK_HELLO)[1]
        server.hub.accept(served_link, b"")
        client.of(native.LINK_UP, link)
        with grpc.insecure_channel(running.address) as channel:
            assert call_unary(channel, b"call") == b"call"
            client.hub.send_many([(link, b"frame")])
            assert server.frames(served_link, 1) == [b"frame"]


def test_links_over_tls_carry_everything_and_know_the_names_of_the_client(authority: Authority) -> None:
    pair = authority.sign("server")
    tls = native.ServerTls(pair.cert.read_bytes(), pair.key.read_bytes(), authority.cert.read_bytes())
    server, client = End(), End()
    with served(links=server.hub, tls=tls) as running:
        address = f"localhost:{running.port}"
        named = client_tls(authority, "node-7")
        link = client.hub.connect(address, "test", b"", timeout_ms=PATIENCE_MS, tls=named)
        _, served_link, data = server.of(native.LINK_HELLO)
        assert isinstance(data, tuple)
        assert data[2].tls_common_name == "node-7"
        server.hub.accept(served_link, b"")
        client.of(native.LINK_UP, link)
        sent = [os.urandom(size) for size in (5 << 20, 1, 0, 100_000)] + [b"%d" % number for number in range(1000)]
        client.hub.send_many([(link, frame) for frame in sent])
        assert server.frames(served_link, len(sent)) == sent
        server.hub.send_many([(served_link, frame) for frame in sent])
        assert client.frames(link, len(sent)) == sent
        client.hub.close(link, "done")
        assert server.down(served_link) == "the peer closed it: done"
        unnamed = client.hub.connect(address, "test", b"", timeout_ms=PATIENCE_MS, tls=client_tls(authority))
        assert client.down(unnamed) == "the connection broke: received fatal alert: CertificateRequired"
        assert not server.hub.poll()


def test_a_server_with_a_wrong_name_or_authority_is_not_spoken_to(authority: Authority, tmp_path: Path) -> None:
    pair = authority.sign("server")
    server, client = End(), End()
    with served(links=server.hub, tls=native.ServerTls(pair.cert.read_bytes(), pair.key.read_bytes())) as running:
        address = f"localhost:{running.port}"
        strange = client_tls(Authority(tmp_path, "other-ca"))
        link = client.hub.connect(address, "test", b"", timeout_ms=PATIENCE_MS, tls=strange)
        assert "cannot be reached: invalid peer certificate" in client.down(link)
        elsewhere = native.ClientTls(authority.cert.read_bytes(), server_name="elsewhere.example")
        link = client.hub.connect(address, "test", b"", timeout_ms=PATIENCE_MS, tls=elsewhere)
        assert "cannot be reached: invalid peer certificate" in client.down(link)
        assert not server.hub.poll()


@contextmanager
def python_server(credentials: grpc.ServerCredentials | None = None) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(1))
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def test_a_plain_grpc_server_does_not_speak_links(authority: Authority) -> None:
    client = End()
    with served() as running:
        link = client.hub.connect(running.address, "test", b"", timeout_ms=PATIENCE_MS)
        assert client.down(link) == native.LINK_NOT_SPOKEN
    with python_server() as port:
        link = client.hub.connect(f"127.0.0.1:{port}", "test", b"", timeout_ms=PATIENCE_MS)
        assert client.down(link) == native.LINK_NOT_SPOKEN
    pair = authority.sign("server")
    with python_server(grpc.ssl_server_credentials([(pair.key.read_bytes(), pair.cert.read_bytes())])) as port:
        address, tls = f"localhost:{port}", client_tls(authority)
        link = client.hub.connect(address, "test", b"", timeout_ms=PATIENCE_MS, tls=tls)
        assert client.down(link) == native.LINK_NOT_SPOKEN
