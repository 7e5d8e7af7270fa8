"""A coordinator of the simulated cluster: the parts of `flotta_coordinator.app`, over a simulated host.

Not here: the formation of the group (its members and the name of the cluster are given), TLS, metrics, HTTP.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster_node import ClusterNode, supervised
from flotta_consensus.api import Members
from flotta_consensus.sim.groups import SimGroups
from flotta_consensus.sim.loop import SimLoop
from flotta_consensus.sim.node import SimNode
from flotta_consensus.sim.observed import ObservedMachine
from flotta_coordinator import cluster_service, operator_service, rows, service, wire
from flotta_coordinator.caretaker import Caretaker
from flotta_coordinator.core.state import ClusterState
from flotta_coordinator.forward import Forwarder
from flotta_coordinator.group import GROUP, Coordinators, HostGroup, Role
from flotta_coordinator.leadership import Leadership
from flotta_coordinator.member import Member, Patience
from flotta_coordinator.opening import SPACE
from flotta_coordinator.pipeline import Pipeline
from flotta_coordinator.settings import CoordinatorSettings
from flotta_coordinator.store import MetadataStore
from flotta_coordinator.watch import Watchers
from flotta_embedded.generations import current
from flotta_embedded.machine import Machine
from flotta_proto.flotta import cluster_pb2_grpc, operator_pb2_grpc
from flotta_proto.kvdb import coordinator_pb2_grpc

if TYPE_CHECKING:
    from cluster_world import Cluster


@dataclass(slots=True)
class Parts:
    """What checks look at."""

    store: MetadataStore
    leadership: Leadership
    machine: Machine


RECOVER_AFTER_MS = 60_000  # nothing is recovered here


class CoordinatorNode(ClusterNode):
    def __init__(self, cluster: Cluster, number: int, settings: CoordinatorSettings) -> None:
        super().__init__(cluster, number, settings.node_id, cluster.coordination)
        self.settings = settings
        self.members: Coordinators = settings.coordinators()
        self.parts: Parts | None = None

    @property
    def leader(self) -> bool:
        """Leads, and is ready to."""
        return self.parts is not None and self.parts.leadership.session is not None

    def state(self) -> ClusterState | None:
        return self.parts.store.state() if self.parts is not None else None

    def replica_of(self, group: int) -> int:
        return self.members.replica

    def peer(self, node_num: int) -> SimNode | None:
        return self.cluster.coordinators[node_num - 1]

    def takes(self, node_num: int) -> bool:
        return self._host is not None

    def dropped(self) -> None:
        super().dropped()
        self.parts = None

    def _observed(self, machine: Machine) -> ObservedMachine:
        def digest() -> bytes:
            return machine.view().get(rows.HEAD) or b""

        return ObservedMachine(self.number, GROUP, machine, self.observer, digest)

    def _open_machine(self, store: MetadataStore) -> Machine:
        engine = self.durable.engine
        if current(engine, SPACE) is not None:
            return Machine.open(engine, SPACE, store.registry, failpoints=self.failpoints)
        members = Members(voters=tuple(sorted(self.members.replicas)))
        return Machine.create(engine, SPACE, store.registry, members=members, failpoints=self.failpoints)

    async def main(self, loop: SimLoop) -> None:
        settings, clock, role, group, store = (
            self.settings,
            self.clock,
            Role(self.members),
            HostGroup(),
            MetadataStore(),
        )
        messages = wire.StateMessages()
        watchers = Watchers(
            store, messages, heartbeat_ms=settings.watch_heartbeat_ms, watchers_max=settings.watchers_max
        )
        pipeline = Pipeline(store, group, role, clock, commit_timeout_ms=settings.commit_timeout_ms)
        leadership = Leadership(
            store,
            pipeline,
            role,
            clock,
            timeouts=settings.timeouts(),
            check_ms=settings.liveness_check_ms,
            cluster_id=lambda: "simulated",
        )
        caretaker = Caretaker(store, pipeline, leadership, clock, settings.policy(), period_ms=settings.plan_every_ms)
        member = Member(
            self.members, role, group, store, pipeline, leadership, caretaker, watchers, Forwarder(self.dial()),
            messages, clock, Patience(),
        )  # fmt: skip
        add = coordinator_pb2_grpc.add_CoordinatorServicer_to_server
        add(service.CoordinatorService(member), self.server)
        cluster_pb2_grpc.add_ClusterServicer_to_server(cluster_service.ClusterService(member), self.server)
        operator_pb2_grpc.add_OperatorServicer_to_server(
            operator_service.OperatorService(member, RECOVER_AFTER_MS), self.server
        )
        machine = self._open_machine(store)
        driver = self.open_host(self.members.node_num, {GROUP: machine.applied_index()})
        groups = SimGroups(self, lambda number, made: self._observed(machine))
        known = set(self.host.groups())
        if GROUP in known:
            observed = self._observed(machine)
            driver.open_group(GROUP, observed)
            observed.report()
        self.shipping.opened(known)
        group.attach(groups)
        store.attach(machine.view)
        self.parts = Parts(store, leadership, machine)
        groups.on_role(leadership.on_role)
        if GROUP not in known:
            await groups.create_group(GROUP, self.members.replica, self.members.replicas, machine)
        supervisor = await supervised("coordinator", self)
        supervisor.spawn("pipeline", pipeline.run())
        supervisor.spawn("leadership", leadership.run())
        supervisor.spawn("planner", caretaker.run())
        await supervisor.wait()
        await asyncio.Event().wait()
