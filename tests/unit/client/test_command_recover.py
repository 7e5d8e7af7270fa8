"""`flotta recover`: what it asks, what it wants to be told, and how it ends."""

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
REFUSED = (412, {"error": "FAILED_PRECONDITION", "message": "shard_id: shard-1 has a leader"})


def answer(shard: str, operation: int | None = None, status: str = "RUNNING") -> dict[str, Any]:
    begun = {"id": operation, "text": f"the recovery of {shard}", "status": status, "outcome": None}
    return {
        "message": f"{shard} goes on from its replica on node-3 alone",
        "operation": None if operation is None else {**begun, "steps_total": 1, "steps_done": 0},
        "shard_id": shard,
        "node_id": "node-3",
        "last_index": 120,
        "survivors": [],
    }


def done(operation: int, status: str = "DONE") -> dict[str, Any]:
    return {**answer("shard-0", operation, status)["operation"], "outcome": "it serves again"}


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    with FakeAdmin() as made:
        yield made


@pytest.fixture
def recover(admin: FakeAdmin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(cli_orders, "POLL_S", 0.01)
    environ = {"FLOTTA_ADMIN": admin.url, "FLOTTA_ADMIN_API_KEY": KEY, "FLOTTA_CONFIG": "", "TERM": "dumb"}
    environ |= {"FLOTTA_DATA": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "COLUMNS": "300"}

    def run(*arguments: str, stdin: str | None = None) -> Any:
        return CliRunner(env=environ).invoke(cli.build(), ["recover", *arguments], input=stdin)

    return run


def orders(admin: FakeAdmin) -> list[tuple[str, bool]]:
    """The shards asked about, and whether it was meant."""
    posts = [(target, json.loads(body)) for method, target, body in admin.asked if method == "POST"]
    return [(target.split("/")[3], not body["dry_run"]) for target, body in posts]


def test_it_wants_to_be_told_that_it_is_unsafe_and_what_is_lost(recover: Run, admin: FakeAdmin) -> None:
    for arguments in (["shard-0"], ["--unsafe"], []):
        ended = recover(*arguments)
        assert ended.exit_code == 2 and not admin.asked, ended.output
    assert "acknowledged ones included" in recover("shard-0").stderr


def test_a_dry_run_orders_nothing(recover: Run, admin: FakeAdmin) -> None:
    admin.answers = {"POST /admin/shards/shard-0/recover": answer("shard-0")}
    ended = recover("--unsafe", "shard-0", "--dry-run")
    assert ended.exit_code == 0 and "node-3 alone" in ended.stdout and "120" in ended.stdout
    assert orders(admin) == [("shard-0", False)]


@pytest.mark.parametrize(("typed", "exit_code"), [("shard-0\n", 0), ("yes\n", 3), ("shard-1\n", 3)])
def test_the_shards_name_is_to_be_typed(recover: Run, admin: FakeAdmin, typed: str, exit_code: int) -> None:
    admin.answers = {"POST /admin/shards/shard-0/recover": [answer("shard-0"), answer("shard-0", 9)]}
    ended = recover("--unsafe", "shard-0", stdin=typed)
    assert ended.exit_code == exit_code
    assert orders(admin) == [("shard-0", False), *([("shard-0", True)] if exit_code == 0 else [])]
    assert ("flotta ops 9 --wait" in ended.stdout) == (exit_code == 0)


@pytest.mark.parametrize(("status", "exit_code"), [("DONE", 0), ("FAILED", 6)])
def test_waiting_ends_as_the_operation_does(recover: Run, admin: FakeAdmin, status: str, exit_code: int) -> None:
    admin.answers = {
        "POST /admin/shards/shard-0/recover": [answer("shard-0"), answer("shard-0", 9)],
        "GET /admin/ops/9": [answer("shard-0", 9)["operation"], done(9, status)],
    }
    ended = recover("--unsafe", "shard-0", "--yes", "--wait", "--json")
    assert ended.exit_code == exit_code
    (told,) = json.loads(ended.stdout)
    assert told["operation"]["status"] == status


def test_shards_are_found_by_the_nodes_that_are_lost(recover: Run, admin: FakeAdmin) -> None:
    held = [
        {"shard_id": "shard-0", "replicas": ["node-1", "node-2", "node-3"]},
        {"shard_id": "shard-1", "replicas": ["node-1", "node-3", "node-4"]},
        {"shard_id": "shard-2", "replicas": ["node-3", "node-4", "node-5"]},
    ]
    admin.answers = {
        "GET /admin/nodes": (200, [{"node_id": "node-1"}, {"node_id": "node-2"}]),
        "GET /admin/shards": (200, held),
        "GET /admin/shards/shard-0/explain": {"health": "QUORUM_LOST"},
        "GET /admin/shards/shard-1/explain": {"health": "DEGRADED"},
        "POST /admin/shards/shard-0/recover": [answer("shard-0"), answer("shard-0", 9)],
    }
    assert recover("--unsafe", "--node", "node-1", "--node", "node-2", "--yes").exit_code == 0
    assert orders(admin) == [("shard-0", False), ("shard-0", True)]
    admin.answers["GET /admin/shards/shard-0/explain"] = {"health": "DEGRADED"}
    assert recover("--unsafe", "--node", "node-1", "--yes").exit_code == 3
    assert recover("--unsafe", "--node", "node-9", "--yes").exit_code == 1


def test_what_is_refused_is_said_and_the_rest_is_done(recover: Run, admin: FakeAdmin) -> None:
    admin.answers = {
        "POST /admin/shards/shard-0/recover": [answer("shard-0"), answer("shard-0", 9)],
        "POST /admin/shards/shard-1/recover": REFUSED,
    }
    ended = recover("--unsafe", "shard-0", "shard-1", "--yes")
    assert ended.exit_code == 3 and "shard-1 has a leader" in ended.stdout
    assert orders(admin) == [("shard-0", False), ("shard-1", False), ("shard-0", True)]


def test_an_unknown_shard_ends_it(recover: Run, admin: FakeAdmin) -> None:
    assert recover("--unsafe", "shard-9", "--yes").exit_code == 1
