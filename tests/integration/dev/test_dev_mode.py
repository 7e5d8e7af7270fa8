"""`flotta dev` as a person uses it: real processes, the command line, kill -9, a second start."""

from __future__ import annotations

import json
import signal
import socket
import stat
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from dev_process import Dev, dev
from flotta import AsyncClient


def admin(run: Dev, path: str, key: str | None) -> tuple[int, Any]:
    headers = {} if key is None else {"X-Admin-Api-Key": key}
    try:
        with urllib.request.urlopen(urllib.request.Request(run.endpoints()["admin"] + path, headers=headers)) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, None


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_data_is_kept_between_runs_however_they_end(tmp_path: Path, end: signal.Signals) -> None:
    rows = {b"plain": b"v", b"with space": b"a\nb\0\xff", b"empty": b"", b"\xff\0": b"x" * 100_000}
    with dev(tmp_path / "data", "--shards", "3") as run:
        assert "3 shards" in run.announced()
        async with AsyncClient(run.endpoints()["gateway"]) as client:
            versions = {key: await client.put(key, value) for key, value in rows.items()}
            assert await client.delete(b"empty") is not None
        assert run.end(end) == (0 if end is not signal.SIGKILL else -9)
    with dev(tmp_path / "data", "--shards", "5") as run:
        assert "3 shards" in run.announced()
        async with AsyncClient(run.endpoints()["gateway"]) as client:
            assert await client.get(b"empty") is None
            for key in rows.keys() - {b"empty"}:
                entry = await client.get(key)
                assert entry is not None
                assert (entry.value, entry.version) == (rows[key], versions[key])
            assert await client.put(b"plain", b"next", if_version=versions[b"plain"]) > versions[b"plain"]


def test_the_command_line_beside_it(tmp_path: Path) -> None:
    with dev(tmp_path) as run:
        run.announced()
        assert run.cli("put", "bytes", "--file", "-", stdin=b"a\nb\0\xff").returncode == 0
        assert run.cli("get", "bytes", "--raw").stdout == b"a\nb\0\xff"
        assert run.cli("put", "bytes", "other", "--if-absent").returncode == 3
        assert run.cli("del", "bytes").returncode == 0
        assert run.cli("get", "bytes").returncode == 1


def test_status_secrets_and_the_admin_api(tmp_path: Path) -> None:
    with dev(tmp_path, "--shards", "2") as run:
        said = run.announced()
        endpoints = run.endpoints()
        assert endpoints["gateway"] in said
        assert endpoints["admin"] in said
        for name in ("internal-grpc-token", "admin-api-key"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        status = run.cli("status", "--json")
        assert status.returncode == 0, status.stderr
        overview = json.loads(status.stdout)
        assert overview["healthy"] is True
        assert [shard["leader"] for shard in overview["shards"]] == ["node-1", "node-1"]
        assert b"shard-1" in run.cli("status").stdout
        key = (tmp_path / "admin-api-key").read_text().strip()
        assert admin(run, "/admin/nodes", None)[0] == 401
        code, nodes = admin(run, "/admin/nodes", key)
        assert (code, [node["status"] for node in nodes]) == (200, ["ALIVE"])
        for address in (endpoints["gateway"], endpoints["coordinators"]):
            assert address.startswith("127.0.0.1:")


def test_the_verbs_of_operators_find_it_by_themselves(tmp_path: Path) -> None:
    with dev(tmp_path, "--shards", "2") as run:
        run.announced()

        def told(*arguments: str) -> Any:
            done = run.cli(*arguments, "--json")
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        assert (told("cluster")["num_shards"], told("cluster")["nodes"]) == (2, {"ALIVE": 1})
        assert [node["shards_led"] for node in told("nodes")] == [2]
        assert [shard["shard_id"] for shard in told("shards", "--node", "node-1")] == ["shard-0", "shard-1"]
        assert told("why", "shard-1")["health"] == "HEALTHY"
        assert told("why", "node-1")["status"] == "ALIVE"
        assert run.cli("rebalance").returncode == 0
        number = told("drain", "node-1")["operation"][
            "id"
        ]  # nothing can leave it: it is under way until it is called off
        assert number in [one["id"] for one in told("ops")]
        assert told("ops", str(number), "--cancel")["operation"]["status"] == "CANCELLED"
        assert run.cli("ops", str(number), "--wait").returncode == 3
        assert run.cli("transfer", "shard-0", "node-1").returncode == 0
        unknown = run.cli("drain", "node-9")
        assert unknown.returncode == 1
        assert b"node-9" in unknown.stderr and b"flotta nodes" in unknown.stderr
        assert run.cli("move", "shard-0", "node-1", "node-1").returncode in (2, 3)
        assert run.cli("why", "shard-7").returncode == 1


def test_a_second_process_on_the_same_data_ends_with_one_sentence(tmp_path: Path) -> None:
    with dev(tmp_path) as run:
        run.announced()
        with dev(tmp_path) as second:
            assert second.announced() == ""
            assert second.process.wait(timeout=90) == 1
            assert second.process.stderr is not None
            assert b"in use by another process" in second.process.stderr.read()
        assert run.cli("put", "still", "works").returncode == 0


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with dev(tmp_path, "--gateway-port", str(port)) as run:
            assert run.announced() == ""
            assert run.process.wait(timeout=90) == 1
            assert run.process.stderr is not None
            assert f"cannot listen on 127.0.0.1:{port}".encode() in run.process.stderr.read()


def test_a_secret_that_others_can_read_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "admin-api-key").write_text("known-to-all\n")
    (tmp_path / "admin-api-key").chmod(0o644)
    with dev(tmp_path) as run:
        assert run.announced() == ""
        assert run.process.wait(timeout=90) == 1
        assert run.process.stderr is not None
        assert b"chmod 600" in run.process.stderr.read()
    assert not (tmp_path / "coordinator-1").exists()
