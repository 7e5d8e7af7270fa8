"""Fake coordinators and storage nodes over real gRPC, and a running admin service in front of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from flotta_admin.service import AdminService, start
from flotta_admin.settings import AdminSettings
from flotta_proto.flotta import (
    cluster_pb2,
    cluster_pb2_grpc,
    operator_pb2,
    operator_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
)
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb import coordinator_pb2_grpc, kvstore_pb2, kvstore_pb2_grpc
from flotta_runtime import errors
from flotta_runtime.server import GrpcServer, build_server
from pydantic import SecretStr

TOKEN = "internal-token"
KEY = "admin-key"


class Cluster:
    """The state that all fake coordinators share, and what they were asked to change."""

    def __init__(self) -> None:
        self.state = pb.ClusterState(cluster_id="c-1")
        self.leader = 0
        self.members: list[Member] = []
        self.writes: list[str] = []
        self.decisions: list[cluster_pb2.Decision] = []
        self.jobs: dict[int, operator_pb2.Job] = {}

    def changed(self, kind: str, subject: str) -> int:
        self.state.map_version += 1
        version = self.state.map_version
        number = len(self.decisions) + 1
        self.decisions.append(
            cluster_pb2.Decision(
                number=number, time_ms=1000 + number, map_version=version, kind=kind, subject=subject, reason="asked"
            )
        )
        return version

    def follow(self, leader: int) -> None:
        self.leader = leader

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(member.address for member in self.members)


def refused(code: str, field: str) -> pb.Rejection:
    return pb.Rejection(code=code, field=field)


class Member(
    coordinator_pb2_grpc.CoordinatorServicer, cluster_pb2_grpc.ClusterServicer, operator_pb2_grpc.OperatorServicer
):
    """One coordinator. Faults are switches: `hang`, `stale` (a copy of an old state), `broken`."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.number = len(cluster.members)
        self.address = ""
        self.hang = False
        self.hang_after_write = False
        self.stale: pb.ClusterState | None = None
        self.broken = False
        self.server: GrpcServer
        cluster.members.append(self)

    async def lead(self) -> None:
        if self.hang:
            await asyncio.Event().wait()
        if self.broken:
            raise errors.InternalError("the disk is full of bees")
        if self.cluster.leader < 0:
            raise errors.Unavailable("no leader")
        if self.cluster.leader != self.number:
            raise errors.NotLeader(self.cluster.addresses[self.cluster.leader])

    async def written(self, name: str) -> None:
        self.cluster.writes.append(name)
        if self.hang_after_write:
            await asyncio.Event().wait()

    async def GetShardMap(self, request: pb.GetShardMapRequest, context: Any) -> pb.GetShardMapResponse:
        if self.stale is not None:
            return pb.GetShardMapResponse(state=self.stale)
        await self.lead()
        if self.cluster.state.map_version <= request.if_version_gt:
            return pb.GetShardMapResponse(not_modified=True)
        return pb.GetShardMapResponse(state=self.cluster.state)

    async def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesResponse:
        await self.lead()
        return pb.ListNodesResponse(nodes=self.cluster.state.nodes.values())

    async def RegisterNode(self, request: pb.RegisterNodeRequest, context: Any) -> pb.RegisterNodeResponse:
        await self.lead()
        state = self.cluster.state
        if any(node.address == request.address and node.node_id != request.node_id for node in state.nodes.values()):
            return pb.RegisterNodeResponse(message="address: taken", rejection=refused("ALREADY_EXISTS", "address"))
        wanted = pb.NodeRecord(
            node_id=request.node_id, address=request.address, zone=request.zone, status=pb.ALIVE, last_heartbeat_ms=77
        )
        if state.nodes.get(request.node_id) != wanted:
            state.nodes[request.node_id].CopyFrom(wanted)
            self.cluster.changed("node", request.node_id)
        await self.written("RegisterNode")
        return pb.RegisterNodeResponse(success=True, map_version=state.map_version)

    async def InitShards(self, request: pb.InitShardsRequest, context: Any) -> pb.InitShardsResponse:
        await self.lead()
        state = self.cluster.state
        asked = pb.PartitioningConfig(num_shards=request.num_shards, replication_factor=request.replication_factor)
        if not state.nodes:
            return pb.InitShardsResponse(
                message="no node is registered yet", rejection=refused("FAILED_PRECONDITION", "num_shards")
            )
        if state.HasField("partitioning") and state.partitioning != asked:
            return pb.InitShardsResponse(
                message="num_shards: the shards are already initialized", rejection=refused("ALREADY_EXISTS", "")
            )
        if not state.HasField("partitioning"):
            state.partitioning.CopyFrom(asked)
            for i in range(request.num_shards):
                state.shards[f"shard-{i}"].CopyFrom(
                    pb.ShardRecord(
                        shard_id=f"shard-{i}",
                        epoch=1,
                        replicas=sorted(state.nodes)[: request.replication_factor],
                        leader=min(state.nodes),
                        config_state=pb.STABLE,
                        key_range=pb.KeyRange(start_key=bytes([0, 0, 0, i]), end_key=bytes([0, 0, 0, i + 1])),
                    )
                )
            self.cluster.changed("shards", "default")
        await self.written("InitShards")
        return pb.InitShardsResponse(success=True, map_version=state.map_version)

    async def SetNodeStatus(self, request: pb.SetNodeStatusRequest, context: Any) -> pb.SetNodeStatusResponse:
        await self.lead()
        if request.node_id not in self.cluster.state.nodes:
            return pb.SetNodeStatusResponse(
                message=f"node_id: no node is registered as {request.node_id!r}",
                rejection=refused("NOT_FOUND", "node_id"),
            )
        self.cluster.state.nodes[request.node_id].status = request.status
        version = self.cluster.changed("status", request.node_id)
        await self.written("SetNodeStatus")
        return pb.SetNodeStatusResponse(success=True, map_version=version)

    async def SetShardReplicas(self, request: pb.SetShardReplicasRequest, context: Any) -> pb.SetShardReplicasResponse:
        await self.lead()
        state = self.cluster.state
        for node_id in request.replicas:
            if node_id not in state.nodes:
                return pb.SetShardReplicasResponse(
                    message=f"replicas: no node is registered as {node_id!r}",
                    rejection=refused("NOT_FOUND", "replicas"),
                )
        shard = state.shards[request.shard_id]
        shard.replicas[:] = request.replicas
        shard.epoch += 1
        shard.config_state = pb.MOVING
        version = self.cluster.changed("move", request.shard_id)
        await self.written("SetShardReplicas")
        return pb.SetShardReplicasResponse(success=True, map_version=version, new_epoch=shard.epoch)

    async def SetShardLeader(self, request: pb.SetShardLeaderRequest, context: Any) -> pb.SetShardLeaderResponse:
        await self.lead()
        shard = self.cluster.state.shards[request.shard_id]
        if request.epoch != shard.epoch:
            raise errors.PreconditionFailed(f"epoch: it is {shard.epoch}")
        if request.leader_node_id not in shard.replicas:
            return pb.SetShardLeaderResponse(
                message=f"leader_node_id: {request.leader_node_id} is not a replica",
                rejection=refused("FAILED_PRECONDITION", "leader_node_id"),
            )
        shard.leader = request.leader_node_id
        version = self.cluster.changed("leader", request.shard_id)
        await self.written("SetShardLeader")
        return pb.SetShardLeaderResponse(success=True, map_version=version)

    async def ListDecisions(
        self, request: cluster_pb2.ListDecisionsRequest, context: Any
    ) -> cluster_pb2.ListDecisionsResponse:
        await self.lead()
        found = [
            decision
            for decision in self.cluster.decisions
            if decision.number > request.after_number and request.subject in ("", decision.subject)
        ]
        return cluster_pb2.ListDecisionsResponse(decisions=found[-request.limit :])

    async def SetReplicationFactor(
        self, request: operator_pb2.SetReplicationFactorRequest, context: Any
    ) -> operator_pb2.OrderResponse:
        await self.lead()
        self.cluster.state.partitioning.replication_factor = request.replication_factor
        version = self.cluster.changed("factor", "default")
        await self.written("SetReplicationFactor")
        return operator_pb2.OrderResponse(success=True, map_version=version, job=operator_pb2.Job(number=7))

    async def SetShardCount(
        self, request: operator_pb2.SetShardCountRequest, context: Any
    ) -> operator_pb2.OrderResponse:
        await self.lead()
        have = self.cluster.state.partitioning.num_shards
        if request.num_shards % have:
            message = f"num_shards: shards divide, not {request.num_shards}"
            return operator_pb2.OrderResponse(message=message, rejection=refused("FAILED_PRECONDITION", "num_shards"))
        self.cluster.state.partitioning.num_shards = request.num_shards
        version = self.cluster.changed("shards", request.table)
        await self.written("SetShardCount")
        job = operator_pb2.Job(number=8, kind="shard-count", subject=request.table, status="RUNNING")
        return operator_pb2.OrderResponse(success=True, map_version=version, job=job)

    async def BeginCompaction(
        self, request: operator_pb2.BeginCompactionRequest, context: Any
    ) -> operator_pb2.OrderResponse:
        await self.lead()
        number = len(self.cluster.jobs) + 1
        job = operator_pb2.Job(number=number, status="RUNNING", steps=request.steps, left=request.steps)
        self.cluster.jobs[number] = job
        return operator_pb2.OrderResponse(success=True, map_version=self.cluster.state.map_version, job=job)

    async def ReportCopy(self, request: operator_pb2.ReportCopyRequest, context: Any) -> operator_pb2.OrderResponse:
        await self.lead()
        job = self.cluster.jobs[request.number]
        if job.status != "RUNNING":
            return operator_pb2.OrderResponse(
                message="it has ended", rejection=refused("FAILED_PRECONDITION", "number")
            )
        job.left = request.left
        return operator_pb2.OrderResponse(success=True, job=job)

    async def EndCopy(self, request: operator_pb2.EndCopyRequest, context: Any) -> operator_pb2.OrderResponse:
        await self.lead()
        job = self.cluster.jobs[request.number]
        job.status, job.outcome, job.left = "FAILED" if request.failed else "DONE", request.outcome, request.left
        return operator_pb2.OrderResponse(success=True, job=job)

    async def ListJobs(self, request: operator_pb2.ListJobsRequest, context: Any) -> operator_pb2.ListJobsResponse:
        await self.lead()
        return operator_pb2.ListJobsResponse(jobs=[self.cluster.jobs[request.number]])

    async def start(self, listen: str = "127.0.0.1:0") -> None:
        self.server = build_server(
            [
                (coordinator_pb2_grpc.add_CoordinatorServicer_to_server, self, "kvdb.coordinator.Coordinator"),
                (cluster_pb2_grpc.add_ClusterServicer_to_server, self, "flotta.cluster.v1.Cluster"),
                (operator_pb2_grpc.add_OperatorServicer_to_server, self, "flotta.cluster.v1.Operator"),
            ],
            listen=listen,
            token=TOKEN,
        )
        self.address = f"127.0.0.1:{await self.server.start()}"


