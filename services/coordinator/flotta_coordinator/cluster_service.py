"""`flotta.cluster.v1.Cluster`: what the storage processes say, and why the coordinator did what it did."""

from __future__ import annotations

from collections.abc import Sequence

from flotta_proto.flotta import cluster_pb2 as pb
from flotta_proto.flotta import cluster_pb2_grpc
from flotta_runtime.errors import NotFound

from flotta_coordinator import wire
from flotta_coordinator.core import commands
from flotta_coordinator.core.results import Applied
from flotta_coordinator.core.shard_transitions import judge
from flotta_coordinator.core.state import Node
from flotta_coordinator.member import Context, Member, refuse_bad_argument, require_text

SERVICE = "flotta.cluster.v1.Cluster"
DECISIONS_DEFAULT = 100
ID_CHARS_SHOWN = 128
DECISIONS_MAX = 1_000


class ClusterService(cluster_pb2_grpc.ClusterServicer):
    def __init__(self, member: Member) -> None:
        self._member = member

    async def NodeHello(self, request: pb.NodeHelloRequest, context: Context) -> pb.NodeHelloResponse:
        async def local() -> pb.NodeHelloResponse:
            command = commands.HelloNode(
                request.node_id,
                request.address,
                request.zone,
                request.store_id,
                request.cluster_id,
                request.node_num,
            )
            await self._member.ready_session()  # before it the cluster may not have its id
            result = refuse_bad_argument(await self._member.pipeline.submit(command))
            state = self._member.store.state()
            if not isinstance(result, Applied):
                return pb.NodeHelloResponse(accepted=False, message=result.message, map_version=state.map_version)
            return pb.NodeHelloResponse(
                accepted=True,
                message=result.reply.message,
                cluster_id=state.cluster_id,
                node_num=result.reply.node_num,
                map_version=result.reply.map_version,
            )

        return await self._member.at_leader(f"/{SERVICE}/NodeHello", request, pb.NodeHelloResponse, context, local)

    async def NodeHeartbeat(self, request: pb.NodeHeartbeatRequest, context: Context) -> pb.NodeHeartbeatResponse:
        require_text("node_id", request.node_id)
        require_text("store_id", request.store_id)

        async def local() -> pb.NodeHeartbeatResponse:
            await self._member.ready_session()
            state = self._member.store.state()
            node = state.nodes.get(request.node_id)
            refusal = _refusal(request, node)
            if node is None or refusal:
                return pb.NodeHeartbeatResponse(accepted=False, message=refusal, map_version=state.map_version)
            await self._member.leadership.heard(node.node_id)
            await self._take(node, request.reports)
            return pb.NodeHeartbeatResponse(accepted=True, map_version=self._member.store.state().map_version)

        reply = pb.NodeHeartbeatResponse
        return await self._member.at_leader(f"/{SERVICE}/NodeHeartbeat", request, reply, context, local)

    async def ListDecisions(self, request: pb.ListDecisionsRequest, context: Context) -> pb.ListDecisionsResponse:
        state = await self._member.fresh(context)
        limit = min(request.limit or DECISIONS_DEFAULT, DECISIONS_MAX)
        chosen = [
            decision
            for decision in state.decisions
            if decision.number > request.after_number and request.subject in ("", decision.subject)
        ]
        return pb.ListDecisionsResponse(decisions=[wire.decision_message(decision) for decision in chosen[-limit:]])

    async def ExplainShard(self, request: pb.ExplainShardRequest, context: Context) -> pb.ExplainShardResponse:
        require_text("shard_id", request.shard_id)

        async def local() -> pb.ExplainShardResponse:
            await self._member.ready_session()
            state = await self._member.fresh(context)
            if request.shard_id not in state.shards:
                raise NotFound(f"Shard not found: {request.shard_id[:ID_CHARS_SHOWN]}")
            return wire.explanation(self._member.caretaker.explain(state, request.shard_id))

        reply = pb.ExplainShardResponse
        return await self._member.at_leader(f"/{SERVICE}/ExplainShard", request, reply, context, local)

    async def CoordinatorStatus(
        self, request: pb.CoordinatorStatusRequest, context: Context
    ) -> pb.CoordinatorStatusResponse:
        member = self._member
        state = member.store.state()
        table = state.partitioning
        return pb.CoordinatorStatusResponse(
            node_id=member.coordinators.node_id,
            cluster_id=state.cluster_id,
            leader_id=member.role.leader_id,
            leader_address=member.role.leader_address or "",
            term=member.role.term,
            applied_index=member.group.applied_index(),
            map_version=state.map_version,
            partitioning=None if table is None else wire.partitioning(table),
        )

    async def _take(self, node: Node, reports: Sequence[pb.ShardReport]) -> None:
        """Log the reports that say something new, which most do not; how moves fare is only remembered."""
        state = self._member.store.state()
        news = []
        for report in wire.shard_reports(reports):
            shard = state.shards.get(report.shard_id)
            if shard is not None and judge(state, shard, node, report) is not None:
                news.append(report)
        if news:
            await self._member.pipeline.submit(commands.ReportShards(node.node_id, tuple(news)))
            state = self._member.store.state()
        memory = self._member.leadership.require().memory
        for said in reports:
            shard = state.shards.get(said.shard_id)
            if shard is not None and (shard.leader, shard.leader_term) == (node.node_id, said.term):
                memory.reported(said.shard_id, wire.progress(said))


def _refusal(request: pb.NodeHeartbeatRequest, node: Node | None) -> str:
    """Why the heartbeat does not count; empty when it does."""
    if node is None or not node.store_id:
        return f"{request.node_id} has not said hello yet"
    if node.store_id != request.store_id:
        return f"{request.node_id} is known with store {node.store_id}, not with {request.store_id}"
    return ""
