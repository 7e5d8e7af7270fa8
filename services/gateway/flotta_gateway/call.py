"""One request on its way through the gateway, and what the dispatcher needs of its surroundings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from flotta_proto.flotta.storage_pb2 import Operation

from flotta_gateway.core import retry
from flotta_gateway.core.replies import Request, Response
from flotta_gateway.core.retry import Failure, History
from flotta_gateway.core.shard_map import Route, ShardMap
from flotta_gateway.storage_link import Attempt, StorageLink


class Call:
    """One request on its way. The gateway's state of it; the transport only reads `kind` and `request`."""

    __slots__ = (
        "any_replica",
        "attempt",
        "deadline_ms",
        "done",
        "history",
        "kind",
        "last",
        "link",
        "operation",
        "request",
        "resend",
        "route",
        "size",
        "timer",
    )

    def __init__(self, kind: int, request: Request, deadline_ms: float, done: Callable[[Response], None]) -> None:
        self.kind = kind
        self.request = request
        self.deadline_ms = deadline_ms  # on the monotonic clock
        self.done: Callable[[Response], None] | None = done  # None: answered
        self.size = 0
        self.operation: Operation | None = None
        self.any_replica = False
        self.history: History = retry.NEW
        self.last: Failure | None = None
        self.route: Route | None = None
        self.attempt: Attempt[Call] | None = None
        self.link: StorageLink[Call] | None = None
        self.resend: retry.Resend | None = None  # parked until its timer or a new map
        self.timer: asyncio.TimerHandle | None = None


class Links(Protocol):
    """Where the link to a node comes from."""

    def link_to(self, address: str) -> StorageLink[Call]: ...


class Maps(Protocol):
    """The newest map, and a way to ask for a newer one."""

    @property
    def current(self) -> ShardMap: ...

    @property
    def answered(self) -> bool:
        """Whether a coordinator has been heard, so that a missing map is no longer just late."""
        ...

    def refresh_soon(self) -> None: ...


class Observer(Protocol):
    """What is counted."""

    def batch(self, size: int) -> None: ...

    def answered(self, kind: int, code: int) -> None: ...

    def resent(self, code: int) -> None: ...
