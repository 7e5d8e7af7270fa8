"""The runs of k6, ghz and vegeta: what they are started with, and when a run counts as failed. All are stand-ins."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import load_tools
import pytest
from load_tools import Failed, check_ghz, check_vegeta, main

GHZ = """
Summary:
  Count:\t200

Status code distribution:
  [OK]            {good} responses
{more}
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins that is searched first."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name in ("GATEWAY", "ADMIN", "ADMIN_API_KEY", "TOTAL", "RATE", "DURATION"):
        monkeypatch.delenv(name, raising=False)
    return folder


def stand_in(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_ghz_takes_only_ok_for_good() -> None:
    check_ghz(GHZ.format(good=200, more=""), 200)
    with pytest.raises(Failed, match="199 of 200"):
        check_ghz(GHZ.format(good=199, more="  [Unavailable]   1 responses"), 200)
    with pytest.raises(Failed, match="0 of 200"):
        check_ghz("Status code distribution:\n  [Unavailable]   200 responses", 200)


@pytest.mark.parametrize("codes", [{"200": 9, "409": 1}, {"0": 10}, {}, {"200": 9, "302": 1}])
def test_vegeta_takes_only_200_for_good(codes: dict[str, int]) -> None:
    check_vegeta(json.dumps({"status_codes": {"200": 10}, "errors": []}))
    with pytest.raises(Failed, match="not every request"):
        check_vegeta(json.dumps({"status_codes": codes, "errors": ["a", "b"]}))


def test_ghz_sends_one_key_under_one_request_id(
    tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = tmp_path / "answer"
    stand_in(tools, "ghz", f'printf "%s\\n" "$@" >> {tmp_path}/asked; cat {answer}')
    monkeypatch.setenv("GATEWAY", "there:7000")
    answer.write_text(GHZ.format(good=500, more=""))
    assert main(["ghz-gateway", "--small"]) == 0
    asked = (tmp_path / "asked").read_text().splitlines()
    put, get = [json.loads(line) for line in asked if line.startswith("{")]
    assert put["ctx"] == get["ctx"] and put["key"] == get["key"]
    assert "require_idempotency" not in put["options"]
    assert asked.count("there:7000") == 2 and asked.count("500") == 2
    answer.write_text(GHZ.format(good=498, more="  [Unavailable]   2 responses"))
    assert main(["ghz-gateway", "--small"]) == 1
    assert "498 of 500 calls were OK" in capfd.readouterr().err


@pytest.mark.parametrize(("run", "place"), [("k6-gateway", "GATEWAY"), ("k6-admin", "ADMIN")])
def test_a_threshold_that_k6_saw_crossed_fails_the_run(
    tools: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    run: str,
    place: str,
) -> None:
    stand_in(tools, "k6", f'echo "$@" > {tmp_path}/asked; echo "${place}" >> {tmp_path}/asked; exit ${{CODE:-0}}')
    monkeypatch.setenv(place, "there:1234")
    monkeypatch.setenv("CODE", "0")
    assert main([run]) == 0
    asked, where = (tmp_path / "asked").read_text().splitlines()
    script = load_tools.K6 / f"{run.removeprefix('k6-')}.js"
    assert asked.split()[0] == "run" and asked.split()[-1] == str(script) and script.is_file()
    assert where == {"GATEWAY": "there:1234", "ADMIN": "http://there:1234"}[place]
    monkeypatch.setenv("CODE", "99")
    assert main([run]) == 1
    assert "k6 ended with 99" in capfd.readouterr().err


def test_vegeta_is_told_what_to_read_and_its_report_is_judged(
    tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = json.dumps({"status_codes": {"200": 3}, "errors": []})
    script = f"""
        case "$*" in
            attack*) cp "${{9}}" {tmp_path}/targets ;;
            *json*) cat {tmp_path}/report ;;
            *) echo "the summary" ;;
        esac"""
    stand_in(tools, "vegeta", script)
    (tmp_path / "report").write_text(report)
    monkeypatch.setenv("ADMIN", "https://there:8089/")
    monkeypatch.setenv("ADMIN_API_KEY", "secret")
    assert main(["vegeta-admin"]) == 0
    assert "the summary" in capfd.readouterr().out
    targets = (tmp_path / "targets").read_text()
    assert targets.count("X-Admin-Api-Key: secret") == 3
    assert "GET https://there:8089/admin/cluster/summary\n" in targets
    (tmp_path / "report").write_text(report.replace('"200"', '"503"'))
    assert main(["vegeta-admin"]) == 1
    assert "not every request was answered 200" in capfd.readouterr().err


def test_a_tool_that_hangs_or_is_not_there_fails_the_run(
    tools: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEWAY", "there:7000")
    monkeypatch.setattr(load_tools, "TIMEOUT_S", 0.3)
    stand_in(tools, "k6", "exec sleep 60")
    assert main(["k6-gateway"]) == 1
    assert "did not end within" in capfd.readouterr().err
    monkeypatch.setattr(load_tools, "go_tool", lambda name: str(tools / "nowhere" / name))
    assert main(["k6-gateway"]) == 1
    assert "scripts/go_tools.sh k6 installs it" in capfd.readouterr().err
