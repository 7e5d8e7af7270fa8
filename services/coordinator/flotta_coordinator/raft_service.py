"""`kvdb.raft.RaftService`: KvDB's Raft port, answered so that its tools get a clear word.

The coordinators replicate over flotta.raft.v1; a KvDB coordinator can neither vote nor append here. Membership calls
and InstallSnapshot answer what KvDB itself always answered.
"""

from __future__ import annotations

from flotta_proto.kvdb import raft_pb2 as pb
from flotta_proto.kvdb import raft_pb2_grpc
from flotta_runtime.errors import PreconditionFailed

from flotta_coordinator.member import Context, Member

SERVICE = "kvdb.raft.RaftService"
FOREIGN = "these coordinators replicate over flotta.raft.v1.RaftTransport; a KvDB coordinator cannot join them"
FIXED = "the coordinators are fixed by --peers, and no leader is known at the moment"


class RaftService(raft_pb2_grpc.RaftServiceServicer):
    def __init__(self, member: Member) -> None:
        self._member = member

    async def RequestVote(self, request: pb.RequestVoteRequest, context: Context) -> pb.RequestVoteResponse:
        raise PreconditionFailed(FOREIGN)

    async def AppendEntries(self, request: pb.AppendEntriesRequest, context: Context) -> pb.AppendEntriesResponse:
        raise PreconditionFailed(FOREIGN)

    async def InstallSnapshot(self, request: pb.InstallSnapshotRequest, context: Context) -> pb.InstallSnapshotResponse:
        return pb.InstallSnapshotResponse(
            term=self._member.role.term, success=False, follower_id=self._member.coordinators.node_id
        )

    async def AddServer(self, request: pb.AddServerRequest, context: Context) -> pb.AddServerResponse:
        return pb.AddServerResponse(status=pb.AddServerResponse.NOT_LEADER, leader_hint=self._hint())

    async def RemoveServer(self, request: pb.RemoveServerRequest, context: Context) -> pb.RemoveServerResponse:
        return pb.RemoveServerResponse(status=pb.RemoveServerResponse.NOT_LEADER, leader_hint=self._hint())

    def _hint(self) -> str:
        address = self._member.role.leader_address
        if address is None:
            raise PreconditionFailed(FIXED)
        return address
