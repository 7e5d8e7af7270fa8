"""Which node an attempt goes to.

Invariant: only a read that asked for EVENTUAL consistency may go to a replica that does not lead. Everything else
goes to the leader, or, while none is known, to a replica that can say who leads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from flotta_proto.flotta.storage_pb2 import GET, SCAN, Operation
from flotta_proto.kvdb.gateway_pb2 import EVENTUAL, LOW_LATENCY, READ_MODE_UNSPECIFIED, READ_YOUR_WRITES, STRONG

from flotta_gateway.core.shard_map import Route


def any_replica_may_serve(operation: Operation) -> bool:
    """EVENTUAL reads; but reading one's own writes without naming the revision needs the leader."""
    return (
        operation.kind in (GET, SCAN)
        and operation.consistency == EVENTUAL
        and (operation.read_mode != READ_YOUR_WRITES or operation.session_revision > 0)
    )


def make_strong(operation: Operation) -> None:
    """Whatever it asked for. The answer keeps every weaker promise as well."""
    operation.consistency, operation.read_mode, operation.session_revision = STRONG, READ_MODE_UNSPECIFIED, 0


def first_address(route: Route, any_replica: bool, spread: int) -> str:
    """Where the first attempt goes; empty when the map names nobody. `spread` deals reads out over the replicas."""
    if any_replica and route.replicas:
        return route.replicas[spread % len(route.replicas)]
    return route.leader or (route.replicas[0] if route.replicas else "")


def wants_the_quickest(operation: Operation) -> bool:
    """Of the reads that any replica may serve, those that should wait as little as possible."""
    return operation.read_mode == LOW_LATENCY


def quickest(route: Route, spread: int, work: Callable[[str], tuple[bool, int]]) -> str:
    """The replica with the least `work`: (cannot be reached, what waits for it). Equals are dealt out by `spread`."""
    start = spread % max(1, len(route.replicas))
    return min((*route.replicas[start:], *route.replicas[:start]), key=work, default=route.leader)


def next_address(route: Route, any_replica: bool, spread: int, tried: Collection[str]) -> str:
    """Where a further attempt goes: the first choice unless it was just tried, then whoever was not."""
    first = first_address(route, any_replica, spread)
    if first not in tried:
        return first
    for address in route.candidates():
        if address not in tried:
            return address
    return first
