"""Brings a one-node cluster to life: registers the node, creates the shards, waits until each has a leader.

Every step may be repeated: a second start finds things as they are. Shards are created once; a later start with
another number keeps those there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc.aio
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb.coordinator_pb2_grpc import CoordinatorStub
from flotta_runtime.errors import FlottaError, StartupError
from flotta_runtime.server import Channel
from flotta_runtime.status import from_rpc_error

PAUSE_MS = 20
CALL_TIMEOUT_S = 2.0

T = TypeVar("T")


class _NotYetError(Exception):
    """The cluster is on its way; the text says what it waits for."""


async def bootstrap(
    channel: Channel, node_id: str, address: str, zone: str, shards: int, timeout_ms: int
) -> pb.ClusterState:
    """The map of a cluster whose every shard is led. StartupError with the last reason when time runs out."""
    stub = CoordinatorStub(channel.grpc)
    deadline_s = asyncio.get_running_loop().time() + timeout_ms / 1000

    async def register() -> None:
        request = pb.RegisterNodeRequest(node_id=node_id, address=address, zone=zone)
        answer = await stub.RegisterNode(request, metadata=channel.metadata, timeout=CALL_TIMEOUT_S)
        if not answer.success:
            raise _NotYetError(f"the coordinator does not register {node_id}: {answer.message}")

    async def create() -> None:
        request = pb.InitShardsRequest(num_shards=shards, replication_factor=1)
        answer = await stub.InitShards(request, metadata=channel.metadata, timeout=CALL_TIMEOUT_S)
        if not answer.success:
            raise _NotYetError(f"the coordinator does not create shards: {answer.message}")

    async def led() -> pb.ClusterState:
        state = (await stub.GetShardMap(pb.GetShardMapRequest(), timeout=CALL_TIMEOUT_S)).state
        if state.nodes[node_id].address != address:
            raise _NotYetError(f"the map still has {node_id} at its last address")
        leaderless = sorted(shard.shard_id for shard in state.shards.values() if not shard.leader)
        if leaderless or not state.shards:
            raise _NotYetError(f"no leader yet for {', '.join(leaderless) or 'any shard'}")
        return state

    async def exists() -> bool:
        return bool((await stub.GetShardMap(pb.GetShardMapRequest(), timeout=CALL_TIMEOUT_S)).state.shards)

    if not await _until(exists, deadline_s):
        await _until(register, deadline_s)
        await _until(create, deadline_s)
    return await _until(led, deadline_s)


async def _until(step: Callable[[], Awaitable[T]], deadline_s: float) -> T:
    """Repeat `step` until it succeeds. What a coordinator refuses now it may grant once it leads or hears the node."""
    while True:
        try:
            return await step()
        except _NotYetError as error:
            reason = str(error)
        except grpc.aio.AioRpcError as error:
            meant: FlottaError = from_rpc_error(error)
            if meant.grpc_code in ("INVALID_ARGUMENT", "UNAUTHENTICATED"):
                raise StartupError(f"the coordinator refuses to set up the cluster: {meant.message}") from error
            reason = meant.message
        if asyncio.get_running_loop().time() > deadline_s:
            raise StartupError(f"the cluster did not come up in time: {reason}")
        await asyncio.sleep(PAUSE_MS / 1000)
