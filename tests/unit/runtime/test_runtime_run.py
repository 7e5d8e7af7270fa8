"""The main program of a service, as a real process: signals and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, sys
from typing import ClassVar
from flotta_runtime import run
from flotta_runtime.errors import InvariantError, StartupError
from flotta_runtime.settings import Settings
from flotta_runtime.tasks import Supervisor

MODE = sys.argv.pop(1)

class Demo(Settings):
    service: ClassVar[str] = "demo"

class Service:
    def __init__(self):
        self.supervisor = Supervisor("demo")
    async def wait(self):
        await self.supervisor.wait()
    async def stop(self):
        if MODE == "hang":
            await asyncio.Event().wait()
        await self.supervisor.stop()

async def work():
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    if MODE == "invariant":
        raise InvariantError("two voters")
    if MODE == "task":
        raise ValueError("host failed")
    await asyncio.Event().wait()

async def start(settings):
    if MODE == "refuse":
        raise StartupError("the data directory belongs to node-2")
    if MODE == "bug":
        raise KeyError("oops")
    if MODE == "slow-start":
        sys.stdout.write("ready\\n")
        sys.stdout.flush()
        await asyncio.Event().wait()
    service = Service()
    await service.supervisor.start()
    service.supervisor.spawn("work", work())
    return service

sys.exit(run.main(Demo, start))
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "demo_service.py"
    path.write_text(PROGRAM)
    return path


def launch(program: Path, mode: str, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(program), mode, "--log-format", "json", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_0(program: Path, number: signal.Signals) -> None:
    process = launch(program, "serve")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err


def test_a_signal_during_start_stops_it_with_0(program: Path) -> None:
    process = launch(program, "slow-start")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err


@pytest.mark.parametrize(
    ("mode", "flags", "code", "words"),
    [
        ("refuse", (), 1, "flotta-demo: the data directory belongs to node-2\n"),
        ("bug", (), 1, "could not start: KeyError"),
        ("serve", ("--log-level", "loud"), 2, "flotta-demo: log_level"),
        ("invariant", (), 70, "two voters"),
        ("task", (), 70, "task work failed: ValueError: host failed"),
    ],
)
def test_exit_codes(program: Path, mode: str, flags: tuple[str, ...], code: int, words: str) -> None:
    process = launch(program, mode, *flags)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert words in err


def test_a_stop_that_hangs_is_cut_off(program: Path) -> None:
    process = launch(program, "hang", "--stop-timeout-ms", "50")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "took too long" in err