class FakeNode(kvstore_pb2_grpc.KVServiceServicer):
    """A storage node that answers pings."""

    async def Ping(self, request: kvstore_pb2.PingRequest, context: Any) -> kvstore_pb2.PingResponse:
        return kvstore_pb2.PingResponse(message="pong")


class FakeShards(storage_pb2_grpc.ShardsServicer):
    """A storage node that remembers what it should compact."""

    def __init__(self) -> None:
        self.orders: list[list[str]] = []
        self.left = 0
        self.dropped = False
        self.away = False  # for questions

    async def Compact(self, request: storage_pb2.CompactRequest, context: Any) -> storage_pb2.CompactResponse:
        if request.what != storage_pb2.CompactRequest.ORDER:
            if self.away:
                raise errors.Unavailable("it is away")
            self.dropped |= request.what == storage_pb2.CompactRequest.DROP
            return storage_pb2.CompactResponse(replicas=self.left)
        self.orders.append(list(request.shard_ids))
        return storage_pb2.CompactResponse(replicas=len(request.shard_ids) or 5)


@asynccontextmanager
async def coordinators(count: int = 3) -> AsyncIterator[Cluster]:
    cluster = Cluster()
    for _ in range(count):
        await Member(cluster).start()
    try:
        yield cluster
    finally:
        for member in cluster.members:
            await member.server.stop(0)


