"""TLS files: what is wrong with them is named, replacements are followed, bad ones change nothing."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any, ClassVar

import grpc
import grpc.aio
import httpx
import pytest
from certificates import Authority, Pair, replace
from flotta_proto.kvdb import kvstore_pb2, kvstore_pb2_grpc
from flotta_runtime.errors import StartupError
from flotta_runtime.http import HttpServer, status_app
from flotta_runtime.metrics import Metrics
from flotta_runtime.server import GrpcServer, build_server, channel
from flotta_runtime.settings import GrpcSettings, SettingsError, Transport, load_settings
from flotta_runtime.tls import Tls, TlsError, TlsFiles, client_tls, hint
from flotta_runtime.tls_watch import follow_files
from pydantic import SecretStr


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger-ca")


@pytest.fixture(params=["grpcio", "native"])
def transport(request: pytest.FixtureRequest) -> Transport:
    chosen: Transport = request.param
    return chosen


@pytest.fixture
def pair(authority: Authority, tmp_path: Path) -> Pair:
    """A pair of this test's own, which it may replace."""
    made = authority.sign("server")
    own = Pair(tmp_path / "server.pem", tmp_path / "server.key")
    replace(own, made)
    return own


# --- what is wrong is named -----------------------------------------------------------------------------------------


