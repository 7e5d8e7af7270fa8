"""Everything behind the ports of a storage node that is part of a cluster: engine, Raft host, replicas and their tasks.

Opening order: records, machines, log (`GroupHost.open` refuses what does not fit), then the host runs, then replicas
are recovered, and only then are requests taken. Before that the coordinators are given a short while to say what has
become of the shards meanwhile; a node goes to work without them as well. Closing is the reverse. Invariant: the request
path is attached only while the host runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import flotta_native
from flotta_consensus.aio import GroupHost
from flotta_consensus.api import Failpoints
from flotta_consensus.core.effects import HostEvent
from flotta_consensus.groups import Groups
from flotta_consensus.grpc_transport import GrpcTransport
from flotta_consensus.identity import DataDirectory
from flotta_consensus.opening import HostOptions, MissingMachine
from flotta_consensus.snapshot_files import SnapshotDamaged
from flotta_embedded.api import Engine
from flotta_embedded.machine import Machine
from flotta_embedded.registry import Registry
from flotta_embedded.rocks import RocksEngine
from flotta_runtime.clock import Clock
from flotta_runtime.errors import StartupError
from flotta_runtime.logging import get_logger
from flotta_runtime.tasks import Supervisor
from flotta_runtime.throttle import Throttle
from flotta_runtime.turns import Turns

from flotta_storage.compaction import Compactor
from flotta_storage.coordinator_link import CoordinatorLink
from flotta_storage.core.commands import new_registry
from flotta_storage.following import Following
from flotta_storage.health import HealthMonitor
from flotta_storage.heartbeat import Heartbeats
from flotta_storage.leader_duties import LeaderDuties
from flotta_storage.map_model import MapModel
from flotta_storage.map_watch import MapWatch, WatchOptions
from flotta_storage.membership import MembershipAsker
from flotta_storage.records import NodeRecords, RecordsError
from flotta_storage.replica_manager import ReplicaManager, open_machines
from flotta_storage.replica_table import ReplicaTable
from flotta_storage.settings import StorageSettings
from flotta_storage.stamping import Stamps

ENGINE_DIR = "rocks"
FIRST_MAP_MS = 2_000


@dataclass(frozen=True, slots=True)
class Shared:
    """What exists from the first moment of a node, before it has a backend."""

    settings: StorageSettings
    directory: DataDirectory
    link: CoordinatorLink
    asker: MembershipAsker
    model: MapModel
    replicas: ReplicaTable
    clock: Clock
    stamps: Stamps
    failpoints: Failpoints
    turns: Turns


class Backend:
    """Made by `open_backend`; `run` starts its tasks."""

    def __init__(
        self,
        shared: Shared,
        engine: Engine,
        records: NodeRecords,
        registry: Registry,
        machines: Mapping[int, Machine],
        host: Groups,
    ) -> None:
        settings, identity = shared.settings, shared.directory.identity
        self._shared = shared
        self.engine = engine
        self._records = records
        self._machines = machines
        self._addresses = records.addresses()
        self._log = get_logger("storage", node=identity.node_id)
        self._throttle = Throttle(shared.clock)
        self.host = host
        self.duties = LeaderDuties(
            host,
            shared.replicas,
            shared.model,
            shared.clock,
            shared.stamps.now_ms,
            self._reportable,
            Following(shared.asker.nodes, shared.model).page,
            duties_ms=settings.duties_ms,
            catch_up_entries=settings.catch_up_entries,
        )
        options = WatchOptions(poll_ms=settings.map_poll_ms, idle_ms=settings.map_idle_ms)
        self.watch = MapWatch(shared.link, shared.model, self._map_changed, options)
        self.heartbeats = Heartbeats(
            shared.link,
            shared.replicas,
            host,
            shared.model,
            self.duties.progress,
            self.duties.splitting.whole,
            self.duties.merging.caught_up,
            self.watch.nudge,
            shared.clock,
            node_id=identity.node_id,
            store_id=identity.store_id,
            heartbeat_ms=settings.heartbeat_ms,
            report_ms=settings.report_ms,
        )
        self.manager = ReplicaManager(
            shared.directory,
            engine,
            registry,
            records,
            host,
            shared.model,
            shared.replicas,
            shared.asker.ask,
            shared.failpoints,
        )
        self.compactor = Compactor(shared.replicas)
        self.health = HealthMonitor(host, shared.replicas, shared.stamps)
        host.on_role(lambda change: self._reportable())
        host.on_event(self._event)

    def address_of(self, node_num: int) -> str | None:
        """By the newest map, else as last remembered."""
        return self._shared.model.address_of_number(node_num) or self._addresses.get(node_num)

    async def run(self, supervisor: Supervisor) -> None:
        """Returns once every recorded replica is served, but for those that the map has given up."""
        supervisor.spawn("map watch", self.watch.watch())
        supervisor.spawn("map refresh", self.watch.refresh())
        if self._machines:
            await self._shared.model.known(FIRST_MAP_MS)
        supervisor.spawn("raft", self.host.run())
        await self.manager.recover(self._machines)
        self._machines = {}
        for name, work in (
            ("replicas", self.manager.run()),
            ("leader duties", self.duties.run()),
            ("heartbeats", self.heartbeats.run()),
            ("health", self.health.run()),
            ("compaction", self.compactor.run()),
        ):
            supervisor.spawn(name, work)

    async def close(self) -> None:
        await self.host.close()
        self._shared.replicas.clear()

    def close_engine(self) -> None:
        """After every task has ended."""
        self.engine.close()

    def _map_changed(self) -> None:
        view = self._shared.model.view
        addresses = {number: view.nodes[node_id] for number, node_id in view.numbers.items() if view.nodes[node_id]}
        self._addresses = addresses
        self._records.remember_addresses(addresses)
        self.manager.map_changed()
        self.heartbeats.news()

    def _reportable(self) -> None:
        self.heartbeats.news()

    def _event(self, event: HostEvent) -> None:
        if event.name in ("created", "removed"):
            return
        left_out = self._throttle.admit((event.group, event.name))
        if left_out is not None:
            fields = {"group": event.group, "name": event.name, "number": event.number, "text": event.text}
            self._log.info("raft event", **fields, left_out=left_out)


def open_backend(shared: Shared, transport: GrpcTransport) -> Backend:
    """Open everything this directory holds. Blocking; StartupError with one sentence if something does not fit."""
    directory = shared.directory
    identity = directory.identity
    try:
        engine = RocksEngine(str(directory.path / ENGINE_DIR), failpoints=shared.failpoints)
    except OSError as error:
        raise StartupError(f"the rows in {directory.path / ENGINE_DIR} cannot be opened: {error.strerror}") from error
    try:
        records = NodeRecords.open(
            engine,
            node_id=identity.node_id,
            node_num=identity.node_num,
            cluster_id=identity.cluster_id,
            formed=directory.formed,
        )
        registry = new_registry()
        machines = open_machines(engine, records, registry, shared.failpoints)
        host = GroupHost.open(
            directory.path,
            identity.node_num,
            machines,
            transport,
            options=HostOptions(
                tick_ms=shared.settings.tick_ms,
                election_ticks=shared.settings.election_ticks,
                apply_delay_ms=shared.settings.apply_delay_ms,
            ),
            failpoints=shared.failpoints,
            turns=shared.turns,
        )
    except (RecordsError, MissingMachine, SnapshotDamaged, flotta_native.LogCorruption) as error:
        engine.close()
        raise StartupError(str(error)) from error
    except OSError as error:
        engine.close()
        raise StartupError(f"data directory {directory.path} cannot be used: {error}") from error
    except ValueError as error:
        engine.close()
        raise StartupError(f"the Raft log and the rows in {directory.path} do not fit together: {error}") from error
    except BaseException:
        engine.close()
        raise
    return Backend(shared, engine, records, registry, machines, host)
