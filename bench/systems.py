"""The systems under test as real processes: ours, etcd's three members, Redis.

Each is started once, and stands still (SIGSTOP) while another is measured, so that every system has the machine for
itself in every round. A `Target` also tells how many operations it answered well by its own count, and reads values
back: what a load generator calls a success is a reply, not a result.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flotta import AsyncClient
from free_ports import HTTP_OFFSET, free_base_port
from machine import alive, cpu_s, wait_for_port

ROOT = Path(__file__).resolve().parent.parent
FLOTTA_SERVICES = ("COORDINATOR", "STORAGE", "GATEWAY")


class Target:
    """A running system: where to send calls, and the processes that serve them."""

    name: str

    def __init__(self, pids: dict[str, int]) -> None:
        self.pids = pids

    @property
    def address(self) -> str:
        """host:port that takes the load."""
        raise NotImplementedError

    def answered(self, operation: str) -> int:
        """How many operations ("put", "get") succeeded so far, by the system's own count."""
        raise NotImplementedError

    def read(self, keys: list[bytes]) -> list[bytes | None]:
        """The values of keys, None where there is none."""
        raise NotImplementedError

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of each process so far."""
        return {name: cpu_s(pid) for name, pid in self.pids.items()}

    def pause(self) -> None:
        for pid in self.pids.values():
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Run again; missed heartbeats are caught up before this returns."""
        for pid in self.pids.values():
            os.kill(pid, signal.SIGCONT)
        time.sleep(1)


def counter(url: str, pattern: str) -> int:
    """The sum of the metrics of a Prometheus page whose line matches."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if re.match(pattern, line)))


class Flotta(Target):
    """The cluster of `make up`, on ports and folders of its own."""

    name = "flotta"

    def __init__(self, folder: Path, base: int, environment: dict[str, str]) -> None:
        super().__init__({})
        self.folder = folder
        self.gateway_port, self.node_port, self.admin_port = base + 14, base + 5, base + 15
        self.environment = environment

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.gateway_port}"

    def script(self, *words: str) -> None:
        command = [sys.executable, str(ROOT / "scripts" / "local_cluster.py"), *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode != 0:
            raise SystemExit(f"error: {' '.join(words)}: {done.stdout}{done.stderr}")
        files = sorted((self.folder / "data" / "pids").glob("*.pid"))
        self.pids = {path.stem: int(path.read_text().split()[0]) for path in files}

    def metrics_url(self, name: str) -> str:
        role, _, number = name.partition("-")
        number_from_0 = int(number or 1) - 1
        bases = {"coordinator": self.node_port - 5, "node": self.node_port, "gateway": self.gateway_port}
        if role == "admin":
            return f"http://127.0.0.1:{self.admin_port}/metrics"
        return f"http://127.0.0.1:{bases[role] + number_from_0 + HTTP_OFFSET}/metrics"

    def answered(self, operation: str) -> int:
        pattern = rf'flotta_gateway_requests_total{{code="OK",operation="{operation.upper()}"}}'
        return counter(self.metrics_url("gateway"), pattern)

    def answers(self) -> dict[str, int]:
        """How many requests the gateway answered so far, by operation and code: `PUT OK`."""
        with urllib.request.urlopen(self.metrics_url("gateway"), timeout=10) as answer:
            text = answer.read().decode()
        pattern = r'^flotta_gateway_requests_total\{code="(\w+)",operation="(\w+)"\} (\S+)$'
        return {f"{operation} {code}": int(float(count)) for code, operation, count in re.findall(pattern, text, re.M)}

    def read(self, keys: list[bytes]) -> list[bytes | None]:
        async def run() -> list[bytes | None]:
            async with AsyncClient(self.address) as client:
                found = [await client.get(key) for key in keys]
            return [entry.value if entry is not None else None for entry in found]

        return asyncio.run(run())

    def admin(self, path: str) -> Any:
        """The answer of a GET of the admin API."""
        key = (self.folder / "data" / "admin-api-key").read_text().strip()
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin_port}{path}", headers={"X-Admin-Api-Key": key})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@contextlib.contextmanager
def flotta(
    folder: Path,
    *,
    nodes: int = 3,
    coordinators: int = 3,
    shards: int = 8,
    transport: str = "",
    variables: Mapping[str, str] | None = None,
) -> Iterator[Flotta]:
    """A bootstrapped cluster; `transport` sets every service's setting of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    base = free_base_port()
    environment = {
        **os.environ,
        "N_COORDINATORS": str(coordinators),
        "N_NODES": str(nodes),
        "N_GATEWAYS": "1",
        "NUM_SHARDS": str(shards),
        "RF": str(min(3, nodes)),
        "COORDINATOR_BASE_PORT": str(base),
        "NODE_BASE_PORT": str(base + 5),
        "GATEWAY_PORT": str(base + 14),
        "ADMIN_PORT": str(base + 15),
        "DATA_DIR": str(folder / "data"),
        "LOG_DIR": str(folder / "logs"),
        **({f"FLOTTA_{service}_TRANSPORT": transport for service in FLOTTA_SERVICES} if transport else {}),
        **(variables or {}),
    }
    target = Flotta(folder, base, environment)
    try:
        target.script("start")
        target.script("bootstrap")
        yield target
    finally:
        for pid in target.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        target.script("stop")