def test_each_wrong_file_is_named_with_its_setting(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    other, text = authority.sign("other"), tmp_path / "text"
    text.write_text("no certificate")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    locked = tmp_path / "locked.key"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n-----END ENCRYPTED PRIVATE KEY-----\n")
    absent = tmp_path / "absent"
    wrong = {
        TlsFiles(absent, pair.key): f"tls_cert_file {absent} cannot be read: No such file",
        TlsFiles(pair.cert, absent): f"tls_key_file {absent} cannot be read: No such file",
        TlsFiles(pair.cert, pair.key, absent): f"tls_client_ca_file {absent} cannot be read",
        TlsFiles(ca_file=absent): f"tls_ca_file {absent} cannot be read",
        TlsFiles(ca_file=tmp_path): f"tls_ca_file {tmp_path} cannot be read: Is a directory",
        TlsFiles(text, pair.key): f"tls_cert_file {text} holds no certificate in PEM form",
        TlsFiles(pair.cert, text): f"tls_key_file {text} holds no private key in PEM form",
        TlsFiles(pair.cert, locked): f"tls_key_file {locked} is protected by a passphrase",
        TlsFiles(ca_file=broken): f"tls_ca_file {broken} cannot be used",
        TlsFiles(broken, pair.key): f"tls_cert_file {broken} and tls_key_file {pair.key} cannot be used",
        TlsFiles(pair.cert, other.key): f"tls_key_file {other.key} is not the key of tls_cert_file {pair.cert}",
        TlsFiles(cert_file=pair.cert): "tls_key_file is missing",
        TlsFiles(key_file=pair.key): "tls_cert_file is missing",
        TlsFiles(client_ca_file=authority.cert): "tls_cert_file is missing",
        TlsFiles(server_name="x"): "tls_ca_file is missing",
    }
    for files, sentence in wrong.items():
        with pytest.raises(TlsError) as caught:
            Tls(files)
        assert sentence in str(caught.value)


def test_a_client_that_would_speak_in_the_clear_is_refused(pair: Pair) -> None:
    assert client_tls(None) is None
    assert client_tls(TlsFiles()) is None
    with pytest.raises(TlsError, match="tls_ca_file is missing"):
        client_tls(TlsFiles(pair.cert, pair.key))


class Demo(GrpcSettings):
    """A service for tests."""

    service: ClassVar[str] = "tlsdemo"


def test_wrong_files_are_wrong_settings(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    environ = {"KVDB_INTERNAL_GRPC_TOKEN": "t", "FLOTTA_TLS_CA_FILE": ""}
    assert load_settings(Demo, [], environ).tls() is None
    flags = [
        *("--tls-cert-file", str(pair.cert), "--tls-key-file", str(pair.key)),
        *("--tls-ca-file", str(authority.cert)),
    ]
    loaded = load_settings(Demo, flags, environ)
    tls = loaded.tls()
    assert tls is not None
    assert tls.serves and tls.dials
    with pytest.raises(SettingsError, match=r"tls_cert_file .*absent cannot be read"):
        load_settings(Demo, ["--tls-cert-file", str(tmp_path / "absent"), "--tls-key-file", str(pair.key)], environ)
    with pytest.raises(SettingsError, match="tls_key_file is missing"):
        load_settings(Demo, ["--tls-cert-file", str(pair.cert)], environ)
    pair.key.unlink()
    with pytest.raises(StartupError, match="tls_key_file"):
        loaded.tls()


def test_a_service_that_connects_to_its_own_kind_needs_both_ways(authority: Authority, pair: Pair) -> None:
    made = Demo(internal_token=SecretStr("t"), tls_cert_file=pair.cert, tls_key_file=pair.key)
    with pytest.raises(ValueError, match="tls_ca_file is missing"):
        made.check_tls_both_ways()
    made = Demo(internal_token=SecretStr("t"), tls_ca_file=authority.cert)
    with pytest.raises(ValueError, match="tls_cert_file is missing"):
        made.check_tls_both_ways()


# --- replacements ---------------------------------------------------------------------------------------------------


def test_a_replacement_is_taken_and_a_bad_one_is_told_once(authority: Authority, pair: Pair) -> None:
    tls = Tls(authority.files(pair))
    taken: list[bytes] = []
    tls.on_change(lambda content: taken.append(content.cert))
    assert not tls.refresh()
    first = tls.content
    replace(pair, authority.sign("second"))
    assert tls.refresh()
    assert (tls.generation, taken) == (1, [tls.content.cert])
    assert tls.content != first
    second = tls.content
    pair.key.write_text("half a ke")
    assert not tls.refresh()  # perhaps the other half comes in a moment
    with pytest.raises(TlsError, match="tls_key_file"):
        tls.refresh()
    assert not tls.refresh()
    assert (tls.content, tls.generation) == (second, 1)
    replace(pair, authority.sign("third"))
    assert tls.refresh()
    assert tls.generation == 2


def test_what_a_taker_refuses_is_not_put_in_force(authority: Authority, pair: Pair) -> None:
    tls = Tls(authority.files(pair))

    def refuse(content: object) -> None:
        raise ValueError("not for me")

    tls.on_change(refuse)
    before = tls.content
    replace(pair, authority.sign("second"))
    assert not tls.refresh()
    with pytest.raises(TlsError, match="not for me"):
        tls.refresh()
    assert tls.content is before


async def test_the_files_of_a_service_are_followed(
    authority: Authority, pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    tls = Tls(authority.files(pair))
    taken = asyncio.Event()
    tls.on_change(lambda content: taken.set())
    task = asyncio.create_task(follow_files(tls, look_ms=5))
    try:
        async with asyncio.timeout(20):
            pair.cert.unlink()
            said = ""
            while "stay in force" not in said:
                await asyncio.sleep(0.01)
                said += capsys.readouterr().err
            replace(pair, authority.sign("second"))
            await taken.wait()
    finally:
        task.cancel()
    assert said.count("stay in force") == 1


# --- servers and channels -------------------------------------------------------------------------------------------


class KvStore(kvstore_pb2_grpc.KVServiceServicer):
    async def Get(self, request: kvstore_pb2.KeyRequest, context: Any) -> kvstore_pb2.ValueResponse:
        if request.key == b"who":
            shown = context.auth_context()
            names = (*shown.get("x509_common_name", ()), *shown.get("x509_subject_alternative_name", ()))
            return kvstore_pb2.ValueResponse(value=b" ".join(names))
        return kvstore_pb2.ValueResponse(value=request.key)


async def serve(tls: Tls, transport: Transport) -> GrpcServer:
    add = kvstore_pb2_grpc.add_KVServiceServicer_to_server
    services = [(add, KvStore(), "kvdb.kvstore.KVService")]
    server = build_server(services, listen="127.0.0.1:0", token="t", tls=tls, transport=transport)
    await server.start()
    return server


async def get(port: int, files: TlsFiles | None, key: bytes = b"k") -> bytes | str:
    """The value, or why there is none."""
    connection = channel(f"127.0.0.1:{port}", tls=client_tls(files))
    try:
        stub = kvstore_pb2_grpc.KVServiceStub(connection.grpc)
        return (await stub.Get(kvstore_pb2.KeyRequest(key=key), timeout=60)).value
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return (error.details() or "") + hint(client_tls(files), error.details() or "")
    finally:
        await connection.close()


async def test_a_port_with_tls_takes_only_who_trusts_it(
    authority: Authority, stranger: Authority, pair: Pair, transport: Transport
) -> None:
    server = await serve(Tls(authority.files(pair)), transport)
    try:
        assert await get(server.port, authority.files(None)) == b"k"
        assert "CERTIFICATE_VERIFY_FAILED" in str(await get(server.port, stranger.files(None)))
        assert "tls_ca_file is not set" in str(await get(server.port, None))
    finally:
        await server.stop(0)


async def test_mutual_tls_refuses_who_shows_nothing_or_a_strangers_certificate(
    authority: Authority, stranger: Authority, pair: Pair, transport: Transport
) -> None:
    server = await serve(Tls(authority.files(pair, mutual=True)), transport)
    client, imposter = authority.sign("client"), stranger.sign("client")
    try:
        assert await get(server.port, authority.files(client)) == b"k"
        shown = str(await get(server.port, authority.files(client), b"who"))
        assert "client" in shown and "localhost" in shown
        assert "tls_cert_file is not set" in str(await get(server.port, authority.files(None)))
        mixed = TlsFiles(imposter.cert, imposter.key, None, authority.cert)
        assert "trust the signer of our tls_cert_file" in str(await get(server.port, mixed))
    finally:
        await server.stop(0)


async def test_the_name_looked_for_can_be_set(authority: Authority, pair: Pair, transport: Transport) -> None:
    replace(pair, authority.sign("named", "DNS:kv.internal"))
    server = await serve(Tls(authority.files(pair)), transport)
    try:
        assert await get(server.port, authority.files(None, server_name="kv.internal")) == b"k"
        assert isinstance(await get(server.port, authority.files(None)), str)
    finally:
        await server.stop(0)


async def test_new_connections_use_the_replaced_files_and_old_ones_live_on(
    authority: Authority, stranger: Authority, pair: Pair, tmp_path: Path, transport: Transport
) -> None:
    """Another authority altogether: what connects anew must trust it, what is connected does not notice."""
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.cert.read_bytes())
    files = TlsFiles(pair.cert, pair.key, ca, ca)
    tls = Tls(files)
    server = await serve(tls, transport)
    connection = channel(f"127.0.0.1:{server.port}", tls=tls)
    request = kvstore_pb2.KeyRequest(key=b"k")
    try:
        before = connection.grpc
        assert (await kvstore_pb2_grpc.KVServiceStub(before).Get(request)).value == b"k"
        replace(pair, stranger.sign("server"))
        ca.write_bytes(stranger.cert.read_bytes())
        assert tls.refresh()
        assert (await kvstore_pb2_grpc.KVServiceStub(before).Get(request)).value == b"k"
        assert connection.grpc is not before
        assert (await kvstore_pb2_grpc.KVServiceStub(connection.grpc).Get(request)).value == b"k"
        assert isinstance(await get(server.port, authority.files(authority.sign("client"))), str)
    finally:
        await connection.close()
        await server.stop(0)


async def test_http_over_tls_asks_for_certificates_and_follows_replacements(
    authority: Authority, stranger: Authority, pair: Pair
) -> None:
    tls = Tls(authority.files(pair, mutual=True))
    server = HttpServer(status_app(Metrics("tls"), lambda: (True, "")), "127.0.0.1:0", tls=tls)
    await server.start()
    client = authority.sign("client")

    async def livez(trusted: Authority, shown: Pair | None) -> int | str:
        context = ssl.create_default_context(cafile=str(trusted.cert))
        if shown is not None:
            context.load_cert_chain(shown.cert, shown.key)
        async with httpx.AsyncClient(verify=context) as http:
            try:
                return (await http.get(f"https://127.0.0.1:{server.port}/livez")).status_code
            except httpx.TransportError as error:
                return f"{type(error).__name__}: {error}"

    try:
        assert await livez(authority, client) == 200
        assert isinstance(await livez(authority, None), str)
        assert isinstance(await livez(authority, stranger.sign("client")), str)
        replace(pair, stranger.sign("server"))
        assert tls.refresh()
        assert isinstance(await livez(authority, client), str)
        assert await livez(stranger, client) == 200
    finally:
        await server.stop()
