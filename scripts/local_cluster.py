"""The local cluster: real processes in the background, one pid file each, no supervisor.

What is killed stays dead until `start`, which starts only what is missing. All state and pid files lie under
`data/`, logs under `logs/`. A pid file names the pid *and* its start time, so a pid that the system has given to
another program is never signalled. Uses the standard library only: it runs before anything is installed.

    python scripts/local_cluster.py start|stop|status|bootstrap|smoke|wipe|logs
    python scripts/local_cluster.py start gateway node-2      only these
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STARTUP_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30


class ClusterError(Exception):
    """Something an operator can act on; printed as one sentence."""


@dataclass(frozen=True)
class Layout:
    """Sizes, ports and folders, from the environment."""

    coordinators: int
    nodes: int
    zones: tuple[str, ...]  # dealt out to the nodes, over and over
    gateways: int
    admin: bool
    shards: int
    replication_factor: int
    coordinator_port: int
    node_port: int
    gateway_port: int
    admin_port: int
    host: str
    data: Path
    logs: Path

    @classmethod
    def from_environment(cls) -> Layout:
        nodes = _number("N_NODES", 3, 1, 64)
        return cls(
            coordinators=_number("N_COORDINATORS", 3, 1, 5),
            nodes=nodes,
            zones=tuple(os.environ.get("ZONES", "local").split(",")),
            gateways=_number("N_GATEWAYS", 1, 0, 16),
            admin=os.environ.get("START_ADMIN", "true").lower() != "false",
            shards=_number("NUM_SHARDS", 8, 1, 4096),
            replication_factor=_number("RF", min(3, nodes), 1, 64),
            coordinator_port=_number("COORDINATOR_BASE_PORT", 9001, 1, 65535),
            node_port=_number("NODE_BASE_PORT", 8001, 1, 65535),
            gateway_port=_number("GATEWAY_PORT", 7000, 1, 65535),
            admin_port=_number("ADMIN_PORT", 8089, 1, 65535),
            host=os.environ.get("CLUSTER_HOST", "127.0.0.1"),
            data=Path(os.environ.get("DATA_DIR", ROOT / "data")).resolve(),
            logs=Path(os.environ.get("LOG_DIR", ROOT / "logs")).resolve(),
        )

    def coordinator_address(self, number: int) -> str:
        return f"{self.host}:{self.coordinator_port + number - 1}"

    def node_address(self, number: int) -> str:
        return f"{self.host}:{self.node_port + number - 1}"

    def gateway_address(self, number: int) -> str:
        return f"{self.host}:{self.gateway_port + number - 1}"

    @property
    def coordinator_list(self) -> str:
        return ",".join(self.coordinator_address(n) for n in range(1, self.coordinators + 1))

    @property
    def admin_url(self) -> str:
        scheme = "https" if os.environ.get("FLOTTA_TLS_CERT_FILE") else "http"
        return f"{scheme}://{self.host}:{self.admin_port}"


def _number(name: str, default: int, low: int, high: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ClusterError(f"{name}={text!r} must be a whole number from {low} to {high}")
    return int(text)


@dataclass(frozen=True)
class Member:
    """One process of the cluster."""

    name: str
    module: str
    port: int
    arguments: tuple[str, ...] = field(default=())


def members(layout: Layout) -> list[Member]:
    peers = ",".join(f"coordinator-{n}={layout.coordinator_address(n)}" for n in range(1, layout.coordinators + 1))
    found = []
    arguments: tuple[str, ...]
    for n in range(1, layout.coordinators + 1):
        arguments = (
            "--node-id",
            f"coordinator-{n}",
            "--peers",
            peers,
            "--data-dir",
            str(layout.data / f"coordinator-{n}"),
        )
        found.append(Member(f"coordinator-{n}", "flotta_coordinator", layout.coordinator_port + n - 1, arguments))
    for n in range(1, layout.nodes + 1):
        address = layout.node_address(n)
        arguments = (
            *("--node-id", f"node-{n}", "--listen", address, "--advertise", address),
            *("--zone", layout.zones[(n - 1) % len(layout.zones)]),
            *("--coordinators", layout.coordinator_list, "--data-dir", str(layout.data / f"node-{n}")),
        )
        found.append(Member(f"node-{n}", "flotta_storage", layout.node_port + n - 1, arguments))
    for n in range(1, layout.gateways + 1):
        name = "gateway" if n == 1 else f"gateway-{n}"
        arguments = ("--listen", layout.gateway_address(n), "--coordinators", layout.coordinator_list)
        found.append(Member(name, "flotta_gateway", layout.gateway_port + n - 1, arguments))
    if layout.admin:
        arguments = ("--listen", f"{layout.host}:{layout.admin_port}", "--coordinators", layout.coordinator_list)
        if not os.environ.get("FLOTTA_ADMIN_BACKUP_DIR"):
            arguments = (*arguments, "--backup-dir", str(layout.data / "backups"))
        found.append(Member("admin", "flotta_admin", layout.admin_port, arguments))
    return found


# --- pid files -------------------------------------------------------------------------------------------------


def start_time(pid: int) -> str | None:
    """The kernel's start time of a live process; None if it is gone (a zombie counts as gone)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def pid_file(layout: Layout, member: Member) -> Path:
    return layout.data / "pids" / f"{member.name}.pid"


