"""`flotta.cluster.v1.Roster`: how coordinators that are lost for good are replaced, and how the rest is recovered."""

from __future__ import annotations

from flotta_proto.flotta import roster_pb2 as pb
from flotta_proto.flotta import roster_pb2_grpc
from flotta_runtime.errors import PreconditionFailed

from flotta_coordinator.core.commands import AdmitCoordinator
from flotta_coordinator.core.results import Applied
from flotta_coordinator.member import Context, Member, refuse_bad_argument, require_text
from flotta_coordinator.replacing import Replacing
from flotta_coordinator.roster import RosterKeeper

SERVICE = "flotta.cluster.v1.Roster"


class RosterService(roster_pb2_grpc.RosterServicer):
    def __init__(self, member: Member, keeper: RosterKeeper) -> None:
        self._member = member
        self._keeper = keeper
        self._replacing = Replacing(member, keeper)

    async def Survey(self, request: pb.RosterSurveyRequest, context: Context) -> pb.RosterSurvey:
        return await self._keeper.survey(getattr(request, "from"))

    async def Seize(self, request: pb.SeizeRosterRequest, context: Context) -> pb.SeizeRosterResponse:
        return await self._keeper.seize(request)

    async def Replace(self, request: pb.ReplaceCoordinatorRequest, context: Context) -> pb.ReplaceCoordinatorResponse:
        name, place = request.node_id, self._place_of(request.node_id)

        async def local() -> pb.ReplaceCoordinatorResponse:
            await self._member.ready_session()
            message = await self._replacing.replace(name, place, dry_run=request.dry_run)
            return pb.ReplaceCoordinatorResponse(message=message)

        reply = pb.ReplaceCoordinatorResponse
        return await self._member.at_leader(f"/{SERVICE}/Replace", request, reply, context, local)

    async def Admit(self, request: pb.AdmitCoordinatorRequest, context: Context) -> pb.AdmitCoordinatorResponse:
        require_text("store_id", request.store_id)
        place = self._place_of(request.node_id)

        async def local() -> pb.AdmitCoordinatorResponse:
            await self._member.ready_session()
            command = AdmitCoordinator(request.node_id, place, request.store_id)
            result = refuse_bad_argument(await self._member.pipeline.submit(command))
            if not isinstance(result, Applied):
                raise PreconditionFailed(result.message)
            cluster_id = self._member.store.state().cluster_id
            return pb.AdmitCoordinatorResponse(cluster_id=cluster_id, node_num=result.reply.node_num)

        reply = pb.AdmitCoordinatorResponse
        return await self._member.at_leader(f"/{SERVICE}/Admit", request, reply, context, local)

    def _place_of(self, node_id: str) -> int:
        names = [name for name, _ in self._member.coordinators.members]
        if node_id not in names:
            raise PreconditionFailed(f"node_id: the coordinators are {', '.join(names)}, not {node_id[:64]}")
        return names.index(node_id) + 1
