"""The HTTP routes, one router per subject, each made over a `Context`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Path
from flotta_runtime.clock import Clock
from flotta_runtime.metrics import Metrics

from flotta_admin.compactions import Compactions
from flotta_admin.coordinator import Coordinators
from flotta_admin.copying.copier import Copier
from flotta_admin.core.models import ErrorBody, GuardBody
from flotta_admin.probe import NodeOrders, NodeProbe
from flotta_admin.succession import Successions


@dataclass(frozen=True, slots=True)
class Context:
    """What the routes work with."""

    coordinators: Coordinators
    probe: NodeProbe
    orders: NodeOrders
    copier: Copier
    compactions: Compactions
    successions: Successions
    metrics: Metrics
    clock: Clock
    readiness: Callable[[], tuple[bool, str]]


NodeIdPath = Annotated[str, Path(description="The node's id.")]
ShardIdPath = Annotated[str, Path(description="The shard's id, shard-<index>.")]

OPERATION_HEADER = "X-Operation-Id"

Responses = dict[int | str, dict[str, Any]]

GUARDED: Responses = {
    401: {"model": GuardBody, "description": "The header X-Admin-Api-Key is missing or wrong."},
    403: {"model": GuardBody, "description": "The caller's address is not on the allowlist."},
    429: {"description": "The caller's address has a rate, and is over it.", "content": {"text/plain": {}}},
}
COORDINATOR: Responses = {
    502: {"model": ErrorBody, "description": "The coordinators refuse this service's internal token."},
    503: {"model": ErrorBody, "description": "No coordinator leader answered; nothing was changed."},
    504: {"model": ErrorBody, "description": "No answer in time; a change may have happened."},
}
BAD_REQUEST: Responses = {
    400: {"model": ErrorBody, "description": "The request is wrong; the message names the field."}
}
UNKNOWN: Responses = {404: {"model": ErrorBody, "description": "There is no such node or shard."}}
CONFLICT: Responses = {
    409: {"model": ErrorBody, "description": "It contradicts what exists; nothing was changed."},
    412: {"model": ErrorBody, "description": "The cluster is not in the state this needs; nothing was changed."},
}
