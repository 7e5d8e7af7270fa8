"""A whole cluster in this process: one coordinator, storage nodes, a gateway, an admin service with a backup_dir."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from flotta import AsyncClient
from flotta_admin.service import AdminService
from flotta_admin.service import start as start_admin
from flotta_admin.settings import AdminSettings
from flotta_coordinator.app import start as start_coordinator
from flotta_coordinator.settings import CoordinatorSettings
from flotta_gateway.app import start as start_gateway
from flotta_gateway.settings import GatewaySettings
from flotta_storage.app import StorageNode
from flotta_storage.app import start as start_storage
from flotta_storage.settings import StorageSettings

ANY = "127.0.0.1:0"
KEY = "api-key"
SHARED: dict[str, Any] = {"internal_token": "token", "stop_timeout_ms": 1_000}


class WholeCluster:
    def __init__(self, folder: Path, backup_dir: Path | None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
        self.folder = folder
        self.backup_dir = backup_dir
        self.nodes: dict[str, StorageNode] = {}
        self.services: list[Any] = []
        self.admin: AdminService
        self.web: httpx.AsyncClient
        self.client: AsyncClient

    async def start(self, nodes: int) -> None:
        self.services.append(
            await start_coordinator(
                CoordinatorSettings(
                    node_id="c",
                    peers=(("c", self.coordinator),),
                    listen=self.coordinator,
                    http_listen=ANY,
                    data_dir=self.folder / "c",
                    suspect_after_ms=600_000,  # no verdicts on a slow machine
                    dead_after_ms=1_200_000,
                    plan_every_ms=200,
                    **SHARED,
                )
            )
        )
        await asyncio.gather(*(self.start_node(f"node-{n}") for n in range(1, nodes + 1)))
        gateway = await start_gateway(
            GatewaySettings(listen=ANY, http_listen=ANY, coordinators=(self.coordinator,), **SHARED)
        )
        self.services.append(gateway)
        self.client = AsyncClient(f"127.0.0.1:{gateway.port}", timeout_ms=20_000)
        await self.start_admin()

    async def start_node(self, node_id: str) -> None:
        self.nodes[node_id] = await start_storage(
            StorageSettings(
                node_id=node_id,
                listen=ANY,
                http_listen=ANY,
                coordinators=(self.coordinator,),
                data_dir=self.folder / node_id,
                tick_ms=20,
                election_ticks=20,  # a slow disk must not cost a leader its place
                heartbeat_ms=100,
                **SHARED,
            )
        )

    async def start_admin(self) -> None:
        self.admin = await start_admin(
            AdminSettings(
                listen=ANY,
                coordinators=(self.coordinator,),
                api_key=KEY,
                backup_dir=self.backup_dir,
                request_timeout_ms=20_000,
                **SHARED,
            )
        )
        self.web = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.admin.port}",
            headers={"X-Admin-Api-Key": KEY},
            trust_env=False,
            timeout=30,
        )

    async def stop_admin(self) -> None:
        await self.web.aclose()
        await self.admin.stop()

    async def close(self) -> None:
        await self.client.close()
        await self.stop_admin()
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))
        for service in reversed(self.services):
            await service.stop()

    async def create(self, shards: int, replication_factor: int) -> None:
        sizes = {"num_shards": shards, "replication_factor": replication_factor}

        async def created() -> bool:
            return (await self.web.post("/admin/config/shard-init", json=sizes)).status_code == 200

        async def led() -> bool:
            return all(one["leader"] for one in (await self.web.get("/admin/shards")).json())

        await until(created)
        await until(led)

    async def order(self, path: str, **body: Any) -> dict[str, Any]:
        """An order that is accepted; the operation as it began."""
        answer = await self.web.post(path, json=body)
        assert answer.status_code == 200, answer.text
        begun: dict[str, Any] = answer.json()["operation"]
        assert begun["status"] == "RUNNING"
        return begun

    async def ended(self, begun: dict[str, Any]) -> dict[str, Any]:
        """The same operation once it is over."""
        found: dict[str, Any] = {}

        async def over() -> bool:
            found.update((await self.web.get(f"/admin/ops/{begun['id']}")).json())
            return bool(found["status"] != "RUNNING")

        await until(over)
        return found

    async def map(self) -> dict[str, Any]:
        return dict((await self.web.get("/admin/cluster/shard-map")).json())


async def until(check: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await check():  # noqa: ASYNC110 - any state at all, which nobody signals
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(folder: Path, *, nodes: int, backup_dir: Path | None) -> AsyncIterator[WholeCluster]:
    made = WholeCluster(folder, backup_dir)
    try:
        await made.start(nodes)
        yield made
    finally:
        await made.close()