class Etcd(Target):
    """Three members, or one, on loopback, fsync on, defaults otherwise but for the room their data may take."""

    name = "etcd"

    def __init__(self, pids: dict[str, int], ports: list[int]) -> None:
        super().__init__(pids)
        self._ports = ports
        self._leader = 0

    @property
    def address(self) -> str:
        """The leader's: a follower would only pass requests on."""
        return f"127.0.0.1:{self._ports[self._leader]}"

    def find_leader(self, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for number in range(len(self._ports)):
                status = self._ask(number, "/v3/maintenance/status", {})
                if status.get("leader", "0") == status["header"]["member_id"]:
                    self._leader = number
                    return
            time.sleep(0.1)
        raise SystemExit(f"error: etcd has no leader after {seconds:.0f} s")

    def resume(self) -> None:
        super().resume()
        self.find_leader()

    def answered(self, operation: str) -> int:
        handled = 'grpc_server_handled_total{grpc_code="OK",grpc_method="Range",'
        pattern = {"put": "etcd_mvcc_put_total ", "get": handled}[operation]  # each put of a transaction counts
        return counter(f"http://{self.address}/metrics", pattern)

    def read(self, keys: list[bytes]) -> list[bytes | None]:
        answers = (self._ask(self._leader, "/v3/kv/range", {"key": base64.b64encode(k).decode()}) for k in keys)
        return [base64.b64decode(answer["kvs"][0]["value"]) if "kvs" in answer else None for answer in answers]

    def _ask(self, number: int, path: str, body: dict[str, str]) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self._ports[number]}{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@contextlib.contextmanager
def etcd(folder: Path, *, members: int = 3) -> Iterator[Etcd]:
    folder.mkdir(parents=True, exist_ok=True)
    base = free_base_port()
    ports = [base + number for number in range(members)]
    peers = ",".join(f"m{n}=http://127.0.0.1:{base + 8 + n}" for n in range(members))
    commands = {}
    for n, port in enumerate(ports):
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{base + 8 + n}"
        commands[f"member-{n + 1}"] = [
            *("etcd", "--name", f"m{n}", "--data-dir", str(folder / f"etcd-{n}"), "--initial-cluster", peers),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--quota-backend-bytes", str(8 << 30)),
        ]
    with processes(folder, commands) as pids:
        for port in ports:
            wait_for_port(port)
        target = Etcd(pids, ports)
        target.find_leader()
        yield target


class Redis(Target):
    """One server that fsyncs its append-only file before it answers."""

    name = "redis"

    def __init__(self, pids: dict[str, int], port: int) -> None:
        super().__init__(pids)
        self.port = port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def answered(self, operation: str) -> int:
        command = ["redis-cli", "-p", str(self.port), "info", "commandstats"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        name = {"put": "set", "get": "get"}[operation]
        found = re.search(rf"cmdstat_{name}:calls=(\d+).*rejected_calls=(\d+),failed_calls=(\d+)", text)
        return int(found[1]) - int(found[2]) - int(found[3]) if found else 0


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Redis]:
    folder.mkdir(parents=True, exist_ok=True)
    port = free_base_port()
    command = [
        *("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)),
        *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
    ]
    with processes(folder, {"server": command}) as pids:
        wait_for_port(port)
        yield Redis(pids, port)


@contextlib.contextmanager
def processes(folder: Path, commands: Mapping[str, list[str]]) -> Iterator[dict[str, int]]:
    """The pids of running commands, which are stopped at the end, paused or not."""
    running = []
    try:
        for name, command in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        yield {name: process.pid for name, process in zip(commands, running, strict=True)}
    finally:
        for process in running:
            if alive(process.pid):
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
