"""Every command that the README and the docs show in a `console` block works, and prints what they say it prints.

A block's `$ ` lines are run in a shell against a real cluster whose ports stand in for the documented ones; the lines
below a command, up to the next one, must be its output. `…` stands for anything, over lines too; on a line of its own,
for any lines or none.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from process_cluster import ROOT, ProcessCluster, running

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def documented_commands(page: Path) -> list[tuple[str, list[str]]]:
    """(command, expected lines) of every console block, in order."""
    found: list[tuple[str, list[str]]] = []
    for block in BLOCK.findall(page.read_text()):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found and found[-1][0].endswith("\\"):
                command, expected = found[-1]
                found[-1] = (command[:-1] + line.lstrip(), expected)
            elif found and line.strip():
                found[-1][1].append(line.rstrip())
    return found


def environment(cluster: ProcessCluster) -> dict[str, str]:
    go_path = subprocess.run(["go", "env", "GOPATH"], capture_output=True, text=True, check=True).stdout.strip()
    folders = [str(Path(sys.executable).parent), f"{go_path}/bin", os.environ["PATH"]]
    return {
        **cluster.environment,
        "PATH": ":".join(folders),
        "FLOTTA_GATEWAY": cluster.gateway_address(),
        "FLOTTA_ADMIN": f"http://127.0.0.1:{cluster.admin_port}",
        "FLOTTA_ADMIN_API_KEY_FILE": f"{cluster.environment['DATA_DIR']}/admin-api-key",
        "FLOTTA_COORDINATORS": ",".join(f"127.0.0.1:{cluster.coordinator_port + n}" for n in range(3)),
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }


def translated(command: str, cluster: ProcessCluster) -> str:
    ports = {"7000": cluster.gateway_port, "7001": cluster.gateway_port + 1, "8089": cluster.admin_port}
    ports |= {str(8001 + n): cluster.node_port + n for n in range(3)}
    ports |= {str(9001 + n): cluster.coordinator_port + n for n in range(3)}
    return re.sub(r"(?<=(?:localhost|127\.0\.0\.1):)\d+", lambda found: str(ports[found[0]]), command)


def check_output(command: str, expected: list[str], output: str) -> None:
    if not expected:
        return
    lines = [r"(?:.*\n)?" if line.strip() == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in expected]
    printed = "".join(line.rstrip() + "\n" for line in output.splitlines())
    if not re.fullmatch("".join(lines) + r"\s*", printed, re.DOTALL):
        raise AssertionError(f"$ {command}\nprinted:\n{output}\nthe page says:\n" + "\n".join(expected))


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_every_documented_command_works(tmp_path: Path) -> None:
    commands = [(page, *entry) for page in PAGES for entry in documented_commands(page)]
    assert len(commands) >= 5, "the pages show hardly any command"
    async with running(tmp_path, shards=8, gateways=2) as cluster:
        for page, command, expected in commands:
            process = await asyncio.create_subprocess_shell(
                f"set -eo pipefail; {translated(command, cluster)}",
                executable="/bin/bash",
                cwd=tmp_path,
                env=environment(cluster),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            output, errors = await asyncio.wait_for(process.communicate(), 60)
            where = f"{page.relative_to(ROOT)}: $ {command}"
            assert process.returncode == 0, f"{where}\n{output.decode()}{errors.decode()}"
            check_output(command, expected, output.decode())
            print(where)


def test_every_documented_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for line in re.findall(r"\bmake ((?:[a-z][a-z0-9-]* ?)+)", code_of(page.read_text())):
            unknown = [word for word in line.split() if word not in targets]
            assert not unknown, f"{page.name} shows `make {line}`; no such target: {unknown}"


def code_of(text: str) -> str:
    """Only what is marked as code: prose may use the word make."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    fenced = [re.sub(r"\s#.*$", "", block, flags=re.MULTILINE) for block in fenced]
    return "\n".join([*fenced, *re.findall(r"`([^`\n]+)`", text)])


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}, which is not there"


def test_every_test_that_a_page_names_is_there() -> None:
    """A claim that a test backs is worth as much as the test: renamed or deleted ones are found here."""
    named = 0
    for page in PAGES:
        text = page.read_text()
        for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
            named += 1
            assert (ROOT / file).is_file(), f"{page.name} names {file}, which is not there"
            defined = f"def {name}(" in (ROOT / file).read_text()
            assert not name or defined, f"{page.name} names {name}, which is not in {file}"
        for patch in re.findall(r"planted/`([\w.-]+)`", text):
            named += 1
            assert (ROOT / "tests/simulation/planted" / patch).is_file(), f"{page.name} names the patch {patch}"
    assert named > 50, "the pages name hardly any test"
