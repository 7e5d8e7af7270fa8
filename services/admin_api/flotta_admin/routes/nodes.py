"""/admin/nodes: registering, reading and marking storage nodes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from flotta_proto.kvdb import coordinator_pb2
from flotta_runtime.errors import InvalidArgument, NotFound

from flotta_admin.core import convert, models
from flotta_admin.http_errors import check_accepted
from flotta_admin.routes import BAD_REQUEST, CONFLICT, COORDINATOR, UNKNOWN, Context, NodeIdPath
from flotta_admin.routes.text_body import read_text, text_body

STATUS_BODY: dict[str, Any] = text_body("ALIVE, SUSPECT or DEAD, as raw text", "DEAD")


def router(context: Context) -> APIRouter:
    """The routes over `context`."""
    routes = APIRouter(prefix="/admin/nodes", tags=["nodes"], responses=COORDINATOR)

    async def find(node_id: str) -> models.Node:
        state = await context.coordinators.state()
        if node_id not in state.nodes:
            raise NotFound(f"Node not found: {node_id}")
        return convert.node(state.nodes[node_id])

    @routes.get("")
    async def list_nodes() -> list[models.Node]:
        """All registered nodes, by id."""
        return convert.nodes(await context.coordinators.state())

    @routes.get("/{node_id}", responses=UNKNOWN)
    async def read_node(node_id: NodeIdPath) -> models.Node:
        """One node."""
        return await find(node_id)

    @routes.get("/{node_id}/health", responses=UNKNOWN)
    async def node_health(node_id: NodeIdPath) -> models.NodeHealth:
        """Ping the node now. 200 with status DOWN when it does not answer."""
        node = await find(node_id)
        asked_ms = context.clock.wall_ms()
        alive, message = await context.probe.ping(node.address)
        return models.NodeHealth(status="UP" if alive else "DOWN", message=message, timestamp_ms=asked_ms)

    @routes.post("", responses={**BAD_REQUEST, **CONFLICT})
    async def register_node(body: models.RegisterNodeRequest) -> models.Node:
        """Register a node, or change its address and zone. Repeating it changes nothing."""
        reply = await context.coordinators.write(
            "RegisterNode",
            coordinator_pb2.RegisterNodeRequest(node_id=body.node_id, address=body.address, zone=body.zone or ""),
        )
        check_accepted(reply)
        return await find(body.node_id)

    @routes.post("/{node_id}/status", responses={**BAD_REQUEST, **UNKNOWN, **CONFLICT}, openapi_extra=STATUS_BODY)
    async def set_node_status(node_id: NodeIdPath, request: Request) -> models.Node:
        """Mark a node by hand. The body is the bare word, not a JSON string."""
        word = await read_text(request, "status")
        status = convert.node_status(word)
        if status is None:
            raise InvalidArgument(f"status: it must be ALIVE, SUSPECT or DEAD, not {word[:32]!r}", field="status")
        request_message = coordinator_pb2.SetNodeStatusRequest(node_id=node_id, status=status)
        check_accepted(await context.coordinators.write("SetNodeStatus", request_message))
        return await find(node_id)

    return routes
