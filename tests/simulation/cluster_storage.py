"""A storage node of the simulated cluster: the parts of `flotta_storage.app` and its `Backend`, over a simulated host.

Gateways reach it over links, whose frames and answers are production's. Modelled: the identity file (durable when it is
written), and that Raft peers know each other (a frame for another node number than the one it reaches is dropped).
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster_links import GatewayLink
from cluster_node import ClusterNode, supervised
from cluster_wires import End
from flotta_consensus.api import StateMachine
from flotta_consensus.core.clock_bounds import PeerClocks
from flotta_consensus.identity import DataDirectory, Identity, Stored
from flotta_consensus.sim.checkers import SafetyViolation
from flotta_consensus.sim.failpoints import ProcessKilled
from flotta_consensus.sim.groups import SimGroups
from flotta_consensus.sim.loop import SimLoop
from flotta_consensus.sim.node import SimNode
from flotta_consensus.sim.observed import ObservedMachine
from flotta_embedded.machine import Machine
from flotta_proto.flotta import cluster_pb2
from flotta_proto.flotta.storage_pb2 import Reply
from flotta_proto.flotta.storage_pb2_grpc import add_ShardsServicer_to_server
from flotta_runtime.turns import Turns
from flotta_storage.backend import Backend, Shared
from flotta_storage.batch_handler import BatchHandler, Deadlines
from flotta_storage.budget import Budget
from flotta_storage.coordinator_link import CoordinatorLink
from flotta_storage.core.commands import new_registry
from flotta_storage.core.limits import Limits
from flotta_storage.heartbeat import Refused, say_hello
from flotta_storage.hints import Hints
from flotta_storage.map_model import MapModel
from flotta_storage.membership import MembershipAsker
from flotta_storage.outbox import Connections
from flotta_storage.reading import ReadBatcher
from flotta_storage.records import NodeRecords
from flotta_storage.replica_manager import open_machines
from flotta_storage.replica_table import ReplicaTable
from flotta_storage.scanning import Scanner
from flotta_storage.settings import StorageSettings
from flotta_storage.shards_service import ShardsService
from flotta_storage.stamping import Stamps
from shard_store import digest_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster_world import Cluster


class SimDirectory(DataDirectory):
    """The identity of a data directory, kept by the simulated disk."""

    def __init__(self, node: StorageProcess) -> None:
        self._node = node
        nowhere = Path("/nonexistent") / node.name
        super().__init__(nowhere, -1, node.stored, is_new=False, failpoints=node.failpoints)

    def _store(self, stored: Stored) -> None:
        self._failpoints.reach("consensus.before_identity_write")
        self._node.stored = self._stored = stored
        self._failpoints.reach("consensus.after_identity_write")


class _Uncounted:
    """Nobody counts here."""

    def batch(self, operations: int) -> None:
        """One batch of operations."""

    def answered(self, replies: Sequence[Reply]) -> None:
        """Their answers."""


class StorageProcess(ClusterNode):
    def __init__(self, cluster: Cluster, number: int, settings: StorageSettings) -> None:
        super().__init__(cluster, number, settings.node_id, cluster.observer)
        self.settings = settings
        store_id = hashlib.sha256(f"{cluster.world.seed}/{self.name}".encode()).hexdigest()[:32]
        self.stored = Stored(Identity(self.name, store_id), formed=False)
        self.backend: Backend | None = None
        self.table = ReplicaTable()
        self.model = MapModel()
        self.peers = PeerClocks()
        self.handler: BatchHandler | None = None
        self.budget = Budget(settings.operations_max, settings.operation_bytes_max)
        self.connections: Connections | None = None

    # -- what the simulation asks ---------------------------------------------------------------------------------

    @property
    def node_num(self) -> int:
        return self.stored.identity.node_num

    def replica_of(self, group: int) -> int:
        if self.backend is None:
            raise SafetyViolation(f"{self.name} leads group {group} before it serves")
        return self.backend.manager.state.replicas[group].replica

    def peer(self, node_num: int) -> SimNode | None:
        address = self.backend.address_of(node_num) if self.backend is not None else None
        found = self.cluster.wires.endpoints.get(address or "")
        return found if isinstance(found, StorageProcess) and not found.gone else None

    def takes(self, node_num: int) -> bool:
        return self._host is not None and self.backend is not None and self.node_num == node_num

    def receive(self, source: SimNode, node_num: int, frame: bytes) -> None:
        if self.takes(node_num) and isinstance(source, StorageProcess):
            self.peers.heard(source.node_num, source.wall_ms(), self.now_ms)
            self.driver.receive(frame)

    def dropped(self) -> None:
        super().dropped()
        self.backend = None
        self.handler = None
        self.connections = None
        self.model = MapModel()
        self.table = ReplicaTable()

    def judged(self, error: BaseException) -> BaseException:
        """A node that was taken off the map is told so, and ends."""
        if isinstance(error, Refused) and self.name in self.cluster.map_rules.newest.gone:
            self.dismissed = True
            self.world.transcript.count("nodes_dismissed")
            return ProcessKilled("the cluster does not take it any more")
        return error

    def linked(self, end: End, greeting: Any) -> None:
        if self.handler is None or self.connections is None:
            end.close()
        else:
            GatewayLink(end, self.handler, self.budget, self.connections)

    # -- the process ----------------------------------------------------------------------------------------------

    def _observed(self, group: int, machine: StateMachine) -> StateMachine:
        if not isinstance(machine, Machine):
            raise TypeError("a replica is a Machine")
        return ObservedMachine(self.number, group, machine, self.observer, lambda: digest_of(machine))

    async def main(self, loop: SimLoop) -> None:
        settings, clock, turns = self.settings, self.clock, Turns()
        directory = SimDirectory(self)
        self.model = model = MapModel(directory.identity.cluster_id)
        self.table = replicas = ReplicaTable()
        self.peers = PeerClocks()
        link = CoordinatorLink(settings.coordinators, self.dial())
        asker = MembershipAsker(self.dial())
        stamps = Stamps(clock, self.peers, settings.clock_skew_max_ms, self.name)
        self.budget = budget = Budget(settings.operations_max, settings.operation_bytes_max)
        deadlines = Deadlines(settings.operation_timeout_ms, settings.operation_timeout_max_ms)
        hints = Hints(model, self.name)
        self.handler = handler = BatchHandler(
            replicas, hints, stamps.now_ms, budget, Limits(settings.value_bytes_max), deadlines, _Uncounted()
        )
        self.connections = Connections()
        shards = ShardsService(handler, replicas, budget, self.connections)
        add_ShardsServicer_to_server(shards, self.server)
        supervisor = await supervised("storage", self)
        known = directory.identity.node_num != 0
        if not known:
            await self._introduce(directory, link, model)
        shared = Shared(settings, directory, link, asker, model, replicas, clock, stamps, self.failpoints, turns)
        self.backend = backend = self._open_backend(shared)
        await backend.run(supervisor)
        reads = ReadBatcher(backend.host, hints, stamps.now_ms, budget, deadlines, turns.soon)
        shards.host = backend.host
        shards.compactor = backend.compactor
        scans = Scanner(backend.host, hints, stamps.now_ms, deadlines, loop.call_soon)
        handler.attach(backend.host, reads, scans)
        if known:
            supervisor.spawn("hello", self._introduce(directory, link, model))
        await supervisor.wait()
        await asyncio.Event().wait()

    async def _introduce(self, directory: DataDirectory, link: CoordinatorLink, model: MapModel) -> None:
        identity = directory.identity
        request = cluster_pb2.NodeHelloRequest(
            node_id=identity.node_id,
            address=self.address,
            zone=self.settings.zone,
            store_id=identity.store_id,
            cluster_id=identity.cluster_id,
        )
        answer = await say_hello(link, request)
        directory.adopt(answer.cluster_id, answer.node_num)
        model.cluster_id = answer.cluster_id

    def _open_backend(self, shared: Shared) -> Backend:
        engine, directory = self.durable.engine, shared.directory
        identity = directory.identity
        records = NodeRecords.open(
            engine,
            node_id=identity.node_id,
            node_num=identity.node_num,
            cluster_id=identity.cluster_id,
            formed=directory.formed,
        )
        registry = new_registry()
        machines = open_machines(engine, records, registry, self.failpoints)
        driver = self.open_host(
            identity.node_num,
            {group: machine.applied_index() for group, machine in machines.items()},
            apply_delay_ms=self.world.raft.apply_delay_ms,
        )
        known = set(self.host.groups())
        if known - machines.keys():
            raise SafetyViolation(
                f"{self.name}: groups {sorted(known - machines.keys())} are in the log without a state"
            )
        observed = {group: self._observed(group, machines[group]) for group in sorted(known)}
        for group, machine in observed.items():
            driver.open_group(group, machine)
            if isinstance(machine, ObservedMachine):
                machine.report()
        self.shipping.opened(known)
        return Backend(shared, engine, records, registry, machines, SimGroups(self, self._observed))
