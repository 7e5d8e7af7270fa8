"""The docker-compose cluster on a real engine, end to end, through the ports it publishes on loopback.

Uses the engine that answers; where none does, starts one of its own under `build/engine` and stops it by pid.
Where the base image cannot be had from a registry, makes one with debootstrap from the machine's own Debian mirror.

Shown: `up` needs nothing from the environment; everything becomes healthy and bootstraps itself; data and shard map
survive a restart of every container and a `down` followed by `up`, and so does a backup; `flotta check` finds nothing;
services run as non-root on a read-only root.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "build" / "engine"
BASE_IMAGE = os.environ.get("BASE_IMAGE", "python:3.11.14-slim-bookworm")
OWN_BASE = "flotta-base:bookworm"
IMAGE = "flotta:compose-test"
DOCKER = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"
KEYS = 60
BACKUP = "first"
STATEFUL = [f"{kind}-{n}" for kind in ("coordinator", "node") for n in (1, 2, 3)]
SERVICES = [*STATEFUL, "gateway", "admin"]


def run(*command: str, seconds: float = 300, **more: Any) -> str:
    """Standard output of a command; its own words are the error."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, cwd=ROOT, **more)
    if done.returncode != 0:
        raise SystemExit(f"error: {' '.join(command)[:200]} exited {done.returncode}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def answers(*command: str, seconds: float = 30) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextlib.contextmanager
def engine() -> Iterator[None]:
    """A container engine behind DOCKER_HOST for the time of the test."""
    if answers(DOCKER, "info"):
        print("engine: the one that runs here")
        yield
        return
    shutil.rmtree(ENGINE, ignore_errors=True)
    ENGINE.mkdir(parents=True)
    host = f"unix://{ENGINE}/docker.sock"
    folders = [f"--data-root={ENGINE}/data", f"--exec-root={ENGINE}/exec", f"--pidfile={ENGINE}/pid"]
    with (ENGINE / "log").open("wb") as log:
        daemon = subprocess.Popen(["dockerd", *folders, "-H", host], stdout=log, stderr=log)
    os.environ["DOCKER_HOST"] = host
    try:
        deadline = time.monotonic() + 60
        while not answers(DOCKER, "info"):
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("error: dockerd did not start:\n" + (ENGINE / "log").read_text()[-3000:])
            time.sleep(0.5)
        print("engine: started one of our own")
        yield
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)
        for mount in mounts_below(ENGINE):
            answers("umount", "--lazy", mount)
        shutil.rmtree(ENGINE, ignore_errors=True)


def mounts_below(folder: Path) -> list[str]:
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted((p for p in points if p.startswith(f"{folder}/")), reverse=True)


def base_image() -> str:
    """The pinned base where it is here or can be pulled; else one made of Debian packages."""
    if answers(DOCKER, "image", "inspect", BASE_IMAGE) or answers(DOCKER, "pull", "--quiet", BASE_IMAGE, seconds=60):
        return BASE_IMAGE
    if answers(DOCKER, "image", "inspect", OWN_BASE):
        return OWN_BASE
    sources = [*Path("/etc/apt/sources.list.d").glob("*.sources"), Path("/etc/apt/sources.list")]
    text = "\n".join(path.read_text() for path in sources if path.exists())
    mirror = re.search(r"^(?:URIs:|deb(?: \[.*\])?) +(\S*/debian/?)\s", text, re.MULTILINE)
    if mirror is None:
        raise SystemExit("error: no registry answers, and this machine names no Debian mirror for debootstrap")
    began = time.monotonic()
    folder = ROOT / "build" / "base"
    shutil.rmtree(folder, ignore_errors=True)
    run("debootstrap", "--variant=minbase", "--include=python3,python3-venv", "bookworm", str(folder), mirror[1])
    with subprocess.Popen(["tar", "-C", str(folder), "-c", "."], stdout=subprocess.PIPE) as archive:
        run(DOCKER, "import", "-", OWN_BASE, stdin=archive.stdout)
    shutil.rmtree(folder)
    print(f"base image: made with debootstrap in {time.monotonic() - began:.0f} s")
    return OWN_BASE


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Compose:
    """One project of its own, so that a cluster somebody runs is never touched."""

    def __init__(self) -> None:
        self.gateway, self.admin = free_port(), free_port()
        os.environ.update(
            COMPOSE_PROJECT_NAME=f"flotta-test-{os.getpid()}",
            FLOTTA_IMAGE=IMAGE,
            GATEWAY_PORT=str(self.gateway),
            ADMIN_PORT=str(self.admin),
        )
        for name in ("KVDB_INTERNAL_GRPC_TOKEN", "KVDB_ADMIN_SECURITY_API_KEY"):
            os.environ.pop(name, None)
        self.command = ("docker-compose",) if shutil.which("docker-compose") else (DOCKER, "compose")

    def __call__(self, *arguments: str) -> str:
        return run(*self.command, *arguments)

    def container(self, service: str) -> dict[str, Any]:
        name = self("ps", "-q", service).strip()
        found: dict[str, Any] = json.loads(run(DOCKER, "inspect", name))[0]
        return found

    def wait_healthy(self, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        for service in SERVICES:
            while (health := self.container(service)["State"].get("Health", {}).get("Status")) != "healthy":
                if time.monotonic() > deadline:
                    raise SystemExit(f"error: {service} is {health}\n{self('logs', '--tail=40', service)}")
                time.sleep(1)
        while (state := self.container("bootstrap")["State"])["Status"] != "exited" or state["ExitCode"] != 0:
            if time.monotonic() > deadline:
                raise SystemExit(f"error: bootstrap: {state}\n{self('logs', '--tail=40', 'bootstrap')}")
            time.sleep(1)

    def admin_key(self) -> str:
        return self("exec", "-T", "admin", "cat", "/run/flotta/admin-api-key").strip()

    def admin_get(self, path: str) -> Any:
        key = self.admin_key()
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin}{path}", headers={"X-Admin-Api-Key": key})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def flotta(self, *arguments: str) -> str:
        variables = {**os.environ, "FLOTTA_GATEWAY": f"127.0.0.1:{self.gateway}"}
        return run(sys.executable, "-m", "flotta", *arguments, seconds=60, env=variables)

    def operator(self, *arguments: str) -> str:
        """A command that goes to the admin service."""
        variables = {**os.environ, "FLOTTA_ADMIN": f"http://127.0.0.1:{self.admin}"}
        variables["FLOTTA_ADMIN_API_KEY"] = self.admin_key()
        return run(sys.executable, "-m", "flotta", *arguments, seconds=60, env=variables)


