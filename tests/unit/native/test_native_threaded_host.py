"""Threaded hosts in one process, joined by a loop-back of frames: the same calls, an eventfd instead of `drive`."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import flotta_native as native
import pytest
from native_cluster import GROUP, replica

PATIENCE_S = 60.0


class Loopback:
    """Hosts whose frames go straight to each other."""

    def __init__(self, root: Path) -> None:
        self.hosts = {
            number: native.RaftHost(number, str(root / f"node-{number}"), applied={}, tick_ms=10, election_ticks=100)
            for number in (1, 2, 3)
        }
        self.applied: dict[int, list[bytes]] = {number: [] for number in self.hosts}
        self.answered: asyncio.Queue[int] = asyncio.Queue()
        self.reads: asyncio.Queue[tuple[int, int, int]] = asyncio.Queue()
        self.dropped: asyncio.Queue[tuple[int, int, int, int]] = asyncio.Queue()
        self.everywhere = asyncio.Event()
        self.leader: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def drain(self, number: int) -> None:
        batch = self.hosts[number].poll()
        for to, frame in batch.messages:
            self.hosts[to].step(frame)
        for _, role, _, _ in batch.roles:
            if role == native.ROLE_LEADER and not self.leader.done():
                self.leader.set_result(number)
        for _, _, _, request, kind, payload in batch.applies:
            if kind == native.APPLY_NORMAL:
                assert isinstance(payload, bytes)
                self.applied[number].append(payload)
            if request:
                self.answered.put_nowait(request)
        if all(len(values) == 500 for values in self.applied.values()):
            self.everywhere.set()
        for read in batch.reads:
            self.reads.put_nowait(read)
        for dropped in batch.dropped:
            self.dropped.put_nowait(dropped)


@asynccontextmanager
async def running(root: Path) -> AsyncIterator[Loopback]:
    loopback = Loopback(root)
    loop = asyncio.get_running_loop()
    for number, host in loopback.hosts.items():
        host.create_group(GROUP, replica(number), [replica(other) for other in loopback.hosts])
        loop.add_reader(host.notify_fd(), loopback.drain, number)
    for host in loopback.hosts.values():
        host.start()
    # Patient, for a busy machine: the first leader is made by hand, and stays.
    loopback.hosts[1].campaign(GROUP)
    try:
        yield loopback
    finally:
        for host in loopback.hosts.values():
            loop.remove_reader(host.notify_fd())
            host.stop()


async def test_three_threads_elect_replicate_and_read(tmp_path: Path) -> None:
    async with running(tmp_path) as loopback, asyncio.timeout(PATIENCE_S):
        leader = await loopback.leader
        host = loopback.hosts[leader]
        host.propose_many([(GROUP, request, b"%d" % request) for request in range(1, 501)])
        assert [await loopback.answered.get() for _ in range(500)] == list(range(1, 501))
        host.read_index_many([(GROUP, 7)])
        group, read, index = await loopback.reads.get()
        assert (group, read) == (GROUP, 7)
        assert index >= 502
        status = host.status([GROUP])[0]
        assert status.role == native.ROLE_LEADER
        await loopback.everywhere.wait()
        # Read one after the other, and one more may come in between.
        while sum(host.sync_times()[0]) != host.log_stats().syncs:  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.01)
        assert host.log_stats().syncs > 0
    assert list(loopback.applied.values()) == [[b"%d" % request for request in range(1, 501)]] * 3
    for host in loopback.hosts.values():
        with pytest.raises(native.HostFailed, match="stopped"):
            host.propose_many([(GROUP, 1, b"late")])
        assert host.groups() == [GROUP]


def wait_readable(host: native.RaftHost) -> None:
    readable, _, _ = select.select([host.notify_fd()], [], [], PATIENCE_S)
    assert readable, "nobody was told"


def test_a_failed_sync_is_told_through_the_eventfd_and_nothing_hangs() -> None:
    disk = native.SimDisk(1)
    host = native.RaftHost(1, "raft", applied={}, disk=disk, tick_ms=10)
    host.create_group(GROUP, replica(1), [replica(1)])
    host.start()
    host.status()
    disk.fail_sync_after(0)
    host.campaign(GROUP)
    for _ in range(1000):
        wait_readable(host)
        try:
            host.poll()
        except native.HostFailed as failed:
            assert "simulated sync failure" in str(failed)
            break
    else:
        raise AssertionError("the failure was never reported")
    with pytest.raises(native.HostFailed):
        host.status()
    with pytest.raises(native.HostFailed):
        host.propose_many([(GROUP, 1, b"x")])
    host.stop()
    host.stop()


def test_a_flood_of_proposals_is_refused_not_queued(tmp_path: Path) -> None:
    host = native.RaftHost(1, str(tmp_path), applied={}, inbox_bytes_max=64 << 10)
    host.create_group(GROUP, replica(1), [replica(1)])
    host.start()
    host.campaign(GROUP)
    count = 4000
    for request in range(1, count + 1):
        host.propose_many([(GROUP, request, b"x" * 8000)])
    outcomes: dict[int, int] = {}
    while len(outcomes) < count:
        wait_readable(host)
        batch = host.poll()
        outcomes |= {request: 0 for _, _, _, request, _, _ in batch.applies if request}
        outcomes |= {request: reason for _, request, reason, _ in batch.dropped}
    host.stop()
    assert set(outcomes.values()) <= {0, native.DROP_OVERLOADED, native.DROP_NOT_LEADER}
    assert native.DROP_OVERLOADED in outcomes.values()


def test_manual_calls_are_refused_in_threaded_mode(tmp_path: Path) -> None:
    host = native.RaftHost(1, str(tmp_path), applied={})
    for call in (host.tick, host.drive, host.due_us, host.salvage):
        with pytest.raises(RuntimeError, match="manual mode"):
            call()
    host.start()
    with pytest.raises(RuntimeError, match="started before"):
        host.start()
    host.stop()


CHILD = """
import sys, select, flotta_native as native
host = native.RaftHost(1, sys.argv[1], applied={}, tick_ms=10)
if not host.groups():
    host.create_group(9, 1 << 32 | 1, [1 << 32 | 1])
