"""`flotta dev` in a process of its own, and the command line beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FLOTTA = [sys.executable, "-m", "flotta.cli"]


class Dev:
    """One run of `flotta dev`, and the command line beside it."""

    def __init__(self, data: Path, *flags: str) -> None:
        self.data = data
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(("FLOTTA_", "KVDB_"))}
        self.environ["FLOTTA_DATA"] = str(data)
        self.process = subprocess.Popen(
            [*FLOTTA, "dev", "--gateway-port", "0", "--admin-port", "0", *flags],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def announced(self) -> str:
        """What it said when it was ready; empty if it ended before that."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line.decode())
            if line.startswith(b"Stop it"):
                break
        return "".join(lines)

    def endpoints(self) -> dict[str, str]:
        content: dict[str, str] = json.loads((self.data / "endpoints.json").read_text())
        return content

    def cli(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*FLOTTA, *arguments], env=self.environ, input=stdin, capture_output=True, timeout=90)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=90)


@contextmanager
def dev(data: Path, *flags: str) -> Iterator[Dev]:
    run = Dev(data, *flags)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.communicate()