@asynccontextmanager
async def storage_node(shards: FakeShards | None = None) -> AsyncIterator[str]:
    server = build_server(
        [
            (kvstore_pb2_grpc.add_KVServiceServicer_to_server, FakeNode(), "kvdb.kvstore.KVService"),
            (storage_pb2_grpc.add_ShardsServicer_to_server, shards or FakeShards(), "flotta.storage.v1.Shards"),
        ],
        listen="127.0.0.1:0",
        token=TOKEN,
    )
    try:
        yield f"127.0.0.1:{await server.start()}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def admin(addresses: tuple[str, ...], **changes: Any) -> AsyncIterator[AdminService]:
    given = {
        "listen": "127.0.0.1:0",
        "coordinators": addresses,
        "internal_token": SecretStr(TOKEN),
        "api_key": SecretStr(KEY),
        "stop_timeout_ms": 1_000,
        "request_timeout_ms": 30_000,
        "ping_timeout_ms": 5_000,
        **changes,
    }
    service = await start(AdminSettings(**given))
    try:
        yield service
    finally:
        await service.stop()


def client(service: AdminService, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{service.port}",
        headers={"X-Admin-Api-Key": KEY, **headers},
        trust_env=False,
        timeout=30,
        verify=False,
    )


async def add_nodes(web: httpx.AsyncClient, count: int = 3) -> None:
    for i in range(1, count + 1):
        answer = await web.post(
            "/admin/nodes", json={"node_id": f"node-{i}", "address": f"localhost:800{i}", "zone": "z"}
        )
        assert answer.status_code == 200, answer.text
