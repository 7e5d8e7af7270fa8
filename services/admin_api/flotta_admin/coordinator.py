"""Calls to the coordinators: any of them will do, hints are followed, retries are tenacity's.

A call is tried again only when it certainly did not happen (unavailable, not the leader) or when it only reads;
a write whose outcome is unknown is reported as such. A state is never older than one this client has already seen
or written, as long as the cluster is the same one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc.aio
from flotta_proto.flotta import cluster_pb2, cluster_pb2_grpc, operator_pb2, operator_pb2_grpc
from flotta_proto.kvdb import coordinator_pb2, coordinator_pb2_grpc
from flotta_runtime.errors import FlottaError, NotLeader, PermissionDenied, Timeout, Unauthenticated, Unavailable
from flotta_runtime.server import Channel, Dial
from flotta_runtime.status import from_rpc_error
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception
from tenacity.stop import stop_base

R = TypeVar("R")
Call = Callable[[Channel, float], Awaitable[R]]
"""(connection, timeout in seconds) → reply"""

CHANNELS_MAX = 16
BACKOFF_MS = 25
BACKOFF_MS_MAX = 400


class RefusedByCoordinator(FlottaError):
    """This service is set up wrongly; the caller can do nothing about it."""

    http_status = 502
    name = "BAD_GATEWAY"


class Coordinators:
    """The coordinators of one cluster, as the admin service sees them. `close()` when done."""

    def __init__(
        self, addresses: tuple[str, ...], dial: Dial, *, call_timeout_ms: int, request_timeout_ms: int
    ) -> None:
        self._addresses = list(addresses)
        self._dial = dial
        self._call_timeout_s = call_timeout_ms / 1000
        self._request_timeout_s = request_timeout_ms / 1000
        self._channels: dict[str, Channel] = {}
        self._preferred = addresses[0]
        self._seen_version = 0
        self._seen_cluster = ""

    async def close(self) -> None:
        """Close all connections."""
        for connection in list(self._channels.values()):
            await connection.close()
        self._channels.clear()

    async def state(self) -> coordinator_pb2.ClusterState:
        """The whole map, never older than what this client has seen."""

        async def fetch(connection: Channel, timeout_s: float) -> coordinator_pb2.ClusterState:
            stub = coordinator_pb2_grpc.CoordinatorStub(connection.grpc)
            answer = await stub.GetShardMap(coordinator_pb2.GetShardMapRequest(), timeout=timeout_s)
            state = answer.state
            if answer.not_modified:  # version 0: KvDB's rule has no state to give, but there may be nodes
                listed = await stub.ListNodes(coordinator_pb2.ListNodesRequest(), timeout=timeout_s)
                state = coordinator_pb2.ClusterState(nodes={found.node_id: found for found in listed.nodes})
            self._check_not_older(state, connection.address)
            return state

        return await self._call(fetch, reads=True)

    async def probe(self) -> None:
        """Raise unless a coordinator leader answers."""

        async def fetch(connection: Channel, timeout_s: float) -> object:
            request = coordinator_pb2.GetShardMapRequest(if_version_gt=2**63 - 1)
            return await coordinator_pb2_grpc.CoordinatorStub(connection.grpc).GetShardMap(request, timeout=timeout_s)

        await self._call(fetch, reads=True)

    async def decisions(self, request: cluster_pb2.ListDecisionsRequest) -> cluster_pb2.ListDecisionsResponse:
        """Decisions with their reasons."""

        async def fetch(connection: Channel, timeout_s: float) -> cluster_pb2.ListDecisionsResponse:
            stub = cluster_pb2_grpc.ClusterStub(connection.grpc)
            return await stub.ListDecisions(request, timeout=timeout_s, metadata=connection.metadata)

        return await self._call(fetch, reads=True)

    async def explain(self, shard_id: str) -> cluster_pb2.ExplainShardResponse:
        """Why a shard is as it is, and what comes next."""

        async def fetch(connection: Channel, timeout_s: float) -> cluster_pb2.ExplainShardResponse:
            stub = cluster_pb2_grpc.ClusterStub(connection.grpc)
            request = cluster_pb2.ExplainShardRequest(shard_id=shard_id)
            return await stub.ExplainShard(request, timeout=timeout_s, metadata=connection.metadata)

        return await self._call(fetch, reads=True)

    async def jobs(self, request: operator_pb2.ListJobsRequest) -> operator_pb2.ListJobsResponse:
        """Long work and how far it is."""

        async def fetch(connection: Channel, timeout_s: float) -> operator_pb2.ListJobsResponse:
            stub = operator_pb2_grpc.OperatorStub(connection.grpc)
            return await stub.ListJobs(request, timeout=timeout_s, metadata=connection.metadata)

        return await self._call(fetch, reads=True)

    async def order(self, method: str, request: Any) -> Any:
        """One of the operator's orders by name; the reply, accepted or refused."""
        return await self._write(operator_pb2_grpc.OperatorStub, method, request)

    async def write(self, method: str, request: Any) -> Any:
        """One of the coordinator's mutations by name; the reply, accepted or refused."""
        return await self._write(coordinator_pb2_grpc.CoordinatorStub, method, request)

    async def _write(self, make: Callable[[grpc.aio.Channel], Any], method: str, request: Any) -> Any:
        async def send(connection: Channel, timeout_s: float) -> Any:
            stub = make(connection.grpc)
            return await getattr(stub, method)(request, timeout=timeout_s, metadata=connection.metadata)

        reply = await self._call(send, reads=False)
        if reply.success:
            self._seen_version = max(self._seen_version, reply.map_version)
        return reply

    def _check_not_older(self, state: coordinator_pb2.ClusterState, address: str) -> None:
        if state.cluster_id != self._seen_cluster:
            if self._seen_cluster:
                self._seen_version = 0  # the cluster was made anew
            self._seen_cluster = state.cluster_id
        if state.map_version < self._seen_version:
            raise Unavailable(
                f"coordinator {address} is behind: it has map version {state.map_version}, not {self._seen_version}"
            )
        self._seen_version = state.map_version

    async def _call(self, call: Call[R], *, reads: bool) -> R:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._request_timeout_s
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: _may_retry(error, reads)),
            stop=_StopAt(deadline, loop),
            wait=self._pause,
            reraise=True,
        )
        result: R = await retrying(self._once, call, deadline, reads)
        return result

    async def _once(self, call: Call[R], deadline: float, reads: bool) -> R:
        address = self._preferred
        timeout_s = max(0.001, deadline - asyncio.get_running_loop().time())
        if reads:  # a write that is cut short has an unknown outcome; it gets all the time there is
            timeout_s = min(timeout_s, self._call_timeout_s)
        try:
            return await call(await self._channel(address), timeout_s)
        except grpc.aio.AioRpcError as failure:
            error = from_rpc_error(failure)
            self._turn_from(address, error)
            if isinstance(error, Unavailable | Timeout):
                raise type(error)(f"coordinator {address}: {error.message}") from failure
            if isinstance(error, Unauthenticated | PermissionDenied):
                raise RefusedByCoordinator(f"coordinator {address} refuses this service's internal token") from failure
            raise error from failure
        except Unavailable as error:
            self._turn_from(address, error)
            raise

    def _turn_from(self, address: str, error: FlottaError) -> None:
        """Choose whom to ask next: the leader that was named, else the next one of the list."""
        if address != self._preferred:
            return  # another request has already moved on
        if isinstance(error, NotLeader) and error.leader_hint:
            self._preferred = error.leader_hint
        elif isinstance(error, NotLeader | Unavailable | Timeout):
            known = address in self._addresses
            following = self._addresses.index(address) + 1 if known else 0
            self._preferred = self._addresses[following % len(self._addresses)]

    def _pause(self, state: RetryCallState) -> float:
        """Ask every coordinator once without a pause, then ever more slowly."""
        rounds = state.attempt_number - len(self._addresses)
        return 0.0 if rounds < 0 else float(min(BACKOFF_MS_MAX, BACKOFF_MS * 2 ** min(rounds, 10))) / 1000

    async def _channel(self, address: str) -> Channel:
        found = self._channels.get(address)
        if found is None:
            if len(self._channels) >= CHANNELS_MAX:  # hints named many addresses: forget the oldest
                await self._channels.pop(next(iter(self._channels))).close()
            found = self._channels[address] = self._dial(address)
        return found


class _StopAt(stop_base):
    """Gives up when the next try could only start after the deadline."""

    def __init__(self, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        self._deadline = deadline
        self._loop = loop

    def __call__(self, retry_state: RetryCallState) -> bool:
        return self._loop.time() + retry_state.upcoming_sleep >= self._deadline


def _may_retry(error: BaseException, reads: bool) -> bool:
    return isinstance(error, Unavailable | NotLeader) or (reads and isinstance(error, Timeout))
