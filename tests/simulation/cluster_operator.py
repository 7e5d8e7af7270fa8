"""The operators of the simulated cluster: they create the table, and then order whatever the seed has them order.

They choose by the newest committed map, which no real operator has, and speak to the coordinators like any other. A
machine is only ever destroyed when no shard depends on it for its quorum; what happens to a shard after that is the
planner's doing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from cluster_checks import has_quorum
from cluster_clients import Outsider, pause_of
from cluster_rpc import sim_dial
from cluster_wires import RESET
from flotta_consensus.api import node_of
from flotta_consensus.sim.clock import stream
from flotta_coordinator.core.state import ClusterState, JobKind, JobStatus, Shard
from flotta_proto.flotta import operator_pb2 as op
from flotta_proto.flotta.operator_pb2_grpc import OperatorStub
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb.coordinator_pb2_grpc import CoordinatorStub
from flotta_runtime.errors import FlottaError
from flotta_storage.coordinator_link import CoordinatorLink

if TYPE_CHECKING:
    from cluster_storage import StorageProcess
    from cluster_world import Cluster

ORDER_TIMEOUT_MS = 3_000

S = TypeVar("S")


class Operator:
    """`stop()` ends the orders; what was ordered goes on."""

    def __init__(self, cluster: Cluster, outsider: Outsider, spares: list[StorageProcess]) -> None:
        self.outsider = outsider
        self._cluster = cluster
        self._spares = spares
        self._rng = stream(cluster.world.seed, "cluster/operator")
        self._link = CoordinatorLink(cluster.coordinator_addresses, sim_dial(cluster.wires, outsider))
        self._stopped = False
        self._events: dict[str, Callable[[ClusterState], Awaitable[None]]] = {
            "move": self._move,
            "cancel": self._cancel,
            "drain": self._drain,
            "undrain": self._undrain,
            "factor": self._factor,
            "rebalance": self._rebalance,
            "lead": self._lead,
            "add": self._add,
            "decommission": self._decommission,
            "destroy": self._destroy,
            "cut_watch": self._cut_connections,
            "restart_gateway": self._restart_gateway,
            "reshard": self._reshard,
        }
        cluster.spawn(outsider, self._run())

    def stop(self) -> None:
        self._stopped = True

    async def _run(self) -> None:
        profile, rng = self._cluster.profile, self._rng
        for node in self._cluster.storages[: profile.nodes]:
            if rng.random() < 0.5:  # the others introduce themselves
                await self._register(node)
        request = pb.InitShardsRequest(num_shards=profile.shards, replication_factor=profile.factor)
        created = False
        while not created:
            await asyncio.sleep(0.3)
            created = await self._order("create", CoordinatorStub, lambda stub: stub.InitShards, request)
        while not self._stopped:
            await asyncio.sleep(pause_of(rng, profile.event_every_ms))
            if not self._stopped and profile.events:
                name = rng.choice(profile.events)
                await self._events[name](self._cluster.map_rules.newest)

    async def _order(self, name: str, kind: type[S], method: Callable[[S], Any], request: Any) -> bool:
        """Give one order; whether it was taken."""
        transcript = self._cluster.world.transcript
        try:
            answer = await self._link.call(kind, method, request, timeout_ms=ORDER_TIMEOUT_MS)
        except FlottaError as error:
            transcript.count(f"{name}_failed")
            transcript.note("operator", f"{name}: {error.message[:100]}")
            return False
        transcript.count(f"{name}_{'ordered' if answer.success else 'refused'}")
        transcript.note("operator", f"{name}: {answer.message[:140]}")
        return bool(answer.success)

    async def _register(self, node: StorageProcess) -> None:
        request = pb.RegisterNodeRequest(node_id=node.name, address=node.address, zone="local")
        await self._order("register", CoordinatorStub, lambda stub: stub.RegisterNode, request)

    # -- orders -------------------------------------------------------------------------------------------------

    def _shard(self, state: ClusterState) -> Shard | None:
        return state.shards[self._rng.choice(sorted(state.shards))] if state.shards else None

    async def _move(self, state: ClusterState) -> None:
        shard = self._shard(state)
        outside = sorted(state.nodes.keys() - {member.node_id for member in shard.members}) if shard else []
        if shard is not None and outside and self._healed(state):
            request = op.MoveReplicaRequest(
                shard_id=shard.shard_id,
                from_node_id=self._rng.choice(shard.members).node_id,
                to_node_id=self._rng.choice(outside),
            )
            await self._order("move", OperatorStub, lambda stub: stub.MoveReplica, request)

    async def _cancel(self, state: ClusterState) -> None:
        moving = sorted(shard.shard_id for shard in state.shards.values() if shard.moving)
        if moving:
            request = op.CancelMoveRequest(shard_id=self._rng.choice(moving))
            await self._order("cancel", OperatorStub, lambda stub: stub.CancelMove, request)

    async def _drain(self, state: ClusterState) -> None:
        if self._healed(state) and state.nodes:
            request = op.DrainNodeRequest(node_id=self._rng.choice(sorted(state.nodes)))
            await self._order("drain", OperatorStub, lambda stub: stub.DrainNode, request)

    async def _undrain(self, state: ClusterState) -> None:
        draining = sorted(node.node_id for node in state.nodes.values() if node.draining)
        if draining:
            request = op.DrainNodeRequest(node_id=self._rng.choice(draining), cancel=True)
            await self._order("undrain", OperatorStub, lambda stub: stub.DrainNode, request)

    async def _decommission(self, state: ClusterState) -> None:
        gone = sorted(node.name for node in self._cluster.storages if node.gone and node.name in state.nodes)
        if gone:
            request = op.RemoveNodeRequest(node_id=self._rng.choice(gone))
            await self._order("remove", OperatorStub, lambda stub: stub.RemoveNode, request)
        elif self._healed(state) and len(state.nodes) > 3:
            drain = op.DrainNodeRequest(node_id=self._rng.choice(sorted(state.nodes)), remove=True)
            await self._order("decommission", OperatorStub, lambda stub: stub.DrainNode, drain)

    async def _factor(self, state: ClusterState) -> None:
        if self._healed(state):
            request = op.SetReplicationFactorRequest(replication_factor=self._rng.choice((1, 2, 3, 3, 4)))
            await self._order("factor", OperatorStub, lambda stub: stub.SetReplicationFactor, request)

    async def _reshard(self, state: ClusterState) -> None:
        """A multiple, once a run; or any number, unless that is under way: then it may be called off."""
        table = state.partitioning
        if self._cluster.profile.any_count:
            await self._reshard_to_any(state)
            return
        if table is not None and table.num_shards == len(state.shards) == self._cluster.profile.shards:
            request = op.SetShardCountRequest(table=table.name, num_shards=table.num_shards * self._rng.choice((2, 3)))
            await self._order("reshard", OperatorStub, lambda stub: stub.SetShardCount, request)

    async def _reshard_to_any(self, state: ClusterState) -> None:
        kind, status = JobKind.SHARD_COUNT, JobStatus.RUNNING
        under_way = [job.number for job in state.jobs.values() if (job.kind, job.status) == (kind, status)]
        table = state.partitioning
        if under_way and self._rng.random() < 0.15:
            cancel = op.CancelJobRequest(number=under_way[0])
            await self._order("reshard_cancel", OperatorStub, lambda stub: stub.CancelJob, cancel)
        elif table is not None and not under_way:
            request = op.SetShardCountRequest(table=table.name, num_shards=self._rng.choice((1, 2, 3, 4, 6, 8)))
            await self._order("reshard", OperatorStub, lambda stub: stub.SetShardCount, request)

    async def _rebalance(self, state: ClusterState) -> None:
        await self._order("rebalance", OperatorStub, lambda stub: stub.Rebalance, op.RebalanceRequest())

    async def _lead(self, state: ClusterState) -> None:
        shard = self._shard(state)
        if shard is not None:
            request = pb.SetShardLeaderRequest(
                shard_id=shard.shard_id, epoch=shard.epoch, leader_node_id=self._rng.choice(shard.members).node_id
            )
            await self._order("lead", CoordinatorStub, lambda stub: stub.SetShardLeader, request)

    # -- machines -----------------------------------------------------------------------------------------------

    async def _add(self, state: ClusterState) -> None:
        if not self._spares:
            return
        spare = self._spares.pop(0)
        self._cluster.world.transcript.count("nodes_added")
        if self._rng.random() < 0.5:
            await self._register(spare)
        self._cluster.nemesis.adopt(spare)
        spare.start()

    async def _destroy(self, state: ClusterState) -> None:
        """A machine burns down with its disks, and a spare is bought."""
        candidates = [node for node in self._cluster.storages if node.node_num and not node.gone and not node.dismissed]
        if not candidates or not self._spares or not self._quiet(state) or not self._healed(state):
            return
        victim = self._rng.choice(candidates)
        if victim.name in state.nodes and self._may_lose(state, victim.node_num):
            self._cluster.world.transcript.count("nodes_destroyed")
            victim.note("is destroyed")
            victim.destroy()
            await self._add(state)

    async def _cut_connections(self, state: ClusterState) -> None:
        """A middlebox forgets the connections of one process."""
        cluster = self._cluster
        node = self._rng.choice([*cluster.gateways, *(node for node in cluster.storages if node.alive)])
        cluster.world.transcript.count("connections_cut", len(node.ends))
        for end in list(node.ends):
            if end.peer is not None:
                end.peer.broken(RESET)
            end.broken(RESET)

    async def _restart_gateway(self, state: ClusterState) -> None:
        gateway = self._rng.choice(self._cluster.gateways)
        if gateway.alive:
            gateway.crash(power=False, why="restart")

    # -- when -----------------------------------------------------------------------------------------------------

    def _healed(self, state: ClusterState) -> bool:
        """Does no shard still name a machine that is gone?"""
        gone = {node.name for node in self._cluster.storages if node.gone}
        return all(
            replica.node_id not in gone
            for shard in state.shards.values()
            for replica in (*shard.members, *shard.targets)
        )

    @staticmethod
    def _quiet(state: ClusterState) -> bool:
        """Does nothing move? What is under way could need the very machine."""
        jobs = any(job.status is JobStatus.RUNNING for job in state.jobs.values())
        return bool(state.shards) and not jobs and not any(shard.targets for shard in state.shards.values())

    def _may_lose(self, state: ClusterState, node_num: int) -> bool:
        """Does every shard keep its quorum, by what the map says and by what the shards have committed?"""
        lost = self._cluster.gone_numbers() | {node_num}
        sets = [tuple(one.replica_id for one in shard.members) for shard in state.shards.values()]
        for _, members in self._cluster.shard_rules.newest.values():
            if members.learners or members.outgoing:
                return False
            sets.append(tuple(members.voters))
        return all(has_quorum(sum(node_of(one) not in lost for one in found), len(found)) for found in sets)
