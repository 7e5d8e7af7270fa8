"""The systems under test: started alone on the machine, stopped by pid, their CPU read from the kernel's accounting."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Target:
    """One running system: where to send calls, and the processes that serve them."""

    name: str
    address: str
    pids: dict[str, int]

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of each process so far, user and system."""
        return {name: cpu_s(pid) for name, pid in self.pids.items()}


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_for_port(port: int, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"error: nothing answers on port {port}")
        time.sleep(0.1)


@contextlib.contextmanager
def etcd(folder: Path) -> Iterator[Target]:
    """Three members on loopback, fsync on, defaults otherwise."""
    ports = free_ports(6)
    peers = ",".join(f"m{n}=http://127.0.0.1:{ports[3 + n]}" for n in range(3))
    processes = []
    for n in range(3):
        client, peer = f"http://127.0.0.1:{ports[n]}", f"http://127.0.0.1:{ports[3 + n]}"
        command = [
            *("etcd", "--name", f"m{n}", "--data-dir", str(folder / f"etcd-{n}"), "--initial-cluster", peers),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        ]
        log = (folder / f"etcd-{n}.log").open("wb")
        processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        log.close()
    try:
        for n in range(3):
            wait_for_port(ports[n])
        time.sleep(2)
        yield Target("etcd", f"127.0.0.1:{ports[0]}", {f"member-{n}": p.pid for n, p in enumerate(processes)})
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(30)


@contextlib.contextmanager
def flotta(folder: Path, *, nodes: int = 3, shards: int = 8) -> Iterator[Target]:
    """The cluster of `make up` on ports and folders of its own."""
    base = 22_000 + os.getpid() % 4_000
    variables = {
        **os.environ,
        "N_NODES": str(nodes),
        "NUM_SHARDS": str(shards),
        "COORDINATOR_BASE_PORT": str(base),
        "NODE_BASE_PORT": str(base + 10),
        "GATEWAY_PORT": str(base + 30),
        "ADMIN_PORT": str(base + 40),
        "DATA_DIR": str(folder / "data"),
        "LOG_DIR": str(folder / "logs"),
    }

    def step(name: str) -> None:
        command = [sys.executable, str(ROOT / "scripts" / "local_cluster.py"), name]
        subprocess.run(command, env=variables, check=True, timeout=180, stdout=subprocess.DEVNULL)

    try:
        step("start")
        step("bootstrap")
        files = sorted((folder / "data" / "pids").glob("*.pid"))
        yield Target("flotta", f"127.0.0.1:{base + 30}", {p.stem: int(p.read_text().split()[0]) for p in files})
    finally:
        step("stop")
