"""The `flotta` command in processes of its own, against a real cluster."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from process_cluster import ProcessCluster


class Operator:
    """The command line, with a configuration file as its only knowledge."""

    def __init__(self, cluster: ProcessCluster, config: Path) -> None:
        coordinators = ",".join(f"127.0.0.1:{cluster.coordinator_port + number}" for number in range(3))
        config.write_text(
            f'gateway = ["{cluster.gateway_address(1)}"]\n'
            f'coordinators = "{coordinators}"\n'
            f'admin = "http://127.0.0.1:{cluster.admin_port}"\n'
            'admin_key_file = "data/admin-api-key"\n'
        )
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("FLOTTA_", "KVDB_"))}
        self._environment = {**clean, "FLOTTA_CONFIG": str(config)}

    async def run(self, *arguments: str, code: int = 0) -> str:
        """What a command printed; it must end with `code`."""
        process = await self._start(*arguments)
        output, errors = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode == code, f"{arguments} ended with {process.returncode}: {errors.decode()}"
        return output.decode()

    async def told(self, *arguments: str) -> Any:
        return json.loads(await self.run(*arguments, "--json"))

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """`watch-map` while the block runs."""
        process = await self._start("watch-map", "--json")
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "flotta", *arguments),
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
