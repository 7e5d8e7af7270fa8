"""`kvdb.coordinator.Coordinator`: KvDB's API for operators, gateways and nodes.

Wrong arguments are INVALID_ARGUMENT and name the field. A request that the state refuses is answered as KvDB does:
OK with success=false; here `message` says precisely why, and `rejection` says it for programs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb import coordinator_pb2_grpc
from flotta_runtime.errors import InvalidArgument
from flotta_runtime.hashing import key_hash

from flotta_coordinator import wire
from flotta_coordinator.core import commands
from flotta_coordinator.core.placement import awaited
from flotta_coordinator.core.results import Applied, Rejection, Result
from flotta_coordinator.core.state import Node
from flotta_coordinator.core.transitions import apply
from flotta_coordinator.member import Context, Member, refuse_bad_argument, require_text, time_left_ms

SERVICE = "kvdb.coordinator.Coordinator"
MAP_KEY = "x-flotta-map"
RECORDS = "records"
KEY_BYTES_MAX = 1024  # no shard holds a longer one


def _method(name: str) -> str:
    return f"/{SERVICE}/{name}"


class CoordinatorService(coordinator_pb2_grpc.CoordinatorServicer):
    def __init__(self, member: Member) -> None:
        self._member = member

    # --- reads, on any member ---------------------------------------------------------------------------------------

    async def GetShardMap(self, request: pb.GetShardMapRequest, context: Context) -> pb.GetShardMapResponse:
        state = await self._member.fresh(context)
        if state.map_version <= request.if_version_gt:
            return pb.GetShardMapResponse(not_modified=True)
        return pb.GetShardMapResponse(state=self._member.messages.of(state))

    async def ResolveShard(self, request: pb.ResolveShardRequest, context: Context) -> pb.ResolveShardResponse:
        if not request.key:
            raise InvalidArgument("key must not be empty", field="key")
        if len(request.key) > KEY_BYTES_MAX:
            text = f"key has {len(request.key)} bytes, the limit is {KEY_BYTES_MAX}"
            raise InvalidArgument(text, field="key", limit=KEY_BYTES_MAX)
        state = await self._member.fresh(context)
        if state.partitioning is None:
            return pb.ResolveShardResponse()
        shard = state.home_of(key_hash(request.key))
        return pb.ResolveShardResponse(shard_id=shard.shard_id, shard=wire.shard_record(shard))

    async def GetCoordinatorLeader(
        self, request: pb.GetCoordinatorLeaderRequest, context: Context
    ) -> pb.GetCoordinatorLeaderResponse:
        role = self._member.role
        return pb.GetCoordinatorLeaderResponse(
            is_leader=role.is_leader,
            leader_id=role.leader_id,
            leader_address=role.leader_address or "",
            term=role.term,
        )

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatResponse:
        """KvDB's, which nobody sends. It is open to everybody, so it never counts as a sign of life."""
        require_text("node_id", request.node_id)
        return pb.HeartbeatResponse(accepted=request.node_id in self._member.store.state().nodes)

    # --- reads that show what only the leader knows: when a node was last heard ---------------------------------------

    async def GetNode(self, request: pb.GetNodeRequest, context: Context) -> pb.GetNodeResponse:
        require_text("node_id", request.node_id)

        async def local() -> pb.GetNodeResponse:
            node = (await self._member.fresh(context)).nodes.get(request.node_id)
            return pb.GetNodeResponse() if node is None else pb.GetNodeResponse(node=self._record(node))

        return await self._member.at_leader(_method("GetNode"), request, pb.GetNodeResponse, context, local)

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesResponse:
        async def local() -> pb.ListNodesResponse:
            nodes = (await self._member.fresh(context)).nodes
            return pb.ListNodesResponse(nodes=[self._record(nodes[node_id]) for node_id in sorted(nodes)])

        return await self._member.at_leader(_method("ListNodes"), request, pb.ListNodesResponse, context, local)

    def _record(self, node: Node) -> pb.NodeRecord:
        session = self._member.leadership.session
        clock = self._member.clock
        silent_ms = None
        if session is not None:
            silent_ms = session.liveness.silent_ms(node.node_id, clock.monotonic_ms())
        return wire.node_record(node, None if silent_ms is None else clock.wall_ms() - silent_ms)

    # --- the watch, on the leader -------------------------------------------------------------------------------------

    async def WatchShardMap(
        self, request: pb.WatchShardMapRequest, context: Context
    ) -> AsyncIterator[pb.ShardMapDelta]:
        records = any(key == MAP_KEY and value == RECORDS for key, value in context.invocation_metadata() or ())
        session = await self._member.ready_session()
        async for message in self._member.watchers.watch(session, request.from_version, records=records):
            yield message

    # --- changes, carried to the leader -------------------------------------------------------------------------------

    async def RegisterNode(self, request: pb.RegisterNodeRequest, context: Context) -> pb.RegisterNodeResponse:
        async def local() -> pb.RegisterNodeResponse:
            result = await self._submit(commands.RegisterNode(request.node_id, request.address, request.zone))
            if isinstance(result, Applied):
                self._member.leadership.grant(request.node_id)
            success, message, version = self._outcome(result)
            return pb.RegisterNodeResponse(
                success=success, message=message, map_version=version, rejection=wire.rejection(result)
            )

        return await self._member.at_leader(_method("RegisterNode"), request, pb.RegisterNodeResponse, context, local)

    async def InitShards(self, request: pb.InitShardsRequest, context: Context) -> pb.InitShardsResponse:
        async def local() -> pb.InitShardsResponse:
            command = commands.InitShards(request.num_shards, request.replication_factor)
            result = await self._init_patiently(command, context)
            success, message, version = self._outcome(result)
            shard_ids = sorted(result.state.shards) if isinstance(result, Applied) else []
            return pb.InitShardsResponse(
                success=success,
                message=message,
                map_version=version,
                shard_ids=shard_ids,
                rejection=wire.rejection(result),
            )

        return await self._member.at_leader(_method("InitShards"), request, pb.InitShardsResponse, context, local)

    async def SetNodeStatus(self, request: pb.SetNodeStatusRequest, context: Context) -> pb.SetNodeStatusResponse:
        async def local() -> pb.SetNodeStatusResponse:
            result = await self._submit(commands.SetNodeStatus(request.node_id, int(request.status)))
            if isinstance(result, Applied) and request.status == pb.ALIVE:
                self._member.leadership.grant(request.node_id)
            success, message, version = self._outcome(result)
            return pb.SetNodeStatusResponse(
                success=success, message=message, map_version=version, rejection=wire.rejection(result)
            )

        return await self._member.at_leader(_method("SetNodeStatus"), request, pb.SetNodeStatusResponse, context, local)

    async def SetShardReplicas(
        self, request: pb.SetShardReplicasRequest, context: Context
    ) -> pb.SetShardReplicasResponse:
        async def local() -> pb.SetShardReplicasResponse:
            result = await self._submit(commands.SetShardReplicas(request.shard_id, tuple(request.replicas)))
            success, message, version = self._outcome(result)
            return pb.SetShardReplicasResponse(
                success=success,
                message=message,
                map_version=version,
                new_epoch=result.reply.new_epoch if isinstance(result, Applied) else 0,
                rejection=wire.rejection(result),
                job=result.reply.job if isinstance(result, Applied) else 0,
            )

        reply = pb.SetShardReplicasResponse
        return await self._member.at_leader(_method("SetShardReplicas"), request, reply, context, local)

    async def SetShardLeader(self, request: pb.SetShardLeaderRequest, context: Context) -> pb.SetShardLeaderResponse:
        async def local() -> pb.SetShardLeaderResponse:
            command = commands.SetShardLeader(request.shard_id, request.epoch, request.leader_node_id)
            result = await self._submit(command)
            success, message, version = self._outcome(result)
            return pb.SetShardLeaderResponse(
                success=success,
                message=message,
                map_version=version,
                rejection=wire.rejection(result),
                job=result.reply.job if isinstance(result, Applied) else 0,
            )

        reply = pb.SetShardLeaderResponse
        return await self._member.at_leader(_method("SetShardLeader"), request, reply, context, local)

    async def ReportShardLeader(
        self, request: pb.ReportShardLeaderRequest, context: Context
    ) -> pb.ReportShardLeaderResponse:
        async def local() -> pb.ReportShardLeaderResponse:
            command = commands.ReportShardLeader(request.shard_id, request.epoch, request.term, request.leader_node_id)
            result = await self._submit(command)
            accepted, message, _ = self._outcome(result)
            return pb.ReportShardLeaderResponse(accepted=accepted, message=message, rejection=wire.rejection(result))

        reply = pb.ReportShardLeaderResponse
        return await self._member.at_leader(_method("ReportShardLeader"), request, reply, context, local)

    async def _submit(self, command: commands.Command) -> Result:
        return refuse_bad_argument(await self._member.pipeline.submit(command))

    async def _init_patiently(self, command: commands.InitShards, context: Context) -> Result:
        """Wait for announced nodes to be heard, so that shards are born on all of them, and for as many as there must
        be; not for ever: some may never come."""
        member = self._member
        refuse_bad_argument(apply(member.store.state(), command, member.clock.wall_ms()))  # wrong whoever comes
        give_up_ms = member.clock.monotonic_ms() + min(member.patience.nodes_ms, time_left_ms(context) // 2)

        async def changed() -> bool:
            return await member.store.changed(give_up_ms - member.clock.monotonic_ms())

        while self._is_early() and await changed():
            pass
        while True:
            result = await self._submit(command)
            passing = isinstance(result, Rejection) and result.passing
            if not passing or not await changed():
                return result

    def _is_early(self) -> bool:
        state = self._member.store.state()
        return state.partitioning is None and bool(awaited(state.nodes.values()))

    def _outcome(self, result: Result) -> tuple[bool, str, int]:
        return wire.outcome(result, self._member.store.state().map_version)
