"""The whole system in one process: coordinator, storage node, gateway and admin service, on loopback.

They are the same services as in a cluster of many machines, started by the same functions and talking over the same
ports; only their number differs. Gateway and admin ports are the user's to choose; the others are whatever is free,
and the addresses are in `endpoints.json` in the data directory, where the command line finds them.

Invariant: services stop in the reverse order of their start, whatever the reason.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flotta.endpoints import ENDPOINT_FILE
from flotta_admin.service import start as start_admin
from flotta_admin.settings import AdminSettings
from flotta_coordinator.app import start as start_coordinator
from flotta_coordinator.settings import CoordinatorSettings
from flotta_gateway.app import start as start_gateway
from flotta_gateway.settings import GatewaySettings
from flotta_runtime.errors import StartupError
from flotta_runtime.logging import get_logger
from flotta_runtime.run import Service
from flotta_runtime.server import channel
from flotta_runtime.settings import TlsSettings
from flotta_storage.app import start as start_storage
from flotta_storage.settings import StorageSettings
from pydantic import SecretStr

from flotta_dev.bootstrap import bootstrap
from flotta_dev.secrets_file import API_KEY_FILE, TOKEN_FILE, read_or_make
from flotta_dev.settings import DevSettings

HOST = "127.0.0.1"
ANY_PORT = f"{HOST}:0"
COORDINATOR_ID = "coordinator-1"
NODE_ID = "node-1"
ZONE = "local"
# One voter elects itself, so only the length of its first wait matters.
TICK_MS = 20
ELECTION_TICKS = 5


class DevCluster:
    """All services of one data directory; made by `start`."""

    def __init__(self, settings: DevSettings) -> None:
        self._settings = settings
        self._running: list[Service] = []
        self._stopped = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._log = get_logger("dev")
        self.gateway_address = ""
        self.admin_url = ""
        self.coordinator_address = ""
        self.storage_address = ""
        self.shards = 0

    async def start(self) -> None:
        """Start everything; returns when every shard serves. StartupError with one sentence if that fails."""
        directory = self._settings.data_dir
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartupError(f"data directory {directory} cannot be made: {error.strerror}") from error
        token = SecretStr(read_or_make(directory / TOKEN_FILE))
        api_key = SecretStr(read_or_make(directory / API_KEY_FILE))
        try:
            await self._start_all(directory, token, api_key)
        except BaseException:
            await self.stop()
            raise

    async def _start_all(self, directory: Path, token: SecretStr, api_key: SecretStr) -> None:
        settings = self._settings
        self.coordinator_address = f"{HOST}:{_free_port()}"
        coordinators = (self.coordinator_address,)
        files = {name: getattr(settings, name) for name in TlsSettings.model_fields if name.startswith("tls_")}
        shared: dict[str, Any] = {**files, "internal_token": token}
        # The coordinator's directory is locked first: a second process on the same data ends here.
        coordinator = await start_coordinator(
            CoordinatorSettings(
                node_id=COORDINATOR_ID,
                peers=((COORDINATOR_ID, self.coordinator_address),),
                listen=self.coordinator_address,
                http_listen=ANY_PORT,
                data_dir=directory / COORDINATOR_ID,
                transport=settings.transport,
                **shared,
            )
        )
        self._running.append(coordinator)
        storage = await start_storage(
            StorageSettings(
                node_id=NODE_ID,
                listen=ANY_PORT,
                http_listen=ANY_PORT,
                coordinators=coordinators,
                data_dir=directory / NODE_ID,
                zone=ZONE,
                transport=settings.transport,
                **shared,
                tick_ms=TICK_MS,
                election_ticks=ELECTION_TICKS,
            )
        )
        self._running.append(storage)
        self.storage_address = storage.address
        gateway = await start_gateway(
            GatewaySettings(
                listen=f"{HOST}:{settings.gateway_port}",
                http_listen=ANY_PORT,
                coordinators=coordinators,
                transport=settings.transport,
                **shared,
            )
        )
        self._running.append(gateway)
        self.gateway_address = f"{HOST}:{gateway.port}"
        admin = await start_admin(
            AdminSettings(
                listen=f"{HOST}:{settings.admin_port}",
                coordinators=coordinators,
                api_key=api_key,
                backup_dir=directory / "backups",
                **shared,
            )
        )
        self._running.append(admin)
        self.admin_url = f"{'https' if settings.tls_cert_file else 'http'}://{HOST}:{admin.port}"
        await self._bootstrap(token)
        _write_endpoints(directory / ENDPOINT_FILE, self, settings.tls_ca_file)

    async def wait(self) -> None:
        """Return once stopped; raise as soon as a service fails."""
        async with asyncio.TaskGroup() as group:
            for service in self._running:
                group.create_task(service.wait())
            await self._stopped.wait()

    async def stop(self) -> None:
        """Stop everything, last started first. May be called more than once."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop_all(), name="dev.stop")
        await asyncio.shield(self._stopping)

    async def _stop_all(self) -> None:
        for service in reversed(self._running):
            try:
                await service.stop()
            except Exception as error:
                self._log.error("a service did not stop cleanly", part=type(service).__name__, exc_info=error)
        self._stopped.set()

    async def _bootstrap(self, token: SecretStr) -> None:
        settings = self._settings
        link = channel(self.coordinator_address, token.get_secret_value(), tls=settings.tls())
        try:
            state = await bootstrap(
                link, NODE_ID, self.storage_address, ZONE, settings.shards, settings.ready_timeout_ms
            )
        finally:
            await link.close()
        self.shards = len(state.shards)
        if self.shards != settings.shards:
            self._log.warning("the data directory keeps its shards", shards=self.shards, asked_for=settings.shards)


def _free_port() -> int:
    """A loopback port nobody listens on. The coordinator must know its own address before it binds."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _write_endpoints(path: Path, cluster: DevCluster, tls_ca_file: Path | None) -> None:
    content = {
        "pid": str(os.getpid()),
        "gateway": cluster.gateway_address,
        "coordinators": cluster.coordinator_address,
        "admin": cluster.admin_url,
    }
    if tls_ca_file is not None:
        content["tls_ca"] = str(tls_ca_file.resolve())
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    fresh.replace(path)


def announcement(cluster: DevCluster, data_dir: Path, took_s: float) -> str:
    """What a person wants to know once it runs."""
    return (
        f"Flotta runs ({cluster.shards} shards, ready in {took_s:.1f} s). Data: {data_dir.resolve()}\n"
        f"  gateway   {cluster.gateway_address}\n"
        f"  admin     {cluster.admin_url}   (X-Admin-Api-Key: {data_dir / API_KEY_FILE})\n"
        f"Try:  flotta put hello world  &&  flotta get hello\n"
        f"Stop it with Ctrl-C."
    )


async def start(settings: DevSettings, say: Callable[[str], object] | None = None) -> DevCluster:
    """A serving cluster; says where it listens."""
    began = time.monotonic()
    cluster = DevCluster(settings)
    await cluster.start()
    text = announcement(cluster, settings.data_dir, time.monotonic() - began)
    if say is None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    else:
        say(text)
    return cluster
