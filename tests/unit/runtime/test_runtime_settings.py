"""Settings: precedence, and one clear sentence for whatever is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from flotta_runtime.settings import (
    AddressList,
    DurationMs,
    GrpcSettings,
    NodeId,
    PeerList,
    SettingsError,
    env,
    load_settings,
    parse_args,
    split_address,
)
from pydantic import Field, SecretStr, ValidationError


class Demo(GrpcSettings):
    """A service for tests."""

    service: ClassVar[str] = "demo"

    node_id: NodeId = Field(default="demo-1", description="Who this is.", json_schema_extra=env("DEMO_NODE_ID"))
    peers: PeerList = Field(default=(("a", "h:1"),), description="The cluster.")
    coordinators: AddressList = Field(default=("localhost:9001",), description="Where the coordinators are.")
    tick_ms: DurationMs = Field(default=100, description="How often.")
    fast: bool = Field(default=False, description="Go fast (50%).")


TOKEN = {"KVDB_INTERNAL_GRPC_TOKEN": "secret-token"}


def load(*argv: str, environ: Mapping[str, str] = TOKEN) -> Demo:
    return load_settings(Demo, argv, environ)


def sentence(*argv: str, environ: Mapping[str, str] = TOKEN) -> str:
    with pytest.raises(SettingsError) as caught:
        load(*argv, environ=environ)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_precedence_is_flags_then_environment_then_file_then_default(tmp_path: Path) -> None:
    file = tmp_path / "demo.toml"
    file.write_text('tick_ms = 1\nnode_id = "from-file"\n')
    assert load().tick_ms == 100
    assert load("--config", str(file)).tick_ms == 1
    environ = {**TOKEN, "FLOTTA_DEMO_TICK_MS": "2", "FLOTTA_DEMO_CONFIG": str(file)}
    assert load(environ=environ).tick_ms == 2
    assert load("--tick-ms", "3", environ=environ).tick_ms == 3
    assert load(environ=environ).node_id == "from-file"


def test_kvdb_names_are_accepted_and_ours_win() -> None:
    assert load(environ={**TOKEN, "DEMO_NODE_ID": "theirs"}).node_id == "theirs"
    assert load(environ={**TOKEN, "DEMO_NODE_ID": "theirs", "FLOTTA_DEMO_NODE_ID": "ours"}).node_id == "ours"


def test_lists_and_peers_parse_from_flags_and_toml(tmp_path: Path) -> None:
    file = tmp_path / "demo.toml"
    file.write_text('coordinators = ["h:1", "h:2"]\n[peers]\nc1 = "h:1"\nc2 = "[::1]:2"\n')
    from_file = load("--config", str(file))
    assert from_file.coordinators == ("h:1", "h:2")
    assert from_file.peers == (("c1", "h:1"), ("c2", "[::1]:2"))
    from_flags = load("--peers", "c1=h:1,c2=[::1]:2", "--coordinators", "h:1, h:2,")
    assert from_flags.peers == from_file.peers
    assert from_flags.coordinators == from_file.coordinators
    assert split_address("[::1]:2") == ("::1", 2)


def test_unknown_file_key_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    file = tmp_path / "demo.toml"
    file.write_text("tik_ms = 1\n")
    assert sentence("--config", str(file)) == f"{file}: unknown key 'tik_ms'; did you mean 'tick_ms'?"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--listen", "localhost"], ["listen", "no port", "flag --listen"]),
        (["--coordinators", "h:99999"], ["coordinators", "bad port", "1 to 65535"]),
        (["--coordinators", "h:0"], ["bad port"]),
        (["--coordinators", "h:+1"], ["bad port"]),
        (["--coordinators", ":80"], ["no usable host"]),
        (["--coordinators", "::1:80"], ["no port", "brackets"]),
        (["--coordinators", "h:1,h:1"], ["twice"]),
        (["--coordinators", ""], ["coordinators", "at least 1"]),
        (["--peers", "h:1"], ["peers", "id=host:port"]),
        (["--peers", "a=h:1,a=h:2"], ["twice"]),
        (["--node-id", "no/slash"], ["node_id", "letters"]),
        (["--tick-ms", "0"], ["tick_ms", "greater than or equal to 1", "0"]),
        (["--tick-ms", "soon"], ["tick_ms", "valid integer", "'soon'"]),
        (["--log-level", "loud"], ["log_level", "'debug', 'info'"]),
        (["--wat"], ["--wat", "--help"]),
    ],
)
def test_a_bad_value_is_one_sentence_with_key_and_limit(argv: list[str], words: list[str]) -> None:
    text = sentence(*argv)
    for word in words:
        assert word in text


def test_the_origin_of_a_bad_value_is_named(tmp_path: Path) -> None:
    assert "environment variable FLOTTA_DEMO_TICK_MS" in sentence(environ={**TOKEN, "FLOTTA_DEMO_TICK_MS": "x"})
    file = tmp_path / "demo.toml"
    file.write_text('tick_ms = "x"\n')
    assert str(file) in sentence("--config", str(file))
    file.write_text("tick_ms = \n")
    assert "not valid TOML" in sentence("--config", str(file))
    assert "cannot be read" in sentence("--config", str(tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "internal_token is missing"),
        ({"KVDB_INTERNAL_GRPC_TOKEN": "  "}, "internal_token is empty"),
        ({"KVDB_INTERNAL_GRPC_TOKEN": "ütf"}, "printable ASCII"),
        ({"FLOTTA_INTERNAL_TOKEN_FILE": "/nonexistent/token"}, "cannot be read"),
    ],
)
def test_no_service_starts_without_a_token(environ: dict[str, str], words: str) -> None:
    text = sentence(environ=environ)
    assert words in text
    assert "ütf" not in text


def test_the_token_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert load(environ={"FLOTTA_INTERNAL_TOKEN_FILE": str(file)}).token() == "from-file"
    blank = {"KVDB_INTERNAL_GRPC_TOKEN": "", "FLOTTA_INTERNAL_TOKEN_FILE": str(file)}
    assert load(environ=blank).token() == "from-file"
    file.write_text("\n")
    assert "is empty" in sentence(environ={"FLOTTA_INTERNAL_TOKEN_FILE": str(file)})


def test_direct_construction_reads_nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOTTA_DEMO_TICK_MS", "7")
    monkeypatch.setenv("KVDB_INTERNAL_GRPC_TOKEN", "outside")
    settings = Demo(internal_token=SecretStr("given"))
    assert settings.tick_ms == 100
    assert settings.token() == "given"
    with pytest.raises(ValidationError):
        Demo(internal_token=SecretStr("given"), unknown=1)  # type: ignore[call-arg]


def test_http_port_is_the_grpc_port_plus_ten_thousand() -> None:
    assert load("--listen", "127.0.0.1:8001").http_address(8001) == "127.0.0.1:18001"
    assert load("--listen", "127.0.0.1:0").http_address(40123) == "127.0.0.1:0"
    assert load("--listen", "127.0.0.1:60000").http_address(60000) == "127.0.0.1:0"
    assert load("--listen", "127.0.0.1:1", "--http-listen", "h:5").http_address(1) == "h:5"


def test_main_program_exits_with_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVDB_INTERNAL_GRPC_TOKEN", "t")
    with pytest.raises(SystemExit) as caught:
        parse_args(Demo, ["--listen", "h"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "flotta-demo: listen: 'h' has no port; it must be host:port (from flag --listen)\n"
    )


def test_help_and_effective_config_show_every_field_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVDB_INTERNAL_GRPC_TOKEN", "very-secret")
    with pytest.raises(SystemExit) as caught:
        parse_args(Demo, ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name, info in Demo.model_fields.items():
        assert "--" + name.replace("_", "-") in text, info
    assert "Go fast (50%)" in text
    with pytest.raises(SystemExit) as caught:
        parse_args(Demo, ["--print-config", "--fast", "--tick-ms", "5"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "tick_ms = 5  # flag --tick-ms" in printed
    assert "fast = true" in printed
    assert "very-secret" not in printed


def test_printed_config_can_be_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVDB_INTERNAL_GRPC_TOKEN", "t")
    argv = ["--peers", "a=h:1,b=h:2", "--tick-ms", "5", "--fast"]
    with pytest.raises(SystemExit):
        parse_args(Demo, [*argv, "--print-config"])
    file = tmp_path / "printed.toml"
    file.write_text(capsys.readouterr().out)
    assert load("--config", str(file)) == load(*argv)
