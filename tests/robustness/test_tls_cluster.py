"""A cluster whose processes speak only TLS and only with those who show a certificate, on either transport.

While load runs, everything is replaced the way an operator would: first both authorities are trusted, then every
certificate is one of the new authority, then the old one is trusted no more. Not one call fails, connections are made
anew all the while, and at the end who still shows the old certificate is turned away.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import certificates
import grpc
import grpc.aio
import pytest
from certificates import Authority, Pair
from flotta import AsyncClient, InvalidArgumentError, UnavailableError
from flotta_proto.kvdb import gateway_pb2
from flotta_runtime.settings import Transport
from flotta_runtime.tls import Tls, TlsFiles
from load import PATIENT_S, Load, acks_grow, under_load
from process_cluster import Client, ProcessCluster, replicas_equal, running, until

KEYS = [b"tls-%d" % number for number in range(12)]
REPLACED = "TLS files replaced"


class Rotation:
    """The files of all processes, and the two authorities they come from in turn."""

    def __init__(self, folder: Path) -> None:
        self.old, self.new = Authority(folder / "old", "old-ca"), Authority(folder / "new", "new-ca")
        self.pair = Pair(folder / "process.pem", folder / "process.key")
        self.trusted = folder / "ca.pem"
        certificates.replace(self.pair, self.old.sign("process"))
        self.trust(self.old)
        self.files = TlsFiles(self.pair.cert, self.pair.key, self.trusted, self.trusted)

    def trust(self, *authorities: Authority) -> None:
        fresh = self.trusted.with_suffix(".new")
        fresh.write_bytes(b"".join(authority.cert.read_bytes() for authority in authorities))
        fresh.replace(self.trusted)

    def shows(self, authority: Authority, *, trusts: Authority | None = None) -> TlsFiles:
        """The files of somebody else, who has a certificate of this authority."""
        pair = authority.sign("somebody")
        return TlsFiles(pair.cert, pair.key, None, (trusts or authority).cert)


def refreshed(cluster: ProcessCluster, times: int) -> bool:
    """Whether every process has said that often that it took replaced files."""
    return all(cluster.log(name).count(REPLACED) >= times for name in cluster.members())


async def put_once(cluster: ProcessCluster, number: int, files: TlsFiles) -> None:
    """Over a connection of its own. AioRpcError where it cannot be made."""
    client = Client(cluster.gateway_address(1 + number % 2), Tls(files))
    try:
        reply = await client.put(b"fresh-%d" % number, b"value")
        assert reply.status.code == gateway_pb2.Status.OK, reply.status
    finally:
        await client.close()


async def connect_anew(cluster: ProcessCluster, files: TlsFiles, stopping: asyncio.Event) -> int:
    """New connections, one after the other, with the files of that moment."""
    made = 0
    while not stopping.is_set():
        await put_once(cluster, made, files)
        made += 1
    return made


async def command(cluster: ProcessCluster, *words: str) -> tuple[int, str]:
    """The command line, which finds its files in the same variables as the services."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flotta", *words),
        env={**cluster.environment, "FLOTTA_GATEWAY": cluster.gateway_address()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode()


async def operators_and_smart_clients_get_in(cluster: ProcessCluster, rotation: Rotation) -> None:
    coordinator = f"127.0.0.1:{cluster.coordinator_port}"
    code, said = await command(cluster, "nodes", "--coordinators", coordinator)
    assert code == 0 and said.count("ALIVE") == 3, said
    key_file = str(cluster.folder / "data" / "admin-api-key")
    admin = ("--admin", f"https://127.0.0.1:{cluster.admin_port}", "--admin-key-file", key_file)
    code, said = await command(cluster, "why", "shard-0", *admin)
    assert code == 0 and said.startswith("shard-0 is "), said
    smart = AsyncClient.smart(coordinator, internal_token=cluster.internal_token(), tls=rotation.files)
    async with smart as client:
        entry = await client.get("greeting")
        assert entry is not None and entry.value == b"hello"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("transport", ["native", "grpcio"])
async def test_everything_is_replaced_under_load_and_no_call_fails(tmp_path: Path, transport: Transport) -> None:
    rotation = Rotation(tmp_path / "tls")
    async with running(tmp_path / "cluster", shards=2, gateways=2, transport=transport, tls=rotation.files) as cluster:
        code, said = await command(cluster, "put", "greeting", "hello")
        assert code == 0, said
        code, said = await command(cluster, "get", "greeting")
        assert (code, said) == (0, "hello\n")
        await operators_and_smart_clients_get_in(cluster, rotation)
        await strangers_are_refused(cluster, rotation)

        addresses = [cluster.gateway_address(1), cluster.gateway_address(2)]
        load = Load(addresses, list(KEYS), tls=Tls(rotation.files), timeout_s=PATIENT_S)
        stopping = asyncio.Event()
        async with under_load(load):
            anew = asyncio.create_task(connect_anew(cluster, rotation.files, stopping))
            await acks_grow(load, list(KEYS))
            for step, replace in enumerate(
                (
                    lambda: rotation.trust(rotation.old, rotation.new),
                    lambda: certificates.replace(rotation.pair, rotation.new.sign("process")),
                    lambda: rotation.trust(rotation.new),
                ),
                start=1,
            ):
                replace()

                async def taken(step: int = step) -> bool:
                    return refreshed(cluster, step)

                await until(taken, f"step {step} is taken by every process")
                await acks_grow(load, list(KEYS))
            stopping.set()
            assert await anew > 0
        assert load.failures == []
        with pytest.raises(grpc.aio.AioRpcError):
            await put_once(cluster, 0, rotation.shows(rotation.old, trusts=rotation.new))
        await put_once(cluster, 0, rotation.shows(rotation.new))

        # Who starts now, and whoever connects to it, has only the new files to go by.
        cluster.kill("node-1", "coordinator-1", "gateway")
        await cluster.command("start")
        fresh = Load(addresses, list(KEYS), load.records, tls=Tls(rotation.files))
        async with under_load(fresh):
            await acks_grow(fresh, list(KEYS))
        await fresh.verify(cluster.gateway_address(1))
        cluster.tls = Tls(rotation.files)
        await replicas_equal(cluster)


async def strangers_are_refused(cluster: ProcessCluster, rotation: Rotation) -> None:
    """By every door, with words that help; and through the SDK."""
    trusted, stranger = rotation.shows(rotation.old), rotation.shows(rotation.new)
    nothing_to_show = TlsFiles(ca_file=rotation.old.cert)
    imposter = TlsFiles(stranger.cert_file, stranger.key_file, None, rotation.old.cert)
    key = "greeting"
    address = cluster.gateway_address()
    async with AsyncClient(address, tls=trusted) as client:
        entry = await client.get(key)
        assert entry is not None and entry.value == b"hello"
    wrong = {
        None: "tls_ca_file is not set",
        nothing_to_show: "tls_cert_file is not set",
        imposter: "trust the signer of our tls_cert_file",
        stranger: "CERTIFICATE_VERIFY_FAILED",
    }
    for files, words in wrong.items():
        async with AsyncClient(address, tls=files, timeout_ms=1_000) as client:
            with pytest.raises(UnavailableError, match=words):
                await client.get(key)
    with pytest.raises(InvalidArgumentError, match=r"tls_ca_file .* cannot be read"):
        AsyncClient(address, tls=TlsFiles(ca_file=Path("/absent")))
    for port in (cluster.coordinator_port, cluster.node_port):
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await channel.close()


@pytest.mark.timeout(120)
async def test_a_member_with_unusable_files_does_not_start_and_says_why(tmp_path: Path) -> None:
    rotation = Rotation(tmp_path / "tls")
    cluster = ProcessCluster(tmp_path / "cluster", tls=rotation.files)
    shutil.copy(rotation.new.sign("other").key, rotation.pair.key)
    try:
        with pytest.raises(RuntimeError, match=r"tls_key_file .* is not the key of tls_cert_file"):
            await cluster.command("start", "coordinator-1")
    finally:
        await cluster.command("stop")
    assert os.listdir(cluster.folder / "data" / "pids") == []