def running_pid(layout: Layout, name: str) -> int | None:
    path = layout.data / "pids" / f"{name}.pid"
    if not path.exists():
        return None
    pid_text, _, born = path.read_text().strip().partition(" ")
    return int(pid_text) if start_time(int(pid_text)) == born else None


def write_durably(path: Path, text: str, mode: int = 0o644) -> None:
    """All of the text or the file as it was, whatever fails: a power cut must not leave an empty file behind."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


# --- secrets ---------------------------------------------------------------------------------------------------


def secret(layout: Layout, variable: str, file_name: str) -> str:
    """From the environment, else from the file, else made anew (mode 0600)."""
    if value := os.environ.get(variable):
        return value
    path = layout.data / file_name
    if not path.exists():
        layout.data.mkdir(parents=True, exist_ok=True)
        write_durably(path, secrets.token_hex(24) + "\n", mode=0o600)
    return path.read_text().strip()


def environment(layout: Layout) -> dict[str, str]:
    return {
        **os.environ,
        "KVDB_INTERNAL_GRPC_TOKEN": secret(layout, "KVDB_INTERNAL_GRPC_TOKEN", "internal-grpc-token"),
        "KVDB_ADMIN_SECURITY_API_KEY": secret(layout, "KVDB_ADMIN_SECURITY_API_KEY", "admin-api-key"),
    }


# --- commands --------------------------------------------------------------------------------------------------


def start(layout: Layout, only: list[str]) -> None:
    """Start what is missing, then wait until every port answers."""
    known = members(layout)
    if strangers := set(only) - {member.name for member in known}:
        raise ClusterError(f"no such member: {', '.join(sorted(strangers))}")
    wanted = [member for member in known if not only or member.name in only]
    (layout.data / "pids").mkdir(parents=True, exist_ok=True)
    layout.logs.mkdir(parents=True, exist_ok=True)
    variables = environment(layout)
    started = []
    for member in wanted:
        pid = running_pid(layout, member.name)
        if pid is not None:
            print(f"  {member.name:<15} running, pid {pid}")
            continue
        if port_open(layout.host, member.port):
            raise ClusterError(f"{member.name} needs port {member.port}, which another program holds")
        started.append(spawn(layout, member, variables))
    wait_for_ports(layout, wanted)
    print(f"started {len(started)} of {len(wanted)} processes; logs are in {display(layout.logs)}/")


def spawn(layout: Layout, member: Member, variables: dict[str, str]) -> int:
    with (layout.logs / f"{member.name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", member.module, *member.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=variables,
            start_new_session=True,
        )
    born = start_time(process.pid)
    write_durably(pid_file(layout, member), f"{process.pid} {born}\n")
    print(f"  {member.name:<15} started, pid {process.pid}, port {member.port}")
    return process.pid


def port_open(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == 0


def wait_for_ports(layout: Layout, wanted: list[Member]) -> None:
    deadline = time.monotonic() + STARTUP_TIMEOUT_S
    for member in wanted:
        while not port_open(layout.host, member.port):
            if running_pid(layout, member.name) is None:
                raise ClusterError(f"{member.name} ended during start; its last words:\n{tail(layout, member.name)}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{member.name} does not answer on port {member.port}:\n{tail(layout, member.name)}")
            time.sleep(0.1)


def tail(layout: Layout, name: str, lines: int = 12) -> str:
    path = layout.logs / f"{name}.log"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"


def stop(layout: Layout) -> None:
    """SIGTERM to all, SIGKILL to what is still there after the grace time. Only pids of our own pid files."""
    names = sorted(path.stem for path in (layout.data / "pids").glob("*.pid"))
    alive = {name: pid for name in names if (pid := running_pid(layout, name)) is not None}
    # Clients first: a gateway that still routes would only log refused connections.
    for name in sorted(alive, key=lambda n: (not n.startswith(("admin", "gateway")), not n.startswith("node"), n)):
        signal_quietly(alive[name], signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for name, pid in alive.items():
        while running_pid(layout, name) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        if running_pid(layout, name) is not None:
            print(f"  {name} did not stop in {STOP_TIMEOUT_S} s; killed")
            signal_quietly(pid, signal.SIGKILL)
    for name in names:
        (layout.data / "pids" / f"{name}.pid").unlink()
    print(f"stopped {len(alive)} processes")


def signal_quietly(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        print(f"  pid {pid} was gone already")


def status(layout: Layout) -> int:
    """Print every member; 0 if all run."""
    missing = 0
    for member in members(layout):
        pid = running_pid(layout, member.name)
        answering = port_open(layout.host, member.port)
        missing += pid is None
        state = f"pid {pid}, {'answers' if answering else 'does not answer yet'}" if pid else "not running"
        print(f"  {member.name:<15} :{member.port:<6} {state}")
    return 1 if missing else 0


def bootstrap(layout: Layout) -> None:
    """Register the nodes, create the shards, wait until each shard has a leader. Repeating it changes nothing."""
    nodes = ",".join(f"node-{n}={layout.node_address(n)}" for n in range(1, layout.nodes + 1))
    sizes = ("--shards", str(layout.shards), "--rf", str(layout.replication_factor))
    done = subprocess.run(
        [sys.executable, "-m", "flotta_admin.bootstrap", "--admin", layout.admin_url, "--nodes", nodes, *sizes],
        env=environment(layout),
        check=False,
    )
    if done.returncode != 0:
        raise ClusterError("the cluster could not be bootstrapped; see the line above")


def smoke(layout: Layout) -> None:
    """Put and Get through every gateway with the command line; the value must come back byte for byte."""
    for n in range(1, layout.gateways + 1):
        address = layout.gateway_address(n)
        key, value = "smoke-key10", f"hello10-{secrets.token_hex(4)}"
        flotta(address, "put", key, value)
        found = flotta(address, "get", "--raw", key)
        if found != value:
            raise ClusterError(f"gateway {address} answered {found!r} for {key}, expected {value!r}")
        print(f"  gateway {address}: put {key}={value}, got it back")
    print("smoke test passed")


def flotta(gateway: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "flotta", *arguments],
        env={**os.environ, "FLOTTA_GATEWAY": gateway},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise ClusterError(f"flotta {' '.join(arguments)} failed: {done.stdout}{done.stderr}")
    return done.stdout


def wipe(layout: Layout) -> None:
    running = [path.stem for path in (layout.data / "pids").glob("*.pid") if running_pid(layout, path.stem)]
    if running:
        raise ClusterError(f"stop the cluster first: {', '.join(sorted(running))} still running")
    for folder in (layout.data, layout.logs):
        shutil.rmtree(folder, ignore_errors=True)
    print("data/ and logs/ are gone")


def logs(layout: Layout) -> None:
    for path in sorted(layout.logs.glob("*.log")):
        print(f"==> {path.name} <==\n{tail(layout, path.stem, 8)}\n")


def display(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def main() -> int:
    steps = (stop, status, bootstrap, smoke, wipe, logs)
    commands: dict[str, Callable[[Layout], int | None]] = {step.__name__: step for step in steps}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["start", *commands])
    parser.add_argument("only", nargs="*", help="with start: these members only")
    given = parser.parse_args()
    try:
        layout = Layout.from_environment()
        if given.command == "start":
            start(layout, given.only)
            return 0
        return commands[given.command](layout) or 0
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