def value_of(n: int) -> str:
    return f"value-{n}-" + "é" * n


def check_data(compose: Compose, when: str) -> None:
    for n in range(KEYS):
        found = compose.flotta("get", "--raw", f"key {n}")
        if found != value_of(n):
            raise SystemExit(f"error: {when}: key {n} is {found!r}, expected {value_of(n)!r}")
    print(f"{when}: all {KEYS} keys are there")


def check_map(compose: Compose, before: dict[str, Any], when: str) -> dict[str, Any]:
    after: dict[str, Any] = compose.admin_get("/admin/cluster/shard-map")
    if after["map_version"] < before["map_version"]:
        raise SystemExit(f"error: {when}: map version went back: {before['map_version']} to {after['map_version']}")
    for shard_id, shard in before["shards"].items():
        if sorted(after["shards"][shard_id]["replicas"]) != sorted(shard["replicas"]):
            raise SystemExit(f"error: {when}: {shard_id} changed its replicas")
    print(f"{when}: map version {before['map_version']} -> {after['map_version']}, same shards and replicas")
    return after


def check_backup(compose: Compose) -> None:
    said = compose.operator("backup", BACKUP, "--wait").strip()
    found = compose.operator("check")
    compose("exec", "-T", "admin", "test", "-s", f"/var/lib/flotta/{BACKUP}/manifest.json")
    print(f"backup: {said.splitlines()[-1]}; check: {found.strip().splitlines()[-1]}")


def check_hardening(compose: Compose) -> None:
    for service in SERVICES:
        found = compose.container(service)
        user = compose("exec", "-T", service, "id", "-u").strip()
        if user == "0" or not found["HostConfig"]["ReadonlyRootfs"]:
            raise SystemExit(
                f"error: {service} runs as uid {user}, read-only root {found['HostConfig']['ReadonlyRootfs']}"
            )
        volumes = [mount for mount in found["Mounts"] if mount["Destination"] == "/var/lib/flotta"]
        if service in STATEFUL and [mount["Type"] for mount in volumes] != ["volume"]:
            raise SystemExit(f"error: the state of {service} is not in a named volume")
    print("every service runs as non-root on a read-only root, state in named volumes")


def scenario(compose: Compose) -> None:
    compose("up", "-d", "--no-build")
    compose.wait_healthy()
    before = compose.admin_get("/admin/cluster/shard-map")
    print(f"up: {len(before['nodes'])} nodes, {len(before['shards'])} shards, all healthy")
    check_hardening(compose)
    for n in range(KEYS):
        compose.flotta("put", f"key {n}", value_of(n))
    check_data(compose, "after the puts")
    check_backup(compose)

    compose("restart", "-t", "20")
    compose.wait_healthy()
    check_data(compose, "after a restart of everything")
    before = check_map(compose, before, "after a restart of everything")

    compose("kill", *STATEFUL)
    compose("down", "-t", "10")
    compose("up", "-d", "--no-build")
    compose.wait_healthy()
    check_data(compose, "after kill -9, down and up")
    check_map(compose, before, "after kill -9, down and up")
    compose("exec", "-T", "admin", "test", "-s", f"/var/lib/flotta/{BACKUP}/manifest.json")


def main() -> int:
    if not (ROOT / "dist" / "wheels").is_dir():
        raise SystemExit("error: run `make wheels` first")
    with engine():
        base = base_image()
        build = ("build", "-q", "-f", "deploy/Dockerfile", "-t", IMAGE)
        arguments = ("--build-arg", f"BASE_IMAGE={base}", "--build-arg", "WHEELS=host")
        run(DOCKER, *build, *arguments, ".", env={**os.environ, "DOCKER_BUILDKIT": "1"})
        print("image built from the host's wheels")
        compose = Compose()
        try:
            scenario(compose)
        finally:
            compose("down", "-v", "-t", "5", "--remove-orphans")
            run(DOCKER, "image", "rm", "-f", IMAGE)
    print("compose test passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