host.start()
host.campaign(9)
request = 0
while True:
    host.propose_many([(9, request := request + 1, b"value %d" % request)])
    select.select([host.notify_fd()], [], [], 1)
    for *_, answered, kind, payload in host.poll().applies:
        if answered:
            print(payload.decode(), flush=True)
"""


def acknowledged(directory: Path, failpoints: str, *, lines: int) -> tuple[list[str], int]:
    """Run a writer until it dies by a failpoint, or kill it after some acknowledgements."""
    environment = dict(os.environ, FLOTTA_FAILPOINTS=failpoints)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory)], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        seen = []
        for line in child.stdout:
            seen.append(line.strip())
            if len(seen) == lines:
                child.send_signal(signal.SIGKILL)
        return seen, child.wait(PATIENCE_S)


@pytest.mark.parametrize("failpoint", ["raft.before_sync=abort@40", "raft.after_append=abort@60", ""])
def test_what_was_acknowledged_survives_the_death_of_the_process(tmp_path: Path, failpoint: str) -> None:
    seen, code = acknowledged(tmp_path, failpoint, lines=200)
    assert code == (86 if failpoint else -signal.SIGKILL)
    host = native.RaftHost(1, str(tmp_path), applied={}, mode="manual")
    kept = {payload.decode() for _, _, _, payload in host.log_entries(GROUP, 0, 1 << 40) if payload}
    assert seen
    assert set(seen) <= kept


def test_a_bad_failpoint_in_the_environment_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOTTA_FAILPOINTS", "raft.nowhere=abort")
    with pytest.raises(ValueError, match=r"raft\.nowhere"):
        native.RaftHost(1, str(tmp_path), applied={})
