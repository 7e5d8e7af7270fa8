"""Starts that must not succeed: each ends with one sentence on stderr, an exit code that is not 0, and no traceback.

Data directories are those of the running cluster, or copies of them; every process runs against real coordinators.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance_support import Doors, changes_nothing
from free_ports import free_base_port

SERVICES = ("coordinator", "storage", "gateway", "admin")
ANY_PORT = "127.0.0.1:0"
WRONG_SETTINGS, CANNOT_START = 2, 1


def environment(**changed: str) -> dict[str, str]:
    """Secrets, and nothing else of ours."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KVDB_", "FLOTTA_"))}
    return {**clean, "KVDB_INTERNAL_GRPC_TOKEN": "t", "KVDB_ADMIN_SECURITY_API_KEY": "k", **changed}


def refuses(service: str, *arguments: object, code: int, words: tuple[str, ...], env: dict[str, str]) -> None:
    """The process ends by itself with this code, and says so in one sentence that has these words."""
    command = [sys.executable, "-m", f"flotta_{service}", *map(str, arguments)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    told = [line for line in ended.stderr.splitlines() if not line.startswith('{"')]  # beside the JSON of the log
    assert ended.returncode == code, (ended.returncode, ended.stderr)
    assert len(told) == 1 and told[0].startswith(f"flotta-{service}: "), ended.stderr
    for word in words:
        assert word in told[0], f"{word!r} is not in {told[0]!r}"
    assert "Traceback" not in ended.stderr and "Error:" not in told[0], ended.stderr
    assert ended.stdout == ""


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    texts = {"unknown": 'listne = "127.0.0.1:1"\n', "broken": "listen = = 1\n", "type": "stop_timeout_ms = [1]\n"}
    paths = {name: tmp_path / f"{name}.toml" for name in (*texts, "missing")}
    for name, text in texts.items():
        paths[name].write_text(text)
    paths["bytes"] = tmp_path / "bytes.toml"
    paths["bytes"].write_bytes(b'listen = "\xff"\n')
    return paths


@pytest.mark.parametrize("service", SERVICES)
def test_a_config_file_with_an_unknown_key(files: dict[str, Path], service: str) -> None:
    words = ("unknown.toml", "unknown key 'listne'", "listen")
    refuses(service, "--config", files["unknown"], code=WRONG_SETTINGS, words=words, env=environment())


@pytest.mark.parametrize(
    ("service", "flag", "value", "words"),
    [
        ("coordinator", "--config", "broken", ("broken.toml", "not valid TOML", "line 1")),
        ("admin", "--config", "missing", ("missing.toml", "cannot be read")),
        ("gateway", "--config", "bytes", ("bytes.toml", "not valid TOML")),
        ("storage", "--config", "type", ("stop_timeout_ms", "integer", "type.toml")),
        ("storage", "--listen", "127.0.0.1:65536", ("listen", "bad port", "65535", "--listen")),
        ("gateway", "--listen", "127.0.0.1:http", ("listen", "bad port", "65535")),
        ("admin", "--listen", "127.0.0.1", ("listen", "no port", "host:port")),
        ("coordinator", "--http-listen", "::1:8001", ("http_listen", "host:port", "brackets")),
        ("storage", "--advertise", "somewhere", ("advertise", "no port", "--advertise")),
        ("gateway", "--coordinators", "localhost", ("coordinators", "no port")),
        ("gateway", "--coordinators", "a:1,a:1", ("coordinators", "twice")),
        ("gateway", "--coordinators", "", ("coordinators", "at least 1")),
        ("coordinator", "--peers", "coordinator-1=h:1,b=h:2", ("peers", "2 coordinators", "1, 3 or 5")),
        ("coordinator", "--peers", "a=h:1,b=h:2,c=h:3", ("node_id coordinator-1", "not among the peers")),
        ("coordinator", "--peers", "coordinator-1", ("peers", "id=host:port")),
        ("coordinator", "--peers", "coordinator-1=h", ("peers", "no port")),
        ("storage", "--node-id", "a b", ("node_id", "letters, digits")),
        ("storage", "--value-bytes-max", "16777217", ("value_bytes_max", "16777216")),
        ("admin", "--allowed-ips", "300.0.0.1/8", ("allowed_ips", "300.0.0.1/8")),
        ("gateway", "--no-such-flag", "1", ("--no-such-flag", "--help")),
    ],
)
def test_wrong_settings(files: dict[str, Path], service: str, flag: str, value: str, words: tuple[str, ...]) -> None:
    given = files[value] if flag == "--config" else value
    refuses(service, flag, given, code=WRONG_SETTINGS, words=words, env=environment())


@pytest.mark.parametrize("service", SERVICES)
def test_no_token(service: str) -> None:
    words = ("internal_token", "KVDB_INTERNAL_GRPC_TOKEN")
    env = environment()
    del env["KVDB_INTERNAL_GRPC_TOKEN"]
    refuses(service, code=WRONG_SETTINGS, words=words, env=env)


def test_a_blank_token_or_key() -> None:
    for name, field in (("KVDB_INTERNAL_GRPC_TOKEN", "internal_token"), ("KVDB_ADMIN_SECURITY_API_KEY", "api_key")):
        refuses("admin", code=WRONG_SETTINGS, words=(field, "empty", name), env=environment(**{name: " "}))
    wrong = environment(FLOTTA_STORAGE_TICK_MS="soon")
    refuses("storage", code=WRONG_SETTINGS, words=("tick_ms", "FLOTTA_STORAGE_TICK_MS"), env=wrong)


# --- ports and directories ---------------------------------------------------------------------------------------


class Site:
    """The running cluster, seen by a process that wants to join it."""

    def __init__(self, doors: Doors, tmp_path: Path) -> None:
        self.doors = doors
        self.cluster = doors.cluster
        self.data = doors.cluster.folder / "data"
        self.tmp_path = tmp_path
        transport = self.cluster.environment["FLOTTA_TRANSPORT"]
        self.env = environment(KVDB_INTERNAL_GRPC_TOKEN=doors.token, FLOTTA_TRANSPORT=transport)
        addresses = [door.address for door in doors.coordinators]
        self.coordinators = ",".join(addresses)
        self.peers = ",".join(f"coordinator-{n}={address}" for n, address in enumerate(addresses, start=1))

    def copy(self, name: str, **changed: Any) -> Path:
        """A copy of a member's directory, with another identity if asked for."""
        target = self.tmp_path / f"{name}-copy"
        copied = False
        while not copied:
            try:
                shutil.copytree(self.data / name, target, ignore=shutil.ignore_patterns("lock", "LOCK"))
                copied = True
            except shutil.Error:  # the member is at work, and has just done away with one of its files
                shutil.rmtree(target)
        if changed:
            identity = target / "identity.json"
            identity.write_text(json.dumps({**json.loads(identity.read_text()), **changed}))
        return target

    def storage(self, node_id: str, directory: Path, *words: str, listen: str = ANY_PORT, **env: str) -> None:
        arguments = ("--node-id", node_id, "--data-dir", directory, "--coordinators", self.coordinators)
        where = ("--listen", listen, "--http-listen", ANY_PORT)
        refuses("storage", *arguments, *where, code=CANNOT_START, words=words, env={**self.env, **env})

    def coordinator(self, node_id: str, directory: Path, *words: str, peers: str = "", listen: str = ANY_PORT) -> None:
        arguments = ("--node-id", node_id, "--data-dir", directory, "--peers", peers or self.peers)
        where = ("--listen", listen, "--http-listen", ANY_PORT)
        refuses("coordinator", *arguments, *where, code=CANNOT_START, words=words, env=self.env)


@pytest.fixture
def site(doors: Doors, tmp_path: Path) -> Site:
    return Site(doors, tmp_path)


def test_two_processes_on_one_port(site: Site) -> None:
    def all_of_them() -> None:
        taken = "another process"
        node, coordinator = site.doors.nodes[0].address, site.doors.coordinators[0].address
        gateway, admin = site.doors.gateway.address, f"127.0.0.1:{site.cluster.admin_port}"
        site.storage("new", site.tmp_path / "a", node, taken, listen=node)
        site.coordinator("coordinator-1", site.tmp_path / "b", coordinator, taken, listen=coordinator)
        twin = f"127.0.0.1:{int(gateway.rpartition(':')[2]) + 10_000}"
        for service, arguments, address in (
            ("gateway", ("--listen", gateway), gateway),
            ("gateway", ("--listen", ANY_PORT, "--http-listen", twin), twin),
            ("gateway", ("--listen", "0.0.0.0" + gateway[9:]), "0.0.0.0"),
            ("admin", ("--listen", admin), admin),
        ):
            words = ("cannot listen on", address, "in use")
            more = ("--coordinators", site.coordinators)
            refuses(service, *arguments, *more, code=CANNOT_START, words=words, env=site.env)

    changes_nothing(site.doors, all_of_them)


def test_a_host_that_does_not_exist(site: Site) -> None:
    words = ("host.invalid:1", "cannot")
    refuses("gateway", "--listen", "host.invalid:1", code=CANNOT_START, words=words, env=site.env)


def test_a_directory_that_is_in_use(site: Site) -> None:
    def both() -> None:
        for name, start in (("node-1", site.storage), ("coordinator-1", site.coordinator)):
            start(name, site.data / name, str(site.data / name), "in use", str(site.cluster.pid(name)))

    changes_nothing(site.doors, both)


def test_a_directory_of_another_node(site: Site) -> None:
    def all_of_them() -> None:
        node, coordinator = site.copy("node-1"), site.copy("coordinator-1")
        site.storage("node-2", node, str(node), "belongs to node node-1", "node-2")
        site.coordinator("coordinator-2", coordinator, str(coordinator), "belongs to node coordinator-1")
        site.coordinator("coordinator-1", node, str(node), "belongs to node node-1")
        shutil.rmtree(node)
        shutil.rmtree(coordinator)

    changes_nothing(site.doors, all_of_them)


def test_what_is_no_directory_of_ours(site: Site) -> None:
    def all_of_them() -> None:
        full = site.tmp_path / "full"
        full.mkdir(exist_ok=True)
        (full / "photo.jpg").write_bytes(b"x")
        site.storage("new", full, str(full), "identity.json", "photo.jpg")
        site.coordinator("coordinator-1", full, str(full), "identity.json", "photo.jpg")
        site.storage("new", full / "photo.jpg", "photo.jpg", "cannot be used")
        torn = site.tmp_path / "torn"
        torn.mkdir(exist_ok=True)
        (torn / "identity.json").write_text('{"format": 1, "node')
        site.storage("new", torn, "identity.json", "cannot be read")

    changes_nothing(site.doors, all_of_them)


def test_a_storage_node_that_lost_its_directory_or_has_another(site: Site) -> None:
    """Under a known id: an empty directory, and one of the same id with another store."""

    def all_of_them() -> None:
        empty, other = site.tmp_path / "empty", site.copy("node-1", store_id="another")
        site.storage("node-1", empty, "refuses node node-1", "another data directory", "new node id")
        site.storage("node-1", other, "refuses node node-1", "another data directory", "here another")
        shutil.rmtree(empty)
        shutil.rmtree(other)

    changes_nothing(site.doors, all_of_them)


def test_a_new_storage_node_with_a_wrong_token_or_address(site: Site) -> None:
    def all_of_them() -> None:
        fresh = site.tmp_path / "fresh"
        site.storage("new", fresh, "refuse node new", "internal gRPC token", KVDB_INTERNAL_GRPC_TOKEN="wrong")
        site.storage("new", fresh, "refuse node new", "address", "a..b:1", FLOTTA_STORAGE_ADVERTISE="a..b:1")

    changes_nothing(site.doors, all_of_them)


def test_other_coordinators_than_before(site: Site) -> None:
    def all_of_them() -> None:
        mine = site.copy("coordinator-1")
        turned = ",".join(reversed(site.peers.split(",")))
        alone = site.peers.split(",")[0]
        for peers in (turned, alone):
            site.coordinator("coordinator-1", mine, str(mine), "belongs to the coordinators", peers=peers)
        shutil.rmtree(mine)

    changes_nothing(site.doors, all_of_them)


@pytest.fixture
def down(site: Site) -> Iterator[Callable[[str], None]]:
    """Kills members of the shared cluster, and brings them back."""

    def kill(name: str) -> None:
        site.cluster.kill(name)

    yield kill
    asyncio.run(site.cluster.command("start"))


def test_a_coordinator_that_lost_its_directory_or_has_another(site: Site, down: Callable[[str], None]) -> None:
    """At its own address, while it is down: empty, of another cluster, of another store."""
    down("coordinator-3")
    address = site.doors.coordinators[2].address
    site.coordinator("coordinator-3", site.tmp_path / "empty", "coordinator-3", "empty", "lost", listen=address)
    foreign = site.copy("coordinator-3", cluster_id="foreign")
    site.coordinator("coordinator-3", foreign, "coordinator-3", "cluster foreign", "belongs to cluster", listen=address)
    shutil.rmtree(foreign)
    other = site.copy("coordinator-3", store_id="another")
    site.coordinator("coordinator-3", other, "another data directory", "here another", listen=address)


def test_a_storage_node_of_another_cluster(doors: Doors, tmp_path: Path) -> None:
    """A second cluster of one coordinator; a node of the first is started against it, with its own directory."""
    site, base = Site(doors, tmp_path), free_base_port(1)
    peers = f"coordinator-1=127.0.0.1:{base}"
    command = [
        "--node-id",
        "coordinator-1",
        "--peers",
        peers,
        "--data-dir",
        str(tmp_path / "c"),
        "--http-listen",
        ANY_PORT,
    ]
    with (tmp_path / "log").open("wb") as log:
        other = subprocess.Popen(
            [sys.executable, "-m", "flotta_coordinator", *command], env=site.env, stdout=log, stderr=log
        )
    try:
        site.coordinators = f"127.0.0.1:{base}"
        mine = site.copy("node-1")
        site.storage("node-1", mine, "refuses node node-1", "belongs to cluster " + doors.state().cluster_id)
        site.coordinator("coordinator-1", site.copy("coordinator-1"), "belongs to the coordinators", peers=peers)
    finally:
        other.terminate()
        assert other.wait(30) == 0, (tmp_path / "log").read_text()
