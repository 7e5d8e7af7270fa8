"""A real cluster for one test: processes, ports and folders of its own, driven by the script that `make up` uses."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import certificates
import grpc.aio
from flotta_proto.flotta import storage_pb2, storage_pb2_grpc
from flotta_proto.kvdb import coordinator_pb2, coordinator_pb2_grpc, gateway_pb2, gateway_pb2_grpc
from flotta_runtime.settings import Transport
from flotta_runtime.tls import Tls, TlsFiles, client_tls, open_channel
from free_ports import free_base_port

ROOT = Path(__file__).resolve().parents[2]


def transport_of_the_run() -> str:
    """What FLOTTA_TEST_TRANSPORT says for clusters whose test names no transport; empty: the default one."""
    named = os.environ.get("FLOTTA_TEST_TRANSPORT", "")
    if named not in ("", *get_args(Transport)):
        raise ValueError(f"FLOTTA_TEST_TRANSPORT is {named!r}; it can be one of {', '.join(get_args(Transport))}")
    return named


class ProcessCluster:
    """Coordinators, nodes, gateways and admin as real processes under `folder`."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 3,
        shards: int = 4,
        gateways: int = 2,
        separable: bool = False,
        variables: Mapping[str, Mapping[str, str]] | None = None,
        transport: Transport | None = None,
        tls: TlsFiles | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        base = free_base_port()
        self.coordinator_port, self.node_port = base, base + 4
        self.gateway_port, self.admin_port = base + 10, base + 14
        self.coordinators, self.nodes, self.gateways = 3, nodes, gateways
        self.shard_count = shards
        self.folder = folder
        # Each coordinator and node under a group id of its own, so that a firewall can tell who sends. Needs root.
        self.separable = separable
        # Environment variables that one member alone is started with at first.
        self.variables = variables or {}
        self.gone: set[str] = set()  # nodes that a test stopped for good
        self.tls_files = tls
        self.tls = client_tls(tls)
        self.environment = {
            **os.environ,
            "N_COORDINATORS": "3",
            "N_NODES": str(nodes),
            "N_GATEWAYS": str(gateways),
            "NUM_SHARDS": str(shards),
            "RF": "3",
            "COORDINATOR_BASE_PORT": str(self.coordinator_port),
            "NODE_BASE_PORT": str(self.node_port),
            "GATEWAY_PORT": str(self.gateway_port),
            "ADMIN_PORT": str(self.admin_port),
            "DATA_DIR": str(folder / "data"),
            "LOG_DIR": str(folder / "logs"),
            **(settings or {}),  # environment variables of every process
        }
        chosen = transport or transport_of_the_run()
        if chosen:
            self.environment["FLOTTA_TRANSPORT"] = chosen
        if tls is not None:
            named = {name.upper(): str(value) for name, value in certificates.settings(tls).items()}
            self.environment |= {f"FLOTTA_{name}": value for name, value in named.items()}
        self.environment.pop("KVDB_INTERNAL_GRPC_TOKEN", None)
        self.environment.pop("KVDB_ADMIN_SECURITY_API_KEY", None)

    # --- processes ---

    def group_id(self, name: str) -> int:
        """The group id a coordinator or node runs under in a separable cluster."""
        role, _, number = name.rpartition("-")
        return {"coordinator": 61_100, "node": 61_200}[role] + int(number)

    def port(self, name: str) -> int:
        """The gRPC port of a coordinator or node."""
        role, _, number = name.rpartition("-")
        return {"coordinator": self.coordinator_port, "node": self.node_port}[role] + int(number) - 1

    def insiders(self) -> list[str]:
        return [f"coordinator-{n + 1}" for n in range(self.coordinators)] + [f"node-{n + 1}" for n in range(self.nodes)]

    async def start(self) -> None:
        if self.separable:
            # The first one makes the cluster's secrets, which the others then find.
            first, *others = self.insiders()
            starting = [self.command("start", name, group=self.group_id(name)) for name in others]
            await self.command("start", first, group=self.group_id(first))
            await asyncio.gather(*starting)
        for name, variables in self.variables.items():
            await self.command("start", name, variables=variables)
        await self.command("start")

    async def command(self, *words: str, group: int | None = None, variables: Mapping[str, str] | None = None) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(ROOT / "scripts" / "local_cluster.py"), *words),
            env={**self.environment, **(variables or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            group=group,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 120)
        text = output.decode()
        if process.returncode != 0:
            raise RuntimeError(f"{words} failed:\n{text}\n{self.tails()}")
        return text

    def pid(self, name: str) -> int:
        return int((self.folder / "data" / "pids" / f"{name}.pid").read_text().split()[0])

    def alive(self, name: str) -> bool:
        """Whether the process that was started last under this name runs; another one under its pid is not it."""
        pid, born = (self.folder / "data" / "pids" / f"{name}.pid").read_text().split()
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return fields[0] != "Z" and fields[19] == born

    def log(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text(errors="replace")

    def kill(self, *names: str) -> None:
        for name in names:
            os.kill(self.pid(name), signal.SIGKILL)

    async def end(self) -> None:
        """Kill what still runs, and forget it."""
        self.kill(*(name for name in self.members() if self.alive(name)))
        await self.command("stop")

    def members(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / "data" / "pids").glob("*.pid"))

    def tails(self) -> str:
        logs = sorted((self.folder / "logs").glob("*.log"))
        return "\n".join(f"==> {p.name}\n" + "\n".join(p.read_text().splitlines()[-8:]) for p in logs)

    # --- the admin API ---

    def admin_sync(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        key = (self.folder / "data" / "admin-api-key").read_text().strip()
        scheme, context = ("http", None) if self.tls_files is None else ("https", https_context(self.tls_files))
        request = urllib.request.Request(
            f"{scheme}://127.0.0.1:{self.admin_port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Admin-Api-Key": key, "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60, context=context) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, json.load(refusal)

    async def admin(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        return await asyncio.to_thread(self.admin_sync, method, path, body)

    async def add_node(self) -> str:
        """One more storage node, which introduces itself."""
        self.nodes += 1
        self.environment["N_NODES"] = str(self.nodes)
        name = f"node-{self.nodes}"
        await self.command("start", name)
        return name

    async def shards(self) -> dict[str, Any]:
        status, shards = await self.admin("GET", "/admin/shards")
        if status != 200:
            raise RuntimeError(f"/admin/shards answered {status}: {shards}")
        return {shard["shard_id"]: shard for shard in shards}

    async def map_version(self) -> int:
        async def asked() -> tuple[int] | None:
            status, body = await self.admin("GET", "/admin/cluster/shard-map/version")
            return (int(body["map_version"]),) if status == 200 else None  # the coordinators may be electing

        (found,) = await until(asked, "the coordinators tell the map's version")
        return int(found)

    # --- gRPC ---

    def gateway_address(self, number: int = 1) -> str:
        return f"127.0.0.1:{self.gateway_port + number - 1}"

    async def coordinator_leader(self) -> str:
        """The id of the coordinator that leads, as the coordinators themselves say."""
        for n in range(self.coordinators):
            async with open_channel(self.tls, f"127.0.0.1:{self.coordinator_port + n}", ()) as channel:
                stub = coordinator_pb2_grpc.CoordinatorStub(channel)
                try:
                    answer = await stub.GetCoordinatorLeader(coordinator_pb2.GetCoordinatorLeaderRequest(), timeout=2)
                except grpc.aio.AioRpcError:
                    continue
                if answer.is_leader:
                    return answer.leader_id
        raise RuntimeError("no coordinator says it leads")

    def internal_token(self) -> str:
        return (self.folder / "data" / "internal-grpc-token").read_text().strip()

    async def digests(self) -> dict[str, dict[str, tuple[int, int, str]]]:
        """shard -> node -> (applied index, keys, content hash), read from every node itself."""
        token = self.internal_token()
        found: dict[str, dict[str, tuple[int, int, str]]] = {}
        for n in range(1, self.nodes + 1):
            if f"node-{n}" in self.gone:
                continue
            async with open_channel(self.tls, f"127.0.0.1:{self.node_port + n - 1}", ()) as channel:
                stub = storage_pb2_grpc.ShardsStub(channel)
                metadata = (("x-kvdb-internal-token", token),)
                answer = await stub.Digest(storage_pb2.DigestRequest(), timeout=30, metadata=metadata)
            for replica in answer.replicas:
                row = (replica.applied_index, replica.keys, replica.sha256.hex())
                found.setdefault(replica.shard_id, {})[f"node-{n}"] = row
        return found


def https_context(files: TlsFiles) -> ssl.SSLContext:
    """For calls of the admin API, with the same files."""
    context = ssl.create_default_context(cafile=str(files.ca_file))
    if files.cert_file is not None:
        context.load_cert_chain(files.cert_file, files.key_file)
    return context


async def until(check: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Repeat an async check until it answers something true."""
    last: object = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    if last := await check():
                        return last
                except (RuntimeError, OSError, grpc.aio.AioRpcError) as error:
                    last = error
                await asyncio.sleep(0.1)
    except TimeoutError as error:
        raise AssertionError(f"{what}: not within {seconds} s; last: {last!r}") from error


@asynccontextmanager
async def running(
    folder: Path,
    *,
    nodes: int = 3,
    shards: int = 4,
    gateways: int = 2,
    separable: bool = False,
    variables: Mapping[str, Mapping[str, str]] | None = None,
    transport: Transport | None = None,
    tls: TlsFiles | None = None,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[ProcessCluster]:
    """A bootstrapped cluster; every process it started is killed at the end. To stop them well is for tests of that: it
    takes seconds, in which those that go last look for others to hand over to."""
    cluster = ProcessCluster(
        folder,
        nodes=nodes,
        shards=shards,
        gateways=gateways,
        separable=separable,
        variables=variables,
        transport=transport,
        tls=tls,
        settings=settings,
    )
    try:
        await cluster.start()
        await cluster.command("bootstrap")
        yield cluster
    except BaseException:
        print(cluster.tails())
        raise
    finally:
        await cluster.end()


async def replicas_equal(cluster: ProcessCluster) -> dict[str, dict[str, tuple[int, int, str]]]:
    """Once nothing is written: every shard has three replicas with one content and one index."""

    async def equal() -> dict[str, Any] | None:
        found = await cluster.digests()
        whole = all(len(by_node) == 3 and len(set(by_node.values())) == 1 for by_node in found.values())
        return found if whole and len(found) == cluster.shard_count else None

    found: dict[str, Any] = await until(equal, "all replicas of every shard are equal, content and index")
    return found


async def start_is_refused(cluster: ProcessCluster, name: str) -> str:
    """What a member that cannot start wrote before it ended."""
    before = len(cluster.log(name))
    try:
        await cluster.command("start", name)  # waits for the port only, which is bound before the data is opened
    except RuntimeError as error:
        if "ended during start" not in str(error):
            raise

    async def ended() -> bool:
        return not cluster.alive(name)

    await until(ended, f"{name} does not start")
    return cluster.log(name)[before:]


class Client:
    """The smallest gateway client: one key/value call each, with the reply's code."""

    def __init__(self, address: str, tls: Tls | None = None) -> None:
        options = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))
        self.channel = open_channel(tls, address, options)
        self.stub = gateway_pb2_grpc.KvGatewayStub(self.channel)

    async def put(self, key: bytes, value: bytes, timeout: float = 30, ttl_ms: int = 0) -> gateway_pb2.PutResponse:
        options = gateway_pb2.WriteOptions(ttl_ms=ttl_ms)
        return await self.stub.Put(gateway_pb2.PutRequest(key=key, value=value, options=options), timeout=timeout)

    async def get(self, key: bytes, timeout: float = 30) -> gateway_pb2.GetResponse:
        options = gateway_pb2.ReadOptions(consistency=gateway_pb2.STRONG)
        return await self.stub.Get(gateway_pb2.GetRequest(key=key, options=options), timeout=timeout)

    async def close(self) -> None:
        await self.channel.close()
