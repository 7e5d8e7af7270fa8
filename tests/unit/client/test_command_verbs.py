"""What holds of every verb of the command line, whoever adds one: JSON for programs, an exit code that says what became
of it, what to do next in every error, and completion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from fake_admin import FakeAdmin
from flotta import cli
from flotta.cli_support import Exit
from typer.testing import CliRunner

NOBODY = "127.0.0.1:1"
BY_THEMSELVES = {"dev"}  # it is the cluster
ENDLESS = {"watch-map"}
SAMPLES = {
    "put": ("k", "v"),
    "move": ("shard-0", "node-1", "node-2"),
    "recover": ("shard-0", "--unsafe", "--yes"),
    "reshard": ("8",),
}
"""What makes a verb's call a good one, where it is more than its required arguments."""
APP: Any = typer.main.get_command(cli.build())
VERBS = sorted(set(APP.commands) - BY_THEMSELVES)
Run = Callable[..., Any]


def flags(verb: str) -> set[str]:
    return {name for one in APP.commands[verb].params if one.param_type_name == "option" for name in one.opts}


def sample(verb: str) -> tuple[str, ...]:
    params = APP.commands[verb].params
    needed = [one for one in params if one.param_type_name == "argument" and one.required]
    return SAMPLES.get(verb, tuple("shard-0" for _ in needed))


def quickly(verb: str) -> tuple[str, ...]:
    return ("--timeout", "300ms") if "--timeout" in flags(verb) else ()


ADMIN_VERBS = [verb for verb in VERBS if "--admin-key-file" in flags(verb)]


@pytest.fixture
def flotta_cli(tmp_path: Path) -> Run:
    def run(*arguments: str, **changes: str) -> Any:
        environ = {
            "FLOTTA_GATEWAY": NOBODY,
            "FLOTTA_COORDINATORS": NOBODY,
            "FLOTTA_ADMIN": f"http://{NOBODY}",
            "FLOTTA_ADMIN_API_KEY": "a-key",
            "FLOTTA_DATA": str(tmp_path),
            "FLOTTA_CONFIG": "",
            "XDG_CONFIG_HOME": str(tmp_path),
            "TERM": "dumb",
            "COLUMNS": "200",
        }
        return CliRunner(env=environ | changes).invoke(cli.build(), list(arguments), prog_name="flotta")

    return run


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    with FakeAdmin() as made:
        yield made


def check_told(ended: Any, code: Exit) -> str:
    """It ended so, with a sentence and what to do next; returns the latter."""
    assert ended.exit_code == code, (ended.exit_code, ended.output)
    lines = ended.stderr.splitlines()
    assert lines[0].startswith("flotta: "), ended.stderr
    assert "Traceback" not in ended.output
    hints = [line.strip() for line in lines if line.startswith("        ")]
    assert hints, f"nothing says what to do next: {ended.stderr}"
    return " ".join(hints)


