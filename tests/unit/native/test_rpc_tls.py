"""TLS on the native server: identity of clients, replacement of certificates, and what is turned away."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import flotta_native as native
import grpc
import pytest
from certificates import Authority, Pair
from rpc_harness import PATIENCE_S, UNARY, call_unary, channel_to, code_of, served, until


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server_pair(authority: Authority) -> Pair:
    return authority.sign("server")


def server_tls(pair: Pair, client_ca: Path | None = None) -> native.ServerTls:
    ca = client_ca.read_bytes() if client_ca is not None else None
    return native.ServerTls(pair.cert.read_bytes(), pair.key.read_bytes(), ca)


@contextmanager
def secure(port: int, ca: Path, pair: Pair | None = None) -> Iterator[grpc.Channel]:
    key, chain = (pair.key.read_bytes(), pair.cert.read_bytes()) if pair is not None else (None, None)
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key, chain)
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"localhost:{port}", credentials, options=options) as channel:
        yield channel


def test_calls_come_over_tls_without_a_name_where_none_is_asked_for(authority: Authority, server_pair: Pair) -> None:
    with served(tls=server_tls(server_pair)) as running, secure(running.port, authority.cert) as channel:
        big = b"x" * 3_000_000
        assert call_unary(channel, big) == big
        peer = running.unary[0][5]
        assert (peer.tls_common_name, peer.tls_sans) == (None, [])


def test_a_verified_client_is_known_by_its_names_and_others_are_turned_away(
    authority: Authority, server_pair: Pair, tmp_path: Path
) -> None:
    names = "DNS:node-7.local,IP:10.0.0.7,URI:spiffe://flotta/node-7"
    known, stranger = authority.sign("node-7", names), Authority(tmp_path, "other-ca").sign("stranger")
    with served(tls=server_tls(server_pair, authority.cert)) as running:
        with secure(running.port, authority.cert, known) as channel:
            assert call_unary(channel, b"x") == b"x"
            peer = running.unary[0][5]
            assert peer.tls_common_name == "node-7"
            assert peer.tls_sans == ["node-7.local", "10.0.0.7", "spiffe://flotta/node-7"]
        for pair in (None, stranger):
            with secure(running.port, authority.cert, pair) as channel:
                assert code_of(channel, b"")[0] == grpc.StatusCode.UNAVAILABLE
        assert len(running.unary) == 1
        until(lambda: "tls_failed" in {kind for kind, _, _ in running.server.notices()})


def test_a_replaced_certificate_is_shown_to_new_connections_and_old_ones_go_on(
    authority: Authority, server_pair: Pair, tmp_path: Path
) -> None:
    tls = server_tls(server_pair)
    other = Authority(tmp_path, "new-ca")
    fresh = other.sign("server")
    with served(tls=tls) as running, secure(running.port, authority.cert) as old:
        assert call_unary(old, b"1") == b"1"
        with pytest.raises(ValueError, match="not the key of"):
            tls.replace(fresh.cert.read_bytes(), server_pair.key.read_bytes())
        with secure(running.port, authority.cert) as still:
            assert call_unary(still, b"2") == b"2"
        tls.replace(fresh.cert.read_bytes(), fresh.key.read_bytes())
        with secure(running.port, other.cert) as new:
            assert call_unary(new, b"3") == b"3"
        with secure(running.port, authority.cert) as distrustful:
            assert code_of(distrustful, b"")[0] == grpc.StatusCode.UNAVAILABLE
        assert call_unary(old, b"4") == b"4"


def test_no_call_fails_while_certificates_are_replaced_under_load(authority: Authority, server_pair: Pair) -> None:
    tls = server_tls(server_pair, authority.cert)
    client = authority.sign("client")
    with served(tls=tls) as running:
        for turn in range(5):
            pair = authority.sign(f"server-{turn}")
            with secure(running.port, authority.cert, client) as channel:
                before = [channel.unary_unary(UNARY).future(b"x", timeout=PATIENCE_S) for _ in range(50)]
                tls.replace(pair.cert.read_bytes(), pair.key.read_bytes(), authority.cert.read_bytes())
                with secure(running.port, authority.cert, client) as another:
                    after = [another.unary_unary(UNARY).future(b"x", timeout=PATIENCE_S) for _ in range(50)]
                    assert {future.result() for future in before + after} == {b"x"}


def test_plain_text_silence_and_another_protocol_on_a_tls_port_are_counted(server_pair: Pair) -> None:
    with served(tls=server_tls(server_pair), stall_ms=300) as running:
        with channel_to(running.address) as channel:
            assert code_of(channel, b"")[0] == grpc.StatusCode.UNAVAILABLE
        failed = until(lambda: running.server.stats().failed_handshakes)
        with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE_S) as silent:
            assert silent.recv(1) == b""
        until(lambda: running.server.stats().failed_handshakes > failed)
        until(lambda: running.server.stats().connections == 0)


def test_pem_that_cannot_be_used_is_named(authority: Authority, server_pair: Pair, tmp_path: Path) -> None:
    cert, key = server_pair.cert.read_bytes(), server_pair.key.read_bytes()
    other = Authority(tmp_path).sign("other")
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    for arguments, wrong in [
        ((b"", key), "cert_pem holds no certificate"),
        ((cert, b"no key"), "key_pem cannot be read"),
        ((cert, other.key.read_bytes()), "key_pem is not the key of cert_pem"),
        ((cert, key, b""), "client_ca_pem holds no certificate"),
        ((cert, key, broken), "client_ca_pem cannot be used"),
    ]:
        with pytest.raises(ValueError, match=wrong):
            native.ServerTls(*arguments)
    ca = authority.cert.read_bytes()
    native.ClientTls(ca, cert, key, "localhost").replace(ca)
    for client_arguments, wrong in [
        ((b"",), "ca_pem holds no certificate"),
        ((ca, cert), "only together"),
        ((ca, cert, other.key.read_bytes()), "key_pem is not the key of cert_pem"),
        ((ca, None, None, "not a name"), "server_name"),
    ]:
        with pytest.raises(ValueError, match=wrong):
            native.ClientTls(*client_arguments)
