"""Pages of a shard whose keys another takes over: given out by its replicas, and asked for by the other's leader.

A page is worth the same from any replica (`core/follows.py`), so the leader that the map names is asked first only
because it is ahead of the others. Invariant: a page is cut from one frozen view.
"""

from __future__ import annotations

from typing import Final

import grpc.aio
from flotta_proto.flotta import storage_pb2 as pb
from flotta_proto.flotta.storage_pb2_grpc import ShardsStub
from flotta_runtime.logging import get_logger

from flotta_storage.core.absorptions import Source
from flotta_storage.core.follows import Followed, Phase, page_of
from flotta_storage.map_model import MapModel
from flotta_storage.membership import Nodes
from flotta_storage.replica_table import Replica

PAGE_TIMEOUT_MS: Final = 5_000


def follow(replica: Replica | None, request: pb.FollowRequest) -> pb.FollowResponse:
    """The page that is asked for, of the replica that is here, if one is."""
    if replica is None:
        return pb.FollowResponse()
    try:
        view = replica.machine.freeze()
    except KeyError:  # removed in this moment
        return pb.FollowResponse()
    try:
        page = page_of(view, Phase(request.phase or Phase.ROWS), request.cursor, request.token)
    finally:
        view.close()
    if page is None:
        return pb.FollowResponse()
    rows = [pb.FollowedRow(key=key, row=row or b"", gone=row is None) for key, row in page.rows]
    return pb.FollowResponse(
        followed=True,
        token=page.token,
        rows=rows,
        phase=pb.FollowPhase.ValueType(page.phase),
        cursor=page.cursor,
        more=page.more,
        revision=page.revision,
        group_time_ms=page.group_time_ms,
    )


class Following:
    """Asks nodes for pages."""

    def __init__(self, nodes: Nodes, model: MapModel) -> None:
        self._nodes = nodes
        self._model = model
        self._log = get_logger("storage.merges")

    async def page(self, source: Source) -> Followed | None:
        """What comes next of a source; None if there is nobody to ask, or nothing to be had yet."""
        shard = self._model.shard(source.shard_id)
        address = self._model.address(shard.leader) if shard is not None and shard.group == source.group else ""
        if not address:
            return None
        request = pb.FollowRequest(
            group_id=source.group,
            token=source.token,
            phase=pb.FollowPhase.ValueType(source.phase),
            cursor=source.cursor,
        )
        link = self._nodes.to(address)
        try:
            answer = await ShardsStub(link.grpc).Follow(request, timeout=PAGE_TIMEOUT_MS / 1000, metadata=link.metadata)
        except grpc.aio.AioRpcError as error:
            self._log.debug("no page", shard=source.shard_id, node=address, reason=error.details())
            return None
        if not answer.followed:
            return None
        return Followed(
            answer.token,
            answer.revision,
            answer.group_time_ms,
            Phase(answer.phase),
            answer.cursor,
            answer.more,
            tuple((one.key, None if one.gone else one.row) for one in answer.rows),
        )
