"""The command line: what it prints, how it ends, where it looks for a cluster."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeCluster
from fake_gateway import FakeGateway
from flotta import cli, endpoints
from flotta.cli_config import EndpointError
from flotta.endpoints import Flags
from flotta_proto.kvdb import coordinator_pb2 as cp
from flotta_proto.kvdb import gateway_pb2 as gw
from typer.testing import CliRunner

NOBODY = "127.0.0.1:1"
Run = Callable[..., Awaitable[Any]]


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    made = await FakeGateway().start()
    yield made
    await made.kill()


@pytest.fixture
def flotta_cli(tmp_path: Path) -> Run:
    """Run a command in a thread: it has an event loop of its own."""

    async def run(*arguments: str, stdin: bytes = b"", **environ: str) -> Any:
        clean = {"FLOTTA_GATEWAY": "", "FLOTTA_COORDINATORS": "", "FLOTTA_DATA": str(tmp_path), "TERM": "dumb"}
        clean |= {"FLOTTA_CONFIG": "", "XDG_CONFIG_HOME": str(tmp_path)}
        runner = CliRunner(env=clean | environ)
        return await asyncio.to_thread(runner.invoke, cli.build(), list(arguments), input=stdin)

    return run


@pytest.fixture
def on_gateway(flotta_cli: Run, gateway: FakeGateway) -> Run:
    async def run(*arguments: str, **how: Any) -> Any:
        return await flotta_cli(*arguments, FLOTTA_GATEWAY=gateway.address, **how)

    return run


async def test_put_get_del(on_gateway: Run, gateway: FakeGateway) -> None:
    put = await on_gateway("put", "hello", "world")
    assert (put.exit_code, put.stdout) == (0, "version 1\n")
    got = await on_gateway("get", "hello")
    assert (got.exit_code, got.stdout) == (0, "world\n")
    deleted = await on_gateway("del", "hello")
    assert (deleted.exit_code, deleted.stdout) == (0, "deleted\n")
    for command in ("get", "del"):
        gone = await on_gateway(command, "hello")
        assert (gone.exit_code, gone.stdout) == (1, "")
        assert "there is no key 'hello'" in gone.stderr
    assert [type(request) for request in gateway.seen[:2]] == [gw.PutRequest, gw.GetRequest]


async def test_any_bytes_go_in_and_come_out(on_gateway: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    value = bytes(range(256))
    assert (await on_gateway("put", "piped", stdin=value)).exit_code == 0
    path = tmp_path / "value"
    path.write_bytes(value)
    assert (await on_gateway("put", "from file", "--file", str(path))).exit_code == 0
    assert (await on_gateway("put", "dash", "--file", "-", stdin=value)).exit_code == 0
    for key in ("piped", "from file", "dash"):
        assert gateway.rows[key.encode()].value == value
        assert (await on_gateway("get", key, "--raw")).stdout_bytes == value
    assert (await on_gateway("put", "byte\udcff", "v")).exit_code == 0
    assert b"byte\xff" in gateway.rows
    shown = await on_gateway("get", "piped")
    assert shown.stdout.startswith("\\x00\\x01")
    assert (await on_gateway("put", "empty", "")).exit_code == 0
    assert (await on_gateway("get", "empty", "--raw")).stdout_bytes == b""


async def test_json_is_for_programs(on_gateway: Run) -> None:
    put = json.loads((await on_gateway("put", "k", "v", "--json", "--ttl", "90s")).stdout)
    assert put == {"key": "k", "key_base64": "aw==", "version": 1}
    assert json.loads((await on_gateway("get", "k", "--json")).stdout) == {
        "key": "k",
        "key_base64": "aw==",
        "value": "v",
        "value_base64": "dg==",
        "version": 1,
        "create_time_ms": 1000,
        "update_time_ms": 1001,
        "expire_time_ms": 5000,
    }
    head = await on_gateway("get", "k", "--head")
    assert "version         1\n" in head.stdout
    assert json.loads((await on_gateway("del", "k", "--json")).stdout)["deleted"] is True


async def test_flags_become_options(on_gateway: Run, gateway: FakeGateway) -> None:
    await on_gateway("put", "k", "v", "--ttl", "2m", "--if-version", "7")
    await on_gateway("put", "k", "v", "--if-absent")
    await on_gateway("get", "k", "--eventual")
    await on_gateway("del", "k", "--if-version", "3")
    conditional, create, get, delete = gateway.seen
    assert (conditional.options.ttl_ms, conditional.options.if_version_equals) == (120_000, 7)
    assert create.options.if_not_exists
    assert get.options.consistency == gw.EVENTUAL
    assert delete.options.if_version_equals == 3


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        (gw.Status.INVALID_ARGUMENT, 2, "the reason"),
        (gw.Status.PAYLOAD_TOO_LARGE, 2, "the reason"),
        (gw.Status.VERSION_MISMATCH, 3, "the reason"),
        (gw.Status.ALREADY_EXISTS, 3, "the reason"),
        (gw.Status.UNAVAILABLE, 4, "flotta status"),
        (gw.Status.TIMEOUT, 5, "read the key before you repeat it"),
        (gw.Status.INTERNAL, 6, "the reason"),
    ],
)
async def test_exit_codes(on_gateway: Run, gateway: FakeGateway, code: int, exit_code: int, words: str) -> None:
    gateway.script = [gw.Status(code=code, message="the reason")]  # type: ignore[arg-type]
    ended = await on_gateway("put", "k", "v")
    assert ended.exit_code == exit_code
    assert "the reason" in ended.stderr
    assert words in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("put", "", "v"), "KEY is empty"),
        (("put", "k", "v", "--file", "x"), "not both"),
        (("put", "k", "--file", "/no/such/file"), "/no/such/file: No such file"),
        (("put", "k", "v", "--ttl", "soon"), "'soon' is no duration"),
        (("put", "k", "v", "--ttl", "0"), "'0' is no duration"),
        (("put", "k", "v", "--if-absent", "--if-version", "1"), "contradict"),
        (("get", "k", "--raw", "--json"), "--raw prints the value alone"),
        (("get", "k", "--gateway", "localhost"), "--gateway: 'localhost' is no address; write host:port"),
        (("get", "k", "--gateway", "localhost:99999"), "is no address"),
        (("get", "k", "--timeout", "x"), "--timeout 'x' is no duration"),
    ],
)
async def test_wrong_use_is_explained(
    on_gateway: Run, gateway: FakeGateway, arguments: tuple[str, ...], words: str
) -> None:
    ended = await on_gateway(*arguments)
    assert ended.exit_code == 2
    assert words in ended.stderr
    assert not gateway.seen


async def test_nobody_there_says_where_it_looked(flotta_cli: Run) -> None:
    ended = await flotta_cli("get", "k", "--timeout", "200ms", FLOTTA_GATEWAY=NOBODY)
    assert ended.exit_code == 4
    assert NOBODY in ended.stderr
    assert "from FLOTTA_GATEWAY" in ended.stderr
    assert "flotta dev" in ended.stderr


async def test_status_of_a_cluster(flotta_cli: Run) -> None:
    cluster = await FakeCluster().start(nodes=3, shards=3)
    gateway = await FakeGateway().start()
    try:
        where = {"FLOTTA_COORDINATORS": cluster.coordinator.address, "FLOTTA_GATEWAY": gateway.address}
        # The fake gateway has no health service, and that is part of the picture.
        ended = await flotta_cli("status", "--json", **where)
        overview = json.loads(ended.stdout)
        assert ended.exit_code == 1
        assert overview["gateways"][0]["state"].startswith("UNIMPLEMENTED")
        assert overview["coordinators"][0] | {"address": ""} == {
            "address": "",
            "state": "leader",
            "node_id": "coordinator-1",
            "term": 7,
        }
        assert [node["shards_led"] for node in overview["nodes"]] == [1, 1, 1]
        assert overview["shards"][2]["leader"] == "node-3"
        cluster.state.nodes["node-2"].status = cp.DEAD
        cluster.state.shards["shard-1"].leader = ""
        ended = await flotta_cli("status", **where)
        assert "node node-2 is DEAD" in ended.stdout
        assert "shard-1 has no leader" in ended.stdout
    finally:
        await cluster.stop()
        await gateway.kill()


async def test_status_without_anybody(flotta_cli: Run) -> None:
    ended = await flotta_cli("status", "--timeout", "300ms", "--gateway", NOBODY, "--coordinators", NOBODY)
    assert ended.exit_code == 4
    assert f"nobody answers at gateway {NOBODY} (from --gateway)" in ended.stderr


def test_addresses_come_from_flag_environment_file_or_default(tmp_path: Path) -> None:
    environ = {"FLOTTA_DATA": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    assert endpoints.find(Flags(), environ).gateway == ("localhost:7000",)
    assert len(endpoints.find(Flags(), environ).coordinators) == 3
    (tmp_path / "endpoints.json").write_text('{"gateway": "127.0.0.1:7007", "coordinators": "127.0.0.1:9999"}')
    found = endpoints.find(Flags(), environ)
    assert (found.gateway, found.coordinators) == (("127.0.0.1:7007",), ("127.0.0.1:9999",))
    assert found.gateway_from == str(tmp_path / "endpoints.json")
    environ |= {"FLOTTA_GATEWAY": "a:1, b:2"}
    assert endpoints.find(Flags(), environ).gateway == ("a:1", "b:2")
    assert endpoints.find(Flags(gateway="c:3"), environ).gateway == ("c:3",)
    (tmp_path / "endpoints.json").write_text("not json")
    with pytest.raises(EndpointError, match="is not JSON"):
        endpoints.find(Flags(), environ)


def test_help_lists_the_commands_and_dev_is_found_by_entry_point() -> None:
    shown = CliRunner(env={"TERM": "dumb"}).invoke(cli.build(), ["--help"])
    assert shown.exit_code == 0
    verbs = ["put", "get", "del", "status", "cluster", "nodes", "shards", "watch-map", "why", "move", "transfer"]
    for command in (*verbs, "drain", "rebalance", "reshard", "ops", "dev"):
        assert command in shown.stdout
    version = CliRunner().invoke(cli.build(), ["--version"])
    assert (version.exit_code, version.stdout.startswith("flotta ")) == (0, True)


def test_a_command_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    absent = EntryPoint("dev", "no_such_package.command:dev", "flotta.commands")
    monkeypatch.setattr(cli, "entry_points", lambda group: [absent])
    ended = CliRunner().invoke(cli.build(), ["dev", "--data", "x"])
    assert ended.exit_code == 2
    assert "no_such_package" in ended.stderr
    assert "pip install 'flotta[server]'" in ended.stderr


def test_the_bare_install_is_enough_for_everything_but_dev() -> None:
    program = """
import sys

class Absent:
    names = {"pydantic_settings", "structlog", "uvloop", "prometheus_client", "uvicorn", "fastapi",
             "grpc_health", "grpc_reflection", "tenacity", "rocksdict", "flotta_native", "httptools"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ImportError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
from flotta.cli import main
sys.argv = ["flotta", *sys.argv[1:]]
main()
"""
    shown = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    started = subprocess.run([sys.executable, "-c", program, "dev"], capture_output=True, timeout=60)
    assert started.returncode == 2
    assert b"pip install 'flotta[server]'" in started.stderr
