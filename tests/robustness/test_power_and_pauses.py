"""Faults that only real processes and a real file system have: a power cut, a paused leader, a full disk.

The power cut is an ext4 on a loop device shut down without flushing anything: what was not fsynced is gone when it is
mounted again. Needs root, as `make test` documents.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flotta_runtime.hashing import shard_index
from flotta_runtime.settings import Transport
from load import Load, under_load
from process_cluster import Client, ProcessCluster, running, until

SHARDS = 4
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
BOTH = pytest.mark.parametrize("transport", ["native", "grpcio"])


def sh(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture
def loop_disk(tmp_path: Path) -> Iterator[Path]:
    """A small ext4 of its own, mounted for the time of the test."""
    image, mount = tmp_path / "disk.img", tmp_path / "disk"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(3 << 30)
    sh("mkfs.ext4", "-q", "-E", "lazy_itable_init=1", str(image))
    sh("mount", "-o", "loop", str(image), str(mount))
    try:
        yield mount
    finally:
        if os.path.ismount(mount):
            sh("umount", str(mount))
        image.unlink()


async def acknowledged(load: Load, total: int) -> None:
    goal = load.total() + total

    async def reached() -> bool:
        return load.total() >= goal

    await until(reached, f"{total} more acknowledged writes")


async def test_acknowledged_writes_survive_a_power_cut_of_all_nodes(loop_disk: Path, tmp_path: Path) -> None:
    async with running(loop_disk, shards=SHARDS, gateways=1) as cluster:
        load = Load([cluster.gateway_address()], [b"power %d" % n for n in range(12)])
        async with under_load(load):
            await acknowledged(load, 500)
            # Nothing is flushed; every write and fsync fails from here on.
            sh("xfs_io", "-x", "-c", "shutdown", str(loop_disk))
            load.stopping = True
        # The pid files went with the power; the processes are found by the ports they were given.
        kill_by_environment(cluster)
        await until(lambda: _unmounted(loop_disk), "the disk can be taken off")
        image = tmp_path / "disk.img"
        sh("mount", "-o", "loop", str(image), str(loop_disk))
        await cluster.command("start")

        async def served() -> bool:
            client = Client(cluster.gateway_address())
            try:
                return (await client.get(load.keys[0], timeout=2)).status.code == 1
            finally:
                await client.close()

        await until(served, "the cluster serves after the power came back")
        checked = await load.verify(cluster.gateway_address())
        print(f"{load.total()} writes were acknowledged before the power cut; {checked} keys checked after it")


def kill_by_environment(cluster: ProcessCluster) -> None:
    """SIGKILL every process that was started with this cluster's data directory, and nothing else."""
    mark = f"DATA_DIR={cluster.environment['DATA_DIR']}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark in variables:
                os.kill(int(folder.name), signal.SIGKILL)


async def _unmounted(mount: Path) -> bool:
    command = ["umount", str(mount)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=30, check=False)
    return done.returncode == 0


@BOTH
async def test_a_paused_leader_serves_nothing_stale(tmp_path: Path, transport: Transport) -> None:
    async with running(tmp_path, shards=SHARDS, gateways=2, transport=transport) as cluster:
        first, second = Client(cluster.gateway_address(1)), Client(cluster.gateway_address(2))
        key = b"paused"
        assert (await first.put(key, b"old")).status.code == 1
        shard_id = f"shard-{shard_index(key, SHARDS)}"
        victim = (await cluster.shards())[shard_id]["leader"]
        os.kill(cluster.pid(victim), signal.SIGSTOP)
        paused = time.monotonic()

        async def written_elsewhere() -> bool:
            return bool((await second.put(key, b"new", timeout=3)).status.code == 1)

        await until(written_elsewhere, "another leader takes the write")
        print(f"another leader wrote {time.monotonic() - paused:.2f} s after the pause")
        reads = [asyncio.create_task(client.get(key, timeout=60)) for client in (first, second) for _ in range(8)]
        await asyncio.sleep(0)
        os.kill(cluster.pid(victim), signal.SIGCONT)
        answers = await asyncio.gather(*reads)
        values = {answer.kv.value for answer in answers if answer.status.code == 1}
        assert values == {b"new"}, values
        await first.close()
        await second.close()
