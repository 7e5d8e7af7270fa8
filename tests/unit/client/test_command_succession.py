"""`flotta recover coordinators`: it looks unless it is told otherwise, and asks before it does anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_admin import KEY, FakeAdmin
from flotta import cli
from typer.testing import CliRunner

Run = Callable[..., Any]
ROUTE = "POST /admin/coordinators/recover"
REPLACE = "POST /admin/coordinators/replace"
GONE = ("--gone", "c2", "--gone", "c3")


def answer(refused: str = "", **fields: Any) -> dict[str, Any]:
    silent = {"state": "SILENT", "last_term": 0, "last_index": 0, "applied_index": 0, "map_version": 0}
    told = {"state": "ANSWERS", "last_term": 3, "last_index": 120, "applied_index": 119, "map_version": 9}
    return {
        "message": "" if refused else "c1 goes on alone, from index 120 of its log",
        "refused": refused,
        "node_id": "" if refused else "c1",
        "map_version": 9,
        "seen_map_version": 11,
        "voters": ["c1", "c2", "c3"],
        "coordinators": [{"node_id": "c1", **told, "leader_id": None}]
        + [{"node_id": name, **silent, "leader_id": None} for name in ("c2", "c3")],
    } | fields


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    with FakeAdmin() as made:
        yield made


@pytest.fixture
def recover(admin: FakeAdmin, tmp_path: Path) -> Run:
    environ = {"FLOTTA_ADMIN": admin.url, "FLOTTA_ADMIN_API_KEY": KEY, "FLOTTA_CONFIG": "", "TERM": "dumb"}
    environ |= {"FLOTTA_DATA": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "COLUMNS": "300"}

    def run(*arguments: str, stdin: str | None = None) -> Any:
        return CliRunner(env=environ).invoke(cli.build(), ["recover", "coordinators", *arguments], input=stdin)

    return run


def bodies(admin: FakeAdmin) -> list[dict[str, Any]]:
    return [json.loads(body) for method, _, body in admin.asked if method == "POST"]


def test_it_only_looks_unless_it_is_meant(recover: Run, admin: FakeAdmin) -> None:
    admin.answers = {ROUTE: answer()}
    for arguments in (GONE, (*GONE, "--unsafe", "--dry-run")):
        ended = recover(*arguments)
        assert ended.exit_code == 0 and "c1 goes on alone" in ended.stdout and "add --unsafe" in ended.stdout
        assert "120" in ended.stdout and "11" in ended.stdout and "SILENT" in ended.stdout
    assert bodies(admin) == [{"gone": ["c2", "c3"], "dry_run": True}] * 2


def test_a_refusal_is_said_and_shown_with_what_is_there(recover: Run, admin: FakeAdmin) -> None:
    admin.answers = {ROUTE: answer("c3 does not answer")}
    ended = recover("--gone", "c2", "--unsafe", "--yes")
    assert ended.exit_code == 3 and "refused: c3 does not answer" in ended.stdout and "120" in ended.stdout
    assert len(bodies(admin)) == 1


@pytest.mark.parametrize(("typed", "exit_code"), [("c1\n", 0), ("yes\n", 3), ("c2\n", 3)])
def test_the_name_of_who_goes_on_is_to_be_typed(recover: Run, admin: FakeAdmin, typed: str, exit_code: int) -> None:
    admin.answers = {ROUTE: [answer(), answer(map_version=5_000_000_000)]}
    ended = recover(*GONE, "--unsafe", stdin=typed)
    assert ended.exit_code == exit_code
    meant = bodies(admin)[1:]
    assert meant == ([{"gone": ["c2", "c3"], "confirm": "c1"}] if exit_code == 0 else [])
    assert ("start c2, c3 with empty data directories" in ended.stdout) == (exit_code == 0)


def replacement(refused: str = "") -> dict[str, Any]:
    shown = {name: value for name, value in answer(refused).items() if not name.endswith("map_version")}
    return shown | {"message": "" if refused else "c3 is given up", "node_id": "c3", "leader_id": "c1"}


def test_a_replacement_only_looks_without_yes(recover: Run, admin: FakeAdmin) -> None:
    admin.answers = {REPLACE: replacement()}
    for arguments in (("--replace", "c3"), ("--replace", "c3", "--yes", "--dry-run")):
        ended = recover(*arguments)
        assert ended.exit_code == 0 and "what would happen: c3 is given up" in ended.stdout, ended.output
        assert "nothing was done; add --yes" in ended.stdout and "who votes: c1, c2, c3" in ended.stdout
    assert bodies(admin) == [{"node_id": "c3", "dry_run": True}] * 2


def test_a_replacement_is_ordered_with_yes_and_never_when_it_is_refused(recover: Run, admin: FakeAdmin) -> None:
    admin.answers = {REPLACE: replacement()}
    ended = recover("--replace", "c3", "--yes")
    assert ended.exit_code == 0 and "done: c3 is given up" in ended.stdout
    assert bodies(admin) == [{"node_id": "c3", "dry_run": True}, {"node_id": "c3"}]
    admin.answers = {REPLACE: replacement("c3 is not lost: it answers c1")}
    ended = recover("--replace", "c3", "--yes")
    assert ended.exit_code == 3 and "refused: c3 is not lost" in ended.stdout and "done" not in ended.stdout
    assert json.loads(recover("--replace", "c3", "--yes", "--json").stdout)["refused"]
    assert [body["dry_run"] for body in bodies(admin)[2:]] == [True, True]


def test_flags_that_do_not_belong_together(recover: Run, admin: FakeAdmin) -> None:
    assert recover("shard-0").exit_code == 2 and recover("--node", "node-1").exit_code == 2
    assert CliRunner().invoke(cli.build(), ["recover", "--unsafe", "shard-0", "--gone", "c2"]).exit_code == 2
    for flag in (("--unsafe",), ("--gone", "c2")):
        assert recover("--replace", "c3", *flag).exit_code == 2
    assert CliRunner().invoke(cli.build(), ["recover", "--unsafe", "shard-0", "--replace", "c2"]).exit_code == 2
    assert not admin.asked


def test_json_is_the_last_answer(recover: Run, admin: FakeAdmin) -> None:
    admin.answers = {ROUTE: [answer(), answer(map_version=12)]}
    assert json.loads(recover(*GONE, "--unsafe", "--yes", "--json").stdout)["map_version"] == 12
