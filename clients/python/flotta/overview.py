"""The state of a cluster, gathered for `flotta status` from its coordinators and its gateways.

What cannot be reached is part of the picture, never an exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
import grpc.aio
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb.coordinator_pb2_grpc import CoordinatorStub
from flotta_runtime.tls import Tls, TlsError, TlsFiles, client_tls, open_channel

from flotta.errors import InvalidArgumentError

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway or a coordinator, and how it is."""

    address: str
    state: str
    node_id: str = ""
    term: int = 0

    @property
    def up(self) -> bool:
        return self.state in ("serving", "leader", "follower")


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A storage node."""

    node_id: str
    address: str
    zone: str
    status: str
    shards_led: int
    replicas: int


@dataclass(frozen=True, slots=True)
class ShardRow:
    """A shard of the map."""

    shard_id: str
    epoch: int
    state: str
    leader: str
    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """A cluster at one moment, as seen from here."""

    gateways: tuple[Peer, ...]
    coordinators: tuple[Peer, ...]
    map_version: int = 0
    cluster_id: str = ""
    num_shards: int = 0
    replication_factor: int = 0
    nodes: tuple[NodeRow, ...] = ()
    shards: tuple[ShardRow, ...] = ()
    problems: tuple[str, ...] = field(default=())
    has_map: bool = False
    """Whether a coordinator told the map."""

    @property
    def reachable(self) -> bool:
        """Whether anything answered."""
        return any(peer.up for peer in (*self.gateways, *self.coordinators))

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"healthy": not self.problems}


async def gather(
    gateways: Sequence[str], coordinators: Sequence[str], timeout_ms: int, tls: TlsFiles | None = None
) -> Overview:
    """Ask everyone at once; none may take longer than `timeout_ms`. InvalidArgumentError if `tls` cannot be used."""
    timeout_s = timeout_ms / 1000
    try:
        loaded = client_tls(tls)
    except TlsError as error:
        raise InvalidArgumentError(str(error)) from error
    asked_gateways = asyncio.gather(*(_ask_gateway(address, timeout_s, loaded) for address in gateways))
    asked_coordinators = asyncio.gather(*(_ask_coordinator(address, timeout_s, loaded) for address in coordinators))
    gateway_peers = tuple(await asked_gateways)
    answers = await asked_coordinators
    peers = tuple(peer for peer, _ in answers)
    state = max((state for _, state in answers if state is not None), key=lambda s: s.map_version, default=None)
    return _overview(gateway_peers, peers, state)


def _overview(gateways: tuple[Peer, ...], coordinators: tuple[Peer, ...], state: pb.ClusterState | None) -> Overview:
    if state is None:
        problems = (*_peer_problems(gateways, coordinators), *_no_map(coordinators))
        return Overview(gateways, coordinators, problems=problems)
    shards = sorted(state.shards.values(), key=lambda shard: (len(shard.shard_id), shard.shard_id))
    nodes = tuple(
        NodeRow(
            node.node_id,
            node.address,
            node.zone,
            pb.NodeStatus.Name(node.status),
            sum(shard.leader == node.node_id for shard in shards),
            sum(node.node_id in shard.replicas for shard in shards),
        )
        for _, node in sorted(state.nodes.items())
    )
    rows = tuple(
        ShardRow(
            shard.shard_id,
            shard.epoch,
            "CREATING"
            if shard.detail.phase == pb.ShardDetail.CREATING
            else pb.ShardConfigState.Name(shard.config_state),
            shard.leader,
            tuple(shard.replicas),
        )
        for shard in shards
    )
    return Overview(
        gateways,
        coordinators,
        state.map_version,
        state.cluster_id,
        state.partitioning.num_shards,
        state.partitioning.replication_factor,
        nodes,
        rows,
        (*_peer_problems(gateways, coordinators), *_map_problems(nodes, rows)),
        has_map=True,
    )


def _peer_problems(gateways: Sequence[Peer], coordinators: Sequence[Peer]) -> list[str]:
    found = [f"gateway {peer.address}: {peer.state}" for peer in gateways if not peer.up]
    found += [f"coordinator {peer.address}: {peer.state}" for peer in coordinators if not peer.up]
    if any(peer.up for peer in coordinators) and not any(peer.state == "leader" for peer in coordinators):
        found.append("none of these coordinators leads")
    return found


def _no_map(coordinators: Sequence[Peer]) -> list[str]:
    if any(peer.up for peer in coordinators):
        return ["the cluster is empty: register storage nodes, then POST /admin/config/shard-init"]
    return []


def _map_problems(nodes: Sequence[NodeRow], shards: Sequence[ShardRow]) -> list[str]:
    found = [f"node {node.node_id} is {node.status}" for node in nodes if node.status != "ALIVE"]
    if not shards:
        found.append("there are no shards yet: POST /admin/config/shard-init")
    found += [f"{shard.shard_id} has no leader" for shard in shards if not shard.leader]
    return found


async def _ask_gateway(address: str, timeout_s: float, tls: Tls | None) -> Peer:
    async with open_channel(tls, address, ()) as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(HEALTH_CHECK)
        try:
            answer = await check(b"", timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return Peer(address, _why(error))
        return Peer(address, "serving" if answer == _SERVING else "not serving")


async def _ask_coordinator(address: str, timeout_s: float, tls: Tls | None) -> tuple[Peer, pb.ClusterState | None]:
    async with open_channel(tls, address, ()) as channel:
        stub = CoordinatorStub(channel)
        try:
            leader = await stub.GetCoordinatorLeader(pb.GetCoordinatorLeaderRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return Peer(address, _why(error)), None
        peer = Peer(
            address,
            "leader" if leader.is_leader else "follower",
            leader.leader_id if leader.is_leader else "",
            leader.term,
        )
        try:
            answer = await stub.GetShardMap(pb.GetShardMapRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return peer, None  # a follower without a leader to ask; others may know
        return peer, answer.state if answer.HasField("state") else None


def _why(error: grpc.aio.AioRpcError) -> str:
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return "unreachable"
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer"
    return f"{error.code().name}: {error.details()}"
