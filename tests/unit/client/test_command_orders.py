"""The verbs that ask the admin service for something: what they send, print and end with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from fake_admin import KEY, FakeAdmin
from flotta import cli, cli_orders
from typer.testing import CliRunner

NOBODY = "http://127.0.0.1:1"
Run = Callable[..., Any]


def operation(status: str = "RUNNING", done: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "id": 7,
        "operation": "drain",
        "subject": "node-2",
        "text": "empty node-2",
        "status": status,
        "begun_ms": 1,
        "ended_ms": None if status == "RUNNING" else 2,
        "steps_total": 4,
        "steps_done": done,
        "outcome": None if status == "RUNNING" else f"it is {status}",
        **changes,
    }


def order(found: dict[str, Any] | None) -> dict[str, Any]:
    return {"message": "node-2 is being emptied", "map_version": 12, "operation": found}


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    with FakeAdmin() as made:
        yield made


@pytest.fixture
def flotta_cli(admin: FakeAdmin, tmp_path: Path) -> Run:
    def run(*arguments: str, **changes: Any) -> Any:
        environ = {
            "FLOTTA_ADMIN": admin.url,
            "FLOTTA_ADMIN_API_KEY": KEY,
            "FLOTTA_DATA": str(tmp_path),
            "FLOTTA_CONFIG": "",
            "XDG_CONFIG_HOME": str(tmp_path),
            "TERM": "dumb",
        }
        stdin = changes.pop("stdin", None)
        return CliRunner(env=environ | changes).invoke(cli.build(), list(arguments), input=stdin)

    return run


def test_why_a_shard(flotta_cli: Run, admin: FakeAdmin) -> None:
    explanation = {
        "shard_id": "shard-1",
        "health": "DEGRADED",
        "now": ["node-2 is [DEAD]"],
        "next": ["in 4 minutes it is replaced"],
    }
    decided = {
        "number": 3,
        "time_ms": 1000,
        "map_version": 9,
        "kind": "node-dead",
        "subject": "shard-1",
        "reason": "silent",
    }
    admin.answers = {
        "GET /admin/shards/shard-1/explain": explanation,
        "GET /admin/decisions": {"decisions": [decided]},
    }
    ended = flotta_cli("why", "shard-1")
    assert ended.exit_code == 0
    for words in ("shard-1 is DEGRADED", "now: node-2 is [DEAD]", "next: in 4 minutes it is replaced", "silent"):
        assert words in ended.stdout
    assert admin.asked[1][1] == "/admin/decisions?subject=shard-1&limit=10"
    assert json.loads(flotta_cli("why", "shard-1", "--json").stdout) == explanation | {"decisions": [decided]}


def test_why_a_node(flotta_cli: Run, admin: FakeAdmin) -> None:
    admin.answers = {
        "GET /admin/nodes/node-2": {"node_id": "node-2", "status": "ALIVE", "address": "h:1"},
        "GET /admin/decisions": {"decisions": []},
    }
    assert flotta_cli("why", "node-2").stdout == "node-2 is ALIVE at h:1\n"


def test_orders_say_what_they_began(flotta_cli: Run, admin: FakeAdmin) -> None:
    admin.answers = {
        "POST /admin/shards/shard-1/move": order(operation()),
        "POST /admin/nodes/node-2/drain": order(operation()),
        "DELETE /admin/nodes/node-2/drain": order(operation("CANCELLED")),
        "POST /admin/nodes/node-2/decommission": order(operation()),
        "POST /admin/cluster/rebalance": order(None),
        "POST /admin/shards/shard-1/leader": {"leader": "node-1"},
        "POST /admin/ops/7/cancel": order(operation("CANCELLED")),
    }
    moved = flotta_cli("move", "shard-1", "node-1", "node-2")
    assert moved.exit_code == 0
    assert "node-2 is being emptied\noperation 7: follow it with `flotta ops 7 --wait`" in moved.stdout
    assert json.loads(flotta_cli("drain", "node-2", "--json").stdout)["operation"]["id"] == 7
    assert flotta_cli("drain", "node-2", "--cancel").stdout == "node-2 is being emptied\n"
    assert flotta_cli("drain", "node-2", "--remove", "--yes").exit_code == 0
    assert flotta_cli("rebalance").stdout == "node-2 is being emptied\n"
    assert "now it is node-1" in flotta_cli("transfer", "shard-1", "node-3").stdout
    assert flotta_cli("ops", "7", "--cancel").exit_code == 0
    assert admin.asked == [
        ("POST", "/admin/shards/shard-1/move", '{"from_node_id": "node-1", "to_node_id": "node-2"}'),
        ("POST", "/admin/nodes/node-2/drain", ""),
        ("DELETE", "/admin/nodes/node-2/drain", ""),
        ("POST", "/admin/nodes/node-2/decommission", ""),
        ("POST", "/admin/cluster/rebalance", ""),
        ("POST", "/admin/shards/shard-1/leader", "node-3"),
        ("POST", "/admin/ops/7/cancel", ""),
    ]


def test_dividing_the_shards_is_for_good(flotta_cli: Run, admin: FakeAdmin) -> None:
    admin.answers = {"POST /admin/tables/default/shards": order(operation() | {"operation": "shard-count"})}
    said = flotta_cli("reshard", "8").stdout
    assert "operation 7: follow it with `flotta ops 7 --wait`\n" in said and "--cancel" not in said
    assert admin.asked == [("POST", "/admin/tables/default/shards", '{"num_shards": 8}')]
    assert flotta_cli("reshard", "0").exit_code == 2


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("drain", "follow it with `flotta ops 7 --wait`, end it with `flotta ops 7 --cancel`"),
        ("shard-count", "follow it with `flotta ops 7 --wait`; it cannot be called off"),
        ("recover", "follow it with `flotta ops 7 --wait`; it cannot be called off"),
    ],
)
def test_an_interrupted_wait_says_what_can_be_done(
    flotta_cli: Run, admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch, kind: str, words: str
) -> None:
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=mock.Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr(cli_orders, "time", clock)
    admin.answers = {"GET /admin/ops/7": operation(operation=kind)}
    ended = flotta_cli("ops", "7", "--wait")
    assert ended.exit_code == 5 and "operation 7 goes on" in ended.stderr
    assert words in " ".join(ended.stderr.split())


def test_removing_a_node_is_asked_about(flotta_cli: Run, admin: FakeAdmin) -> None:
    admin.answers = {"POST /admin/nodes/node-2/decommission": order(operation())}
    assert flotta_cli("drain", "node-2", "--remove", stdin="n\n").exit_code == 1
    assert not admin.asked
    assert flotta_cli("drain", "node-2", "--remove", stdin="y\n").exit_code == 0


@pytest.mark.parametrize(("status", "exit_code"), [("DONE", 0), ("FAILED", 6), ("CANCELLED", 3)])
def test_waiting_ends_as_the_operation_does(
    flotta_cli: Run, admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch, status: str, exit_code: int
) -> None:
    monkeypatch.setattr(cli_orders, "POLL_S", 0.01)
    busy = (503, {"error": "UNAVAILABLE", "message": "no leader"})
    admin.answers = {
        "POST /admin/nodes/node-2/drain": order(operation()),
        "GET /admin/ops/7": [operation(), busy, operation(done=3), operation(status, 4)],
    }
    ended = flotta_cli("drain", "node-2", "--wait")
    assert ended.exit_code == exit_code
    assert ended.stdout.endswith(f"operation 7 is {status}: it is {status}\n")
    assert len(admin.asked) == 5
    assert json.loads(flotta_cli("ops", "7", "--wait", "--json").stdout)["status"] == status


def test_operations_are_listed(flotta_cli: Run, admin: FakeAdmin) -> None:
    admin.answers = {
        "GET /admin/ops": {"operations": [operation(), operation("DONE", 4, id=6)]},
        "GET /admin/ops/6": operation("DONE", 4, id=6),
    }
    listed = flotta_cli("ops").stdout.splitlines()
    assert listed[1].split() == ["7", "drain", "RUNNING", "1/4", "empty", "node-2"]
    assert listed[2].split() == ["6", "drain", "DONE", "4/4", "it", "is", "DONE"]
    assert len(json.loads(flotta_cli("ops", "--json").stdout)) == 2
    assert json.loads(flotta_cli("ops", "6", "--json").stdout)["id"] == 6


@pytest.mark.parametrize(
    ("status", "exit_code", "words"),
    [
        (400, 2, "the reason"),
        (403, 2, "allowed_ips"),
        (404, 1, "`flotta nodes`"),
        (409, 3, "the reason"),
        (412, 3, "the reason"),
        (503, 4, "name a running admin service"),
        (504, 5, "look with `flotta ops`"),
        (500, 6, "the reason"),
    ],
)
def test_refusals_become_exit_codes(flotta_cli: Run, admin: FakeAdmin, status: int, exit_code: int, words: str) -> None:
    admin.answers = {"POST /admin/cluster/rebalance": (status, {"error": "X", "message": "the reason"})}
    ended = flotta_cli("rebalance")
    assert (ended.exit_code, ended.stdout) == (exit_code, "")
    assert words in ended.stderr


def test_a_missing_or_wrong_key_says_where_to_put_it(flotta_cli: Run, tmp_path: Path) -> None:
    for key, words in (("", "wants a key"), ("wrong", "does not take this key")):
        ended = flotta_cli("rebalance", FLOTTA_ADMIN_API_KEY=key)
        assert ended.exit_code == 2
        assert words in ended.stderr
        assert "FLOTTA_ADMIN_API_KEY" in ended.stderr
    missing = flotta_cli("rebalance", "--admin-key-file", str(tmp_path / "absent"))
    assert missing.exit_code == 2
    assert "--admin-key-file" in missing.stderr


def test_nobody_there_and_somebody_else_there(flotta_cli: Run, admin: FakeAdmin) -> None:
    gone = flotta_cli("rebalance", "--admin", NOBODY)
    assert gone.exit_code == 4
    assert NOBODY in gone.stderr and "from --admin" in gone.stderr
    admin.answers = {"POST /admin/cluster/rebalance": (200, b"<html>")}
    other = flotta_cli("rebalance")
    assert other.exit_code == 6
    assert "not the admin service" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("drain", "node-2", "--cancel", "--wait"), "--cancel ends a drain at once"),
        (("ops", "--wait"), "give its number"),
        (("ops", "7", "--wait", "--cancel"), "nothing to --wait for"),
        (("rebalance", "--admin", "localhost:8089"), "is no URL; write http://host:port"),
        (("rebalance", "--admin", "http://localhost:99999"), "is no URL"),
        (("rebalance", "--timeout", "x"), "is no duration"),
    ],
)
def test_wrong_use_is_explained(flotta_cli: Run, admin: FakeAdmin, arguments: tuple[str, ...], words: str) -> None:
    ended = flotta_cli(*arguments)
    assert ended.exit_code == 2
    assert words in ended.stderr
    assert not admin.asked


def test_odd_names_stay_one_part_of_the_path(flotta_cli: Run, admin: FakeAdmin) -> None:
    assert flotta_cli("drain", "a/b?c").exit_code == 1
    assert admin.asked[0][1] == "/admin/nodes/a%2Fb%3Fc/drain"
