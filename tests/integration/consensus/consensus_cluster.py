"""Processes of a cluster inside one test: each has its data directory, server, transport and GroupHost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import flotta_native
from consensus_disk_machine import DiskMachine
from flotta_consensus.aio import GroupHost, HostOptions
from flotta_consensus.api import Committed, Members, RoleChange, Unknown, replica_id
from flotta_consensus.core.compaction import LogPolicy
from flotta_consensus.core.driver import DriverLimits
from flotta_consensus.core.effects import HostEvent
from flotta_consensus.failpoints import CONSENSUS_FAILPOINTS, ArmedFailpoints
from flotta_consensus.frame_link import FrameLink
from flotta_consensus.grpc_transport import GrpcTransport
from flotta_consensus.identity import DataDirectory
from flotta_consensus.native_transport import make_transport
from flotta_consensus.peer_link import LinkOptions
from flotta_runtime.links import Links
from flotta_runtime.server import build_server
from flotta_runtime.turns import Turns

GROUP = 1
CLUSTER = "test-cluster"
TOKEN = "test-token"
SMALL_LOG = LogPolicy(bytes_max=64 << 10, entries_max=400, reserve_entries=20, kept_bytes_max=128 << 10)
# Leaders are to stay where nothing is done to them, however slow the disk.
OPTIONS = HostOptions(
    tick_ms=20,
    election_ticks=20,
    segment_bytes=1 << 20,
    snapshot_timeout_ticks=200,
    limits=DriverLimits(log=SMALL_LOG),
)
STEP_MS = 60_000  # a bound for anything to happen at all, not an expectation


def replica(node_num: int, sequence: int = 1) -> int:
    return replica_id(node_num, sequence)


class Process:
    """One process, started and stopped at will. Its address stays the same."""

    def __init__(self, root: Path, node_num: int, cluster: Cluster) -> None:
        self.node_num = node_num
        self.root = root / f"node-{node_num}"
        self.cluster = cluster
        self.address = ""
        self.reports: list[str] = []
        self.events: list[HostEvent] = []
        self.roles: list[RoleChange] = []
        self.host: GroupHost
        self.directory: DataDirectory
        self.transport: GrpcTransport
        self._muted: set[int] = set()
        self._native: Links | None = None
        self._running: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def muted(self) -> set[int]:
        """Frames to these nodes vanish."""
        return self._muted

    @muted.setter
    def muted(self, node_nums: set[int]) -> None:
        self._muted = node_nums
        for node_num in node_nums:
            link = self.transport._links.get(node_num)
            session = link._session if link is not None else None
            if isinstance(session, FrameLink) and session._link is not None and self._native is not None:
                self._native.close(session._link, "muted")

    def _address_of(self, node_num: int) -> str | None:
        """With native links what is not sent there must not be connected either."""
        if self.cluster.native and node_num in self._muted:
            return None
        return self.cluster.address_of(node_num)

    def machine(self, group: int = GROUP) -> DiskMachine:
        found = self.host.machine(group)
        assert isinstance(found, DiskMachine)
        return found

    def new_machine(self, group: int = GROUP, birth: list[int] | None = None) -> DiskMachine:
        return DiskMachine(self.root / "state" / str(group), birth or ())

    async def start(self, options: HostOptions = OPTIONS, failpoints: str = "") -> None:
        points = ArmedFailpoints(failpoints, CONSENSUS_FAILPOINTS)
        self.directory = DataDirectory.open(self.root, f"node-{self.node_num}")
        self.directory.adopt(CLUSTER, self.node_num)
        turns = Turns()
        if self.cluster.native:
            hub = flotta_native.LinkHub(keepalive_ms=500, keepalive_timeout_ms=500)
            self._native = Links(hub, turns, report=self.reports.append)
            self._reading = asyncio.create_task(self._native.run())
        self.transport = transport = make_transport(
            self._native,
            self.directory,
            self._address_of,
            token=TOKEN,
            options=LinkOptions(backoff_longest_ms=200, connect_timeout_ms=500),
            failpoints=points,
            report=self.reports.append,
        )
        send = transport.send
        transport.send = (  # type: ignore[method-assign]
            lambda node, frame: None if node in self.muted else send(node, frame)
        )
        state = self.root / "state"
        machines = {int(path.name): DiskMachine(path) for path in state.iterdir()} if state.exists() else {}
        try:
            self.host = GroupHost.open(
                self.root, self.node_num, machines, transport, options=options, failpoints=points, turns=turns
            )
        except BaseException:
            await self._end_links()
            self.directory.close()
            raise
        self.host.on_role(self.roles.append)
        self.host.on_event(self.events.append)
        self._server = build_server(
            [(lambda _, server: transport.add_to(server), transport, "flotta.raft.v1.RaftTransport")],
            listen=self.address or "127.0.0.1:0",
            token=TOKEN,
            transport="native" if self.cluster.native else "grpcio",
            links=self._native.hub if self._native is not None else None,
            turns=turns,
        )
        self.address = f"127.0.0.1:{await self._server.start()}"
        self._running = asyncio.create_task(self.host.run())

    async def stop(self) -> None:
        """Nothing is flushed: what the machine had in memory only is gone, as after a kill."""
        if self._running is not None:
            await self.host.close()
            await self.ended()

    def has_ended(self) -> bool:
        return self._running is None or self._running.done()

    async def ended(self) -> None:
        """Wait for the host to end by itself; raises why."""
        running, self._running = self._running, None
        assert running is not None
        try:
            await running
        finally:
            await self._end_links()
            await self._server.stop(0)
            self.directory.close()

    async def _end_links(self) -> None:
        if self._native is not None and self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._native.shut_down()
            self._native = self._reading = None


class Cluster:
    """Processes by node number; `native` ones speak links."""

    def __init__(self, root: Path, *, native: bool = False) -> None:
        self.root = root
        self.native = native
        self.processes: dict[int, Process] = {}

    def address_of(self, node_num: int) -> str | None:
        found = self.processes.get(node_num)
        return found.address or None if found is not None else None

    async def add(self, node_num: int, options: HostOptions = OPTIONS) -> Process:
        process = Process(self.root, node_num, self)
        self.processes[node_num] = process
        await process.start(options)
        return process

    async def bear(self, count: int, options: HostOptions = OPTIONS) -> list[Process]:
        """A group of voters, born on nodes 1..count."""
        processes = [await self.add(number, options) for number in range(1, count + 1)]
        voters = [replica(number) for number in range(1, count + 1)]
        for process in processes:
            machine = process.new_machine(birth=voters)
            await process.host.create_group(GROUP, replica(process.node_num), voters, machine)
        processes[0].host.campaign(GROUP)  # nobody need wait for an election timeout
        return processes

    async def leader(self, among: list[Process] | None = None) -> Process:
        """The process whose replica says it leads, and that can commit."""
        while True:
            for process in among or self.processes.values():
                if not process.has_ended() and (role := process.host.role(GROUP)) and role.is_leader:
                    return process
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        for process in self.processes.values():
            await process.stop()


async def write(cluster: Cluster, rows: list[str], among: list[Process] | None = None) -> list[Committed]:
    """Propose until each is certainly committed once: rejected ones go again, unknown ones fail the test."""
    done: list[Committed] = []
    left = rows
    while left:
        leader = await cluster.leader(among)
        outcomes = await leader.host.propose_many(GROUP, [row.encode() for row in left], STEP_MS)
        assert not [each for each in outcomes if isinstance(each, Unknown)]
        done.extend(each for each in outcomes if isinstance(each, Committed))
        left = [row for row, each in zip(left, outcomes, strict=True) if not isinstance(each, Committed)]
        if left:
            await asyncio.sleep(0.05)
    return done


async def equal(processes: list[Process]) -> list[str]:
    """Wait until all replicas are at the same index, and compare what they hold."""
    await until(lambda: len({process.machine().index for process in processes}) == 1, "all replicas at the same index")
    states = [process.machine().dump() for process in processes]
    assert len(set(states)) == 1
    return processes[0].machine().rows


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that must come; the test's own timeout bounds it with a name."""
    try:
        async with asyncio.timeout(STEP_MS / 1000):
            while not condition():  # noqa: ASYNC110 - conditions of many kinds, none of which could set an event
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"never happened: {what}") from None


def voters_of(*node_nums: int) -> Members:
    return Members(voters=tuple(replica(number) for number in node_nums))
