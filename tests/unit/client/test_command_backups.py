"""`flotta backup`, `restore` and `check`: what they send, print and end with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_admin import KEY, FakeAdmin
from flotta import cli, cli_orders
from typer.testing import CliRunner

Run = Callable[..., Any]


def copying(status: str = "RUNNING") -> dict[str, Any]:
    return {
        "id": 4,
        "operation": "backup",
        "text": "the backup to b",
        "status": status,
        "steps_total": 8,
        "steps_done": 2,
        "outcome": None if status == "RUNNING" else f"it is {status}",
    }


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    with FakeAdmin() as made:
        yield made


@pytest.fixture
def run(admin: FakeAdmin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(cli_orders, "POLL_S", 0.01)
    environ = {"FLOTTA_ADMIN": admin.url, "FLOTTA_ADMIN_API_KEY": KEY, "FLOTTA_CONFIG": "", "TERM": "dumb"}
    environ |= {"FLOTTA_DATA": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "COLUMNS": "300"}
    return lambda *arguments: CliRunner(env=environ).invoke(cli.build(), list(arguments))


def test_a_backup_is_ordered_and_waited_for(run: Run, admin: FakeAdmin) -> None:
    admin.answers = {
        "POST /admin/backups": {"message": "it has begun", "map_version": 3, "operation": copying()},
        "GET /admin/ops/4": [copying(), copying("DONE")],
    }
    begun = run("backup", "b")
    assert begun.exit_code == 0 and "flotta ops 4 --wait" in begun.stdout
    assert run("backup", "b", "--wait").stdout.endswith("operation 4 is DONE: it is DONE\n")
    assert admin.asked[0] == ("POST", "/admin/backups", '{"directory": "b"}')


@pytest.mark.parametrize(("status", "exit_code"), [("DONE", 0), ("FAILED", 6), ("CANCELLED", 3)])
def test_a_restore_ends_as_its_operation_does(run: Run, admin: FakeAdmin, status: str, exit_code: int) -> None:
    admin.answers = {
        "POST /admin/restores": {"message": "it has begun", "map_version": 3, "operation": copying()},
        "GET /admin/ops/4": [copying(), copying(status)],
    }
    ended = run("restore", "b", "--shards", "16", "--wait", "--json")
    assert ended.exit_code == exit_code and json.loads(ended.stdout)["status"] == status
    body = {"directory": "b", "num_shards": 16, "replication_factor": None}
    assert admin.asked[0] == ("POST", "/admin/restores", json.dumps(body))


@pytest.mark.parametrize(("status", "exit_code"), [(400, 2), (404, 1), (409, 3), (412, 3), (503, 4), (504, 5)])
def test_what_is_refused_is_said_in_the_services_words(run: Run, admin: FakeAdmin, status: int, exit_code: int) -> None:
    refused = (status, {"message": "directory: the reason"})
    admin.answers = {"POST /admin/backups": refused, "POST /admin/restores": refused}
    for verb in ("backup", "restore"):
        ended = run(verb, "b")
        assert ended.exit_code == exit_code and "directory: the reason" in ended.stderr


def checked(state: str, problems: list[str]) -> dict[str, Any]:
    replica = {"node_id": "node-1", "applied_index": 9, "keys": 5, "sha256": "00", "wrong": ""}
    silent = {**replica, "node_id": "node-2", "wrong": "it does not answer"}
    shard = {"shard_id": "shard-0", "state": state, "text": "what there is to say", "replicas": [replica, silent]}
    return {"map_version": 12, "problems": problems, "shards": [shard]}


@pytest.mark.parametrize(
    ("state", "problems", "exit_code", "words"),
    [
        ("AGREE", [], 0, "map version 12: nothing is wrong"),
        ("BUSY", [], 0, "nothing is wrong"),
        ("DIFFER", ["shard-0: replicas differ"], 1, "wrong: shard-0: replicas differ"),
        ("AGREE", ["node-2 is DEAD"], 1, "wrong: node-2 is DEAD"),
    ],
)
def test_a_check_ends_as_it_found_things(
    run: Run, admin: FakeAdmin, state: str, problems: list[str], exit_code: int, words: str
) -> None:
    admin.answers = {"GET /admin/check": checked(state, problems)}
    ended = run("check")
    assert ended.exit_code == exit_code
    for part in (state, "node-1, node-2", "what there is to say", words):
        assert part in ended.stdout
    as_json = run("check", "--json")
    assert as_json.exit_code == exit_code and json.loads(as_json.stdout)["problems"] == problems


def test_a_directory_that_is_no_backup(run: Run, tmp_path: Path) -> None:
    ended = run("check", str(tmp_path))
    assert ended.exit_code == 1 and "there is no whole backup" in ended.stderr