def test_the_verbs_are_there() -> None:
    wanted = {
        "put",
        "get",
        "del",
        "scan",
        "watch-map",
        "cluster",
        "nodes",
        "shards",
        "why",
        "move",
        "transfer",
        "drain",
    }
    assert set(VERBS) >= wanted | {"rebalance", "ops", "status"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_speaks_json_and_ends_in_time(verb: str) -> None:
    assert "--json" in flags(verb)
    assert verb in ENDLESS or "--timeout" in flags(verb)
    assert (APP.commands[verb].help or "").strip().endswith("."), "its help is a sentence"


@pytest.mark.parametrize("json_", [(), ("--json",)])
@pytest.mark.parametrize("verb", VERBS)
def test_nobody_there(flotta_cli: Run, verb: str, json_: tuple[str, ...]) -> None:
    ended = flotta_cli(verb, *sample(verb), *quickly(verb), *json_)
    hint = check_told(ended, Exit.UNAVAILABLE)
    assert "flotta dev" in hint
    named = [flag for flag in ("--gateway", "--coordinators", "--admin") if flag in hint]
    assert named and set(named) <= flags(verb), "it names a flag that this verb has"
    assert NOBODY in ended.stderr or "FLOTTA_" in ended.stderr, "it says where it looked"
    assert verb == "status" or not ended.stdout


@pytest.mark.parametrize("verb", ADMIN_VERBS)
def test_a_wrong_key_and_none(flotta_cli: Run, admin: FakeAdmin, verb: str) -> None:
    for key in ("wrong", ""):
        ended = flotta_cli(verb, *sample(verb), FLOTTA_ADMIN=admin.url, FLOTTA_ADMIN_API_KEY=key)
        assert "FLOTTA_ADMIN_API_KEY" in check_told(ended, Exit.USAGE)
        assert not ended.stdout
    assert admin.asked == []


@pytest.mark.parametrize("verb", ADMIN_VERBS)
@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, Exit.USAGE),
        (404, Exit.NOT_FOUND),
        (409, Exit.CONDITION),
        (429, Exit.UNAVAILABLE),
        (503, Exit.UNAVAILABLE),
        (504, Exit.UNKNOWN),
        (500, Exit.FAILED),
    ],
)
def test_what_the_admin_service_refuses(
    flotta_cli: Run, admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch, verb: str, status: int, code: Exit
) -> None:
    monkeypatch.setattr(admin, "answer", lambda *asked: (status, {"error": "E", "message": "the reason"}))
    ended = flotta_cli(verb, *sample(verb), FLOTTA_ADMIN=admin.url)
    check_told(ended, code)
    assert "the reason" in ended.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_bad_arguments(flotta_cli: Run, verb: str, tmp_path: Path) -> None:
    unknown = flotta_cli(verb, *sample(verb), "--no-such-flag")
    assert unknown.exit_code == Exit.USAGE
    assert f"flotta {verb} --help" in unknown.stderr
    missing = flotta_cli(verb) if sample(verb) else None
    if missing is not None:
        assert missing.exit_code == Exit.USAGE, missing.output
        assert "--help" in missing.stderr or check_told(missing, Exit.USAGE)
    if "--timeout" in flags(verb):
        assert "90s" in check_told(flotta_cli(verb, *sample(verb), "--timeout", "soon"), Exit.USAGE)
    for flag in sorted({"--gateway", "--coordinators", "--admin"} & flags(verb)):
        assert "come from" in check_told(flotta_cli(verb, *sample(verb), flag, "nonsense"), Exit.USAGE)
    absent = flotta_cli("--config", str(tmp_path / "absent.toml"), verb, *sample(verb))
    assert "absent.toml" in absent.stderr and check_told(absent, Exit.USAGE)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_every_verb_and_flag_is_completed(flotta_cli: Run, shell: str) -> None:
    def completed(words: str) -> str:
        found = flotta_cli(
            _FLOTTA_COMPLETE=f"complete_{shell}",
            COMP_WORDS=words,
            COMP_CWORD=str(len(words.split(" ")) - 1),
            _TYPER_COMPLETE_ARGS=words,
        )
        assert (found.exit_code, found.stderr) == (0, ""), found.output
        return str(found.stdout)

    for verb in VERBS:
        assert verb in completed(f"flotta {verb[:-1]}")
        assert "--json" in completed(f"flotta {verb} --js")


def test_completion_of_ids_says_nothing_when_it_knows_none(flotta_cli: Run) -> None:
    for config in ("", "/no/such/file"):
        found = flotta_cli(
            _FLOTTA_COMPLETE="complete_bash", COMP_WORDS="flotta why no", COMP_CWORD="2", FLOTTA_CONFIG=config
        )
        assert (found.exit_code, found.output.strip()) == (0, ""), "an error in the middle of a line helps nobody"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_is_told_how_to_complete(flotta_cli: Run, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whose child the tests are is not theirs to choose: there may be no shell among their ancestors.
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    shown = flotta_cli("--show-completion", shell)
    assert (shown.exit_code, "_FLOTTA_COMPLETE" in shown.stdout) == (0, True)
