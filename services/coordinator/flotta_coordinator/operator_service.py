"""`flotta.cluster.v1.Operator`: what operators ask of the whole cluster, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flotta_proto.flotta import operator_pb2 as pb
from flotta_proto.flotta import operator_pb2_grpc

from flotta_coordinator import wire
from flotta_coordinator.core import commands
from flotta_coordinator.core.results import Applied
from flotta_coordinator.core.transitions import apply
from flotta_coordinator.member import Context, Member, refuse_bad_argument

SERVICE = "flotta.cluster.v1.Operator"


class OperatorService(operator_pb2_grpc.OperatorServicer):
    def __init__(self, member: Member, recover_after_ms: int) -> None:
        self._member = member
        self._recover_after_ms = recover_after_ms

    async def DrainNode(self, request: pb.DrainNodeRequest, context: Context) -> pb.OrderResponse:
        command = commands.DrainNode(request.node_id, draining=not request.cancel, remove=request.remove)
        return await self._order("DrainNode", request, context, command)

    async def RemoveNode(self, request: pb.RemoveNodeRequest, context: Context) -> pb.OrderResponse:
        return await self._order("RemoveNode", request, context, commands.RemoveNode(request.node_id))

    async def Rebalance(self, request: pb.RebalanceRequest, context: Context) -> pb.OrderResponse:
        return await self._order("Rebalance", request, context, commands.Rebalance())

    async def SetReplicationFactor(self, request: pb.SetReplicationFactorRequest, context: Context) -> pb.OrderResponse:
        command = commands.SetReplicationFactor(request.replication_factor)
        return await self._order("SetReplicationFactor", request, context, command)

    async def SetShardCount(self, request: pb.SetShardCountRequest, context: Context) -> pb.OrderResponse:
        command = commands.SetShardCount(request.table, request.num_shards)
        return await self._order("SetShardCount", request, context, command)

    async def MoveReplica(self, request: pb.MoveReplicaRequest, context: Context) -> pb.OrderResponse:
        command = commands.MoveReplica(request.shard_id, request.from_node_id, request.to_node_id)
        return await self._order("MoveReplica", request, context, command)

    async def RecoverShard(self, request: pb.RecoverShardRequest, context: Context) -> pb.OrderResponse:
        member, after_ms = self._member, self._recover_after_ms

        def command() -> commands.RecoverShard:
            return commands.RecoverShard(
                shard_id=request.shard_id,
                epoch=request.epoch,
                node_id=request.node_id,
                replica_id=request.replica_id,
                last_index=request.last_index,
                seen_term=request.seen_term,
                seen_epoch=request.seen_epoch,
                lost_after_ms=after_ms,
                unsure=member.caretaker.lately(member.store.state(), after_ms),
            )

        return await self._order("RecoverShard", request, context, command, dry_run=request.dry_run)

    async def CancelMove(self, request: pb.CancelMoveRequest, context: Context) -> pb.OrderResponse:
        return await self._order("CancelMove", request, context, commands.CancelMove(request.shard_id))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.OrderResponse:
        return await self._order("CancelJob", request, context, commands.CancelJob(request.number))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        state = await self._member.fresh(context)
        found = sorted(state.jobs.values(), key=lambda job: -job.number)
        return pb.ListJobsResponse(jobs=[wire.job(state, job) for job in found if request.number in (0, job.number)])

    # --- for whoever copies rows to or from a directory ---------------------------------------------------------------

    async def BeginCopy(self, request: pb.BeginCopyRequest, context: Context) -> pb.OrderResponse:
        return await self._order("BeginCopy", request, context, commands.BeginCopy(request.restore, request.directory))

    async def BeginCompaction(self, request: pb.BeginCompactionRequest, context: Context) -> pb.OrderResponse:
        return await self._order("BeginCompaction", request, context, commands.BeginCompaction(request.steps))

    async def ReportCopy(self, request: pb.ReportCopyRequest, context: Context) -> pb.OrderResponse:
        command = commands.ReportCopy(request.number, request.steps, request.left)
        return await self._order("ReportCopy", request, context, command)

    async def CreateForRestore(self, request: pb.CreateForRestoreRequest, context: Context) -> pb.OrderResponse:
        command = commands.CreateForRestore(
            request.number, request.num_shards, request.replication_factor, request.revision_base
        )
        return await self._order("CreateForRestore", request, context, command)

    async def EndCopy(self, request: pb.EndCopyRequest, context: Context) -> pb.OrderResponse:
        command = commands.EndCopy(request.number, request.failed, request.outcome, request.steps, request.left)
        return await self._order("EndCopy", request, context, command)

    async def _order(
        self,
        method: str,
        request: Any,
        context: Context,
        command: commands.Command | Callable[[], commands.Command],
        *,
        dry_run: bool = False,
    ) -> pb.OrderResponse:
        """The command (one that is made there) at the leader, and the job that it began or is part of."""

        async def local() -> pb.OrderResponse:
            made = command() if callable(command) else command
            if dry_run:
                state = await self._member.fresh(context)
                result = refuse_bad_argument(apply(state, made, self._member.clock.wall_ms()))
            else:
                result = refuse_bad_argument(await self._member.pipeline.submit(made))
                state = self._member.store.state()
            success, message, version = wire.outcome(result, state.map_version)
            job = state.jobs.get(result.reply.job) if isinstance(result, Applied) and not dry_run else None
            return pb.OrderResponse(
                success=success,
                message=message,
                map_version=state.map_version if dry_run else version,  # what was not done has no version
                rejection=wire.rejection(result),
                job=None if job is None else wire.job(state, job),
            )

        return await self._member.at_leader(f"/{SERVICE}/{method}", request, pb.OrderResponse, context, local)
