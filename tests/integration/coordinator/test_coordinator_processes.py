"""Real coordinator processes: kill -9 of the leader and of everybody, and starts that must be refused."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from coordinator_harness import TOKEN, Client, eventually, free_ports, join_nodes, report_leaders
from flotta_proto.kvdb import coordinator_pb2 as pb


class Processes:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.peers = [(f"c{number}", f"127.0.0.1:{port}") for number, port in enumerate(free_ports(3), start=1)]
        self.running: dict[str, asyncio.subprocess.Process] = {}
        self.clients = {name: Client(address) for name, address in self.peers}

    def arguments(self, name: str) -> list[str]:
        return [
            *("--node-id", name, "--peers", ",".join(f"{peer}={address}" for peer, address in self.peers)),
            *("--data-dir", str(self.root / name), "--listen", dict(self.peers)[name]),
            *("--http-listen", "127.0.0.1:0", "--election-timeout-ms", "500", "--raft-heartbeat-ms", "100"),
            *("--suspect-after-ms", "600000", "--dead-after-ms", "1200000"),
        ]

    async def start(self, *names: str) -> None:
        for name in names:
            with (self.root / f"{name}.log").open("ab") as log:
                self.running[name] = await spawn(self.arguments(name), stdout=log, stderr=log)

    async def kill(self, *names: str) -> None:
        for name in names:
            process = self.running.pop(name)
            process.send_signal(signal.SIGKILL)
            await process.wait()

    async def leader(self) -> str:
        async def ask() -> str:
            for name in self.running:
                try:
                    reply = await self.clients[name].coordinator.GetCoordinatorLeader(
                        pb.GetCoordinatorLeaderRequest(), timeout=2, wait_for_ready=True
                    )
                except grpc.aio.AioRpcError:
                    continue
                if reply.is_leader:
                    return name
            return ""

        found: str = await eventually(ask, "no coordinator leads")
        return found

    async def close(self) -> None:
        for client in self.clients.values():
            await client.close()
        await self.kill(*self.running)


async def spawn(arguments: list[str], **streams: object) -> asyncio.subprocess.Process:
    environment = {**os.environ, "KVDB_INTERNAL_GRPC_TOKEN": TOKEN}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flotta_coordinator", *arguments, env=environment, **streams
    )


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    cluster = Processes(tmp_path)
    await cluster.start("c1", "c2", "c3")
    yield cluster
    await cluster.close()


async def test_the_map_survives_kill_minus_nine(processes: Processes) -> None:
    leader = await processes.leader()
    client = processes.clients[leader]
    await join_nodes(client, 3)
    assert (await client.init(8, 3)).success
    await report_leaders(client)
    assert not (await client.init(9, 3)).success
    before = await client.map()

    await processes.kill(leader)
    successor = await processes.leader()
    after = await processes.clients[successor].map()
    assert after == before
    assert (await processes.clients[successor].register("node-4", "h:4")).map_version == before.map_version + 1
    before = await processes.clients[successor].map()

    await processes.kill(*processes.running)
    await processes.start("c3", "c1", "c2")
    await processes.leader()
    for name in processes.running:
        assert await processes.clients[name].map() == before


async def refused(arguments: list[str]) -> tuple[int, str]:
    pipe = asyncio.subprocess.PIPE
    process = await spawn(arguments, stdout=pipe, stderr=pipe)
    _, stderr = await process.communicate()
    return process.returncode or 0, stderr.decode()


async def test_a_wrong_start_ends_with_one_sentence(processes: Processes) -> None:
    await processes.leader()
    code, said = await refused(processes.arguments("c1"))
    assert code == 1
    assert "is in use by another process" in said and "Traceback" not in said
    await processes.kill("c1")
    code, said = await refused([*processes.arguments("c1"), "--peers", "c1=127.0.0.1:1"])
    assert code == 1
    assert "belongs to the coordinators c1, c2, c3, but peers says c1" in said and "Traceback" not in said
    code, said = await refused(["--node-id", "c1", "--peers", "c1=h:1,c2=h:2"])
    assert code == 2
    assert said.count("\n") == 1 and "there must be 1, 3 or 5" in said
    moved = processes.root / "c1"
    moved.rename(processes.root / "gone")
    code, said = await refused(processes.arguments("c1"))
    assert code == 1
    assert "cannot come back under its old name" in said and "Traceback" not in said
