"""One request on its way through the gateway, and what the dispatcher needs of its surroundings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from flotta_proto.flotta.storage_pb2 import Operation

from flotta_gateway.core import retry
from flotta_gateway.core.operations import Asked, Request
from flotta_gateway.core.retry import Failure, History
from flotta_gateway.core.shard_map import Route, ShardMap
from flotta_gateway.storage_link import Attempt, StorageLink


class Call:
    """One request on its way. The gateway's state of it; the transport only reads `kind` and `request`.

    What most requests never need is set only once they do.
    """

    operation: Operation | None = None
    size = 0
    any_replica = False
    route: Route | None = None
    attempt: Attempt[Call] | None = None
    link: StorageLink[Call] | None = None
    history: History = retry.NEW
    last: Failure | None = None
    resend: retry.Resend | None = None  # parked until its timer or a new map
    timer: asyncio.TimerHandle | None = None

    def __init__(self, kind: int, request: Request, deadline_ms: float, done: Callable[[bytes], None]) -> None:
        self.kind = kind
        self.request = request
        self.key = request.key
        self.deadline_ms = deadline_ms  # on the monotonic clock
        self.done: Callable[[bytes], None] | None = done  # takes the serialised response; None: answered

    def route_in(self, current: ShardMap) -> Route | None:
        """Where it goes by a map."""
        return current.route_of(self.key)


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


class Admission(Protocol):
    """Who may ask, and how often."""

    def admit(self, request: Asked, now_ms: float) -> None:
        """Raise RateLimited for a request that is not to be begun."""
        ...


class Traces(Protocol):
    """Who is told of requests that their clients trace."""

    def follow(self, call: Call, operation: Operation) -> None:
        """Tell what becomes of the call; its operation gets another trace context, if any."""
        ...


class Observer(Protocol):
    """What is counted."""

    def batch(self, size: int) -> None: ...

    def answered(self, kind: int, code: int, count: int) -> None: ...

    def resent(self, code: int) -> None: ...
