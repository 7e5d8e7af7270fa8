"""Storage nodes in this process under a scripted coordinator: the map says what the test says, and nothing else.

The coordinator numbers nodes and records what shards report, as the real one does; births, targets, wanted leaders and
stale maps are the test's to set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import certificates
import grpc.aio
from flotta_proto.flotta import cluster_pb2, cluster_pb2_grpc, storage_pb2, storage_pb2_grpc
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb import coordinator_pb2_grpc, gateway_pb2, kvstore_pb2_grpc
from flotta_runtime.clock import SYSTEM_CLOCK, Clock
from flotta_runtime.hashing import home_count, shard_index
from flotta_runtime.server import GrpcServer, build_server
from flotta_runtime.tls import Tls, TlsFiles
from flotta_storage.app import StorageNode, start
from flotta_storage.settings import StorageSettings

TOKEN = "integration"
METADATA = (("x-kvdb-internal-token", TOKEN),)
Code = gateway_pb2.Status.Code
OK = gateway_pb2.Status.OK


class ScriptedCoordinator(coordinator_pb2_grpc.CoordinatorServicer, cluster_pb2_grpc.ClusterServicer):
    """One coordinator, always the leader. Every change of `state` goes through `change`."""

    def __init__(self) -> None:
        self.state = pb.ClusterState(map_version=1, cluster_id="test-cluster")
        self.reports: dict[str, cluster_pb2.ShardReport] = {}
        self.refusal = ""
        self.beats = 0
        self.refused: list[tuple[str, str]] = []  # reports of replicas that were given up
        self.sequence = 0
        self.seals = True  # whether shards are sealed as soon as the one that takes them over has caught up
        self._changed = asyncio.Condition()
        self._deltas: list[pb.ShardMapDelta] = []

    async def change(self, edit: Callable[[pb.ClusterState], object], shards: Sequence[str] = ()) -> None:
        async with self._changed:
            edit(self.state)
            self.state.map_version += 1
            delta = pb.ShardMapDelta(
                new_map_version=self.state.map_version,
                previous_map_version=self.state.map_version - 1,
                changed_shards=shards,
                shards=[self.state.shards[shard] for shard in shards if shard in self.state.shards],
                removed_shards=[shard for shard in shards if shard not in self.state.shards],
                nodes=list(self.state.nodes.values()),
                partitioning=self.state.partitioning,
            )
            self._deltas.append(delta)
            self._changed.notify_all()

    async def send(self, delta: pb.ShardMapDelta) -> None:
        """Whatever the test wants the nodes to hear."""
        async with self._changed:
            self._deltas.append(delta)
            self._changed.notify_all()

    def replica_floor(self, shard_id: str) -> int:
        return self.state.shards[shard_id].detail.replica_floor if shard_id in self.state.shards else 0

    def new_replica(self, node_id: str) -> pb.ReplicaRef:
        self.sequence += 1
        number = self.state.nodes[node_id].detail.node_num
        return pb.ReplicaRef(node_id=node_id, replica_id=number << 32 | self.sequence)

    async def NodeHello(self, request: Any, context: Any) -> cluster_pb2.NodeHelloResponse:
        if self.refusal:
            return cluster_pb2.NodeHelloResponse(accepted=False, message=self.refusal)
        known = self.state.nodes.get(request.node_id)
        number = known.detail.node_num if known is not None else len(self.state.nodes) + 1

        def edit(state: pb.ClusterState) -> None:
            state.nodes[request.node_id].CopyFrom(
                pb.NodeRecord(
                    node_id=request.node_id,
                    address=request.address,
                    status=pb.ALIVE,
                    detail=pb.NodeDetail(node_num=number, store_id=request.store_id, placeable=True),
                )
            )

        await self.change(edit)
        return cluster_pb2.NodeHelloResponse(accepted=True, cluster_id=self.state.cluster_id, node_num=number)

    async def NodeHeartbeat(self, request: Any, context: Any) -> cluster_pb2.NodeHeartbeatResponse:
        self.beats += 1
        for report in request.reports:
            await self._record(request.node_id, report)
        return cluster_pb2.NodeHeartbeatResponse(accepted=True, map_version=self.state.map_version)

    async def _record(self, node_id: str, report: cluster_pb2.ShardReport) -> None:
        known = self.reports.get(report.shard_id)
        if report.leader_replica & 0xFFFFFFFF < self.replica_floor(report.shard_id):
            self.refused.append((node_id, report.shard_id))
            return
        if known is not None and (report.epoch, report.term) < (known.epoch, known.term):
            return
        self.reports[report.shard_id] = report
        names = {record.detail.node_num: name for name, record in self.state.nodes.items()}

        def edit(state: pb.ClusterState) -> None:
            record = state.shards[report.shard_id]
            record.leader, record.epoch = node_id, report.epoch
            detail = record.detail
            detail.phase, detail.leader_term, detail.conf_index = pb.ShardDetail.ACTIVE, report.term, report.conf_index
            del detail.members[:]
            detail.members.extend(
                pb.ReplicaRef(node_id=names[voter >> 32], replica_id=voter) for voter in report.voters
            )
            if {target.replica_id for target in detail.targets} == set(report.voters):
                del detail.targets[:]
            if detail.target_leader == node_id:
                detail.target_leader = ""
            if report.shard_count > detail.shard_count:
                detail.shard_count = report.shard_count
            if report.whole:
                detail.parent = ""
            if detail.heir.replica_id == report.leader_replica:
                detail.ClearField("heir")

        if report.shard_id in self.state.shards:
            await self.change(edit, [report.shard_id])
            await self._merge(report)

    async def _merge(self, report: cluster_pb2.ShardReport) -> None:
        """Seal the sources of a shard that has caught up, and drop them once it has their keys."""
        detail = self.state.shards[report.shard_id].detail
        sources = [name for name, one in self.state.shards.items() if one.detail.into == report.shard_id]
        merged = detail.order and report.shard_count == self.state.partitioning.num_shards < detail.shard_count
        if not sources or not (merged or (self.seals and report.caught_up == detail.order)):
            return

        def seal(state: pb.ClusterState) -> None:
            for name in sources:
                state.shards[name].detail.sealing = True

        def drop(state: pb.ClusterState) -> None:
            taker = state.shards[report.shard_id].detail
            taker.shard_count, taker.order = report.shard_count, 0
            for name in sources:
                taker.absorbed.append(state.shards[name].detail.group_id)
                del state.shards[name]
                self.reports.pop(name, None)

        await self.change(drop if merged else seal, [report.shard_id, *sources])

    async def GetShardMap(self, request: Any, context: Any) -> pb.GetShardMapResponse:
        if request.if_version_gt >= self.state.map_version:
            return pb.GetShardMapResponse(not_modified=True)
        return pb.GetShardMapResponse(state=self.state)

    async def WatchShardMap(self, request: Any, context: Any) -> Any:
        position = len(self._deltas)
        if self.state.map_version > request.from_version:
            yield pb.ShardMapDelta(new_map_version=self.state.map_version, full_state=self.state)
        while True:
            async with self._changed:
                while len(self._deltas) <= position:
                    await self._changed.wait()
                fresh, position = self._deltas[position:], len(self._deltas)
            for delta in fresh:
                yield delta


class Cluster:
    """A scripted coordinator and storage nodes, all in this process."""

    def __init__(self, path: Path, transport: str = "native", tls: TlsFiles | None = None) -> None:
        self.path = path
        self.transport = transport
        self.tls_files = tls
        self.coordinator = ScriptedCoordinator()
        self.nodes: dict[str, StorageNode] = {}
        self._ports: dict[str, int] = {}
        self._server: GrpcServer | None = None
        self._channels: dict[str, grpc.aio.Channel] = {}
        self.coordinator_port = 0

    async def open(self, nodes: int) -> None:
        await self.start_coordinator()
        await asyncio.gather(*(self.start(f"node-{number}") for number in range(1, nodes + 1)))

    async def start_coordinator(self) -> None:
        self._server = build_server(
            [
                (
                    coordinator_pb2_grpc.add_CoordinatorServicer_to_server,
                    self.coordinator,
                    "kvdb.coordinator.Coordinator",
                ),
                (cluster_pb2_grpc.add_ClusterServicer_to_server, self.coordinator, "flotta.cluster.v1.Cluster"),
            ],
            listen=f"127.0.0.1:{self.coordinator_port}",
            token=TOKEN,
            tls=Tls(self.tls_files) if self.tls_files is not None else None,
        )
        self.coordinator_port = await self._server.start()

    async def stop_coordinator(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def settings(self, node_id: str, **fields: Any) -> StorageSettings:
        values: dict[str, Any] = {
            "node_id": node_id,
            "listen": f"127.0.0.1:{self._ports.get(node_id, 0)}",
            "http_listen": "127.0.0.1:0",
            "coordinators": (f"127.0.0.1:{self.coordinator_port}",),
            "data_dir": self.path / node_id,
            "internal_token": TOKEN,
            "transport": self.transport,
            "tick_ms": 20,
            "election_ticks": 20,  # a slow disk must not cost a leader its place
            "heartbeat_ms": 100,
            "duties_ms": 50,
            "map_poll_ms": 200,
            "stop_timeout_ms": 2_000,
        }
        tls = certificates.settings(self.tls_files) if self.tls_files is not None else {}
        return StorageSettings(**{**values, **tls, **fields})

    async def start(self, node_id: str, *, clock: Clock = SYSTEM_CLOCK, **fields: Any) -> StorageNode:
        node = await start(self.settings(node_id, **fields), clock)
        self._ports[node_id] = node.port
        self.nodes[node_id] = node
        return node

    async def stop(self, node_id: str) -> None:
        await self.nodes.pop(node_id).stop()

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))
        await self.stop_coordinator()

    def channel(self, node_id: str) -> grpc.aio.Channel:
        address = f"127.0.0.1:{self._ports[node_id]}"
        if address not in self._channels:
            options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
            self._channels[address] = grpc.aio.insecure_channel(address, options=options)
        return self._channels[address]

    def kv(self, node_id: str) -> kvstore_pb2_grpc.KVServiceStub:
        return kvstore_pb2_grpc.KVServiceStub(self.channel(node_id))

    def shards(self, node_id: str) -> storage_pb2_grpc.ShardsStub:
        return storage_pb2_grpc.ShardsStub(self.channel(node_id))

    async def create_shards(self, count: int, node_ids: Sequence[str]) -> None:
        """Every shard has a replica on each of the nodes."""
        names = [f"shard-{index}" for index in range(count)]

        def edit(state: pb.ClusterState) -> None:
            state.partitioning.num_shards, state.partitioning.replication_factor = count, len(node_ids)
            for index, name in enumerate(names):
                birth = [self.coordinator.new_replica(node_id) for node_id in node_ids]
                detail = pb.ShardDetail(
                    group_id=100 + index,
                    table="default",
                    shard_index=index,
                    shard_count=count,
                    phase=pb.ShardDetail.CREATING,
                    birth=birth,
                    birth_shard_count=count,
                    members=birth,
                )
                state.shards[name].CopyFrom(
                    pb.ShardRecord(shard_id=name, epoch=1, replicas=node_ids, config_state=pb.STABLE, detail=detail)
                )

        await self.coordinator.change(edit, names)
        await self.until(lambda: all(name in self.coordinator.reports for name in names))

    async def set_targets(self, shard_id: str, node_ids: Iterable[str]) -> None:
        def edit(state: pb.ClusterState) -> None:
            detail = state.shards[shard_id].detail
            kept = {ref.node_id: ref for ref in detail.members}
            targets = [kept.get(node_id) or self.coordinator.new_replica(node_id) for node_id in node_ids]
            del detail.targets[:]
            detail.targets.extend(targets)

        await self.coordinator.change(edit, [shard_id])

    async def split(self, count: int, amiss: Callable[[pb.ClusterState], object] = lambda _: None) -> list[str]:
        """Ask every shard to divide, so that there are `count`, but for what `amiss` changes; the children's names."""
        names: list[str] = []

        def edit(state: pb.ClusterState) -> None:
            before = state.partitioning.num_shards
            for index in range(before, count):
                parent = state.shards[f"shard-{index % before}"]
                self.coordinator.sequence += 1
                detail = pb.ShardDetail(
                    group_id=100 + index,
                    table="default",
                    shard_index=index,
                    shard_count=count,
                    phase=pb.ShardDetail.AWAITED,
                    members=parent.detail.members,
                    parent=parent.shard_id,
                    sequence=self.coordinator.sequence,
                )
                names.append(name := f"shard-{index}")
                state.shards[name].CopyFrom(pb.ShardRecord(shard_id=name, epoch=1, detail=detail))
                state.shards[name].replicas.extend(parent.replicas)
            amiss(state)

        count_before = self.coordinator.state.partitioning.num_shards
        await self.coordinator.change(edit, [f"shard-{index}" for index in range(count_before, count)])
        return names

    async def split_done(self, count: int, *, pruned: bool = True) -> None:
        """Wait until every child is whole, and (`pruned`) nothing of the division remains; then all is routed anew."""
        shards = self.coordinator.state.shards
        await self.until(lambda: all(not one.detail.parent and one.leader for one in shards.values()))
        if pruned:
            replicas = lambda: (one for node in self.nodes.values() for one in node.replicas)  # noqa: E731
            await self.until(lambda: all(one.division() is None for one in replicas()))

        def edit(state: pb.ClusterState) -> None:
            state.partitioning.num_shards = count

        await self.coordinator.change(edit)

    async def merge(self, count: int, order: int = 1) -> None:
        """Ask shards to grow together, so that there are `count`; order 0 takes that back."""

        def edit(state: pb.ClusterState) -> None:
            for record in state.shards.values():
                detail = record.detail
                gone = detail.shard_index >= count
                detail.order = order
                detail.into = f"shard-{detail.shard_index % count}" if gone and order else ""
            state.partitioning.num_shards = count if order else len(state.shards)

        await self.coordinator.change(edit, list(self.coordinator.state.shards))

    async def merge_done(self, count: int) -> None:
        """Wait until there are no more, on any node."""
        await self.until(lambda: len(self.coordinator.state.shards) == count)
        await self.until(lambda: all(len(node.replicas) <= count for node in self.nodes.values()))

    async def recover(self, shard_id: str, node_id: str) -> pb.Heir:
        """Have the shard go on from the replica of one node, as an operator's order does."""
        survey = await self.shards(node_id).Survey(storage_pb2.SurveyRequest(shard_id=shard_id), metadata=METADATA)
        fresh = self.coordinator.new_replica(node_id)
        record = self.coordinator.state.shards[shard_id]
        heir = pb.Heir(
            node_id=node_id,
            replica_id=fresh.replica_id,
            from_replica=survey.replica_id,
            term_min=max(survey.term, record.detail.leader_term),
            epoch_min=max(survey.epoch, record.epoch) + 1,
        )

        def edit(state: pb.ClusterState) -> None:
            detail = state.shards[shard_id].detail
            detail.replica_floor = self.coordinator.sequence
            detail.heir.CopyFrom(heir)
            del detail.targets[:]

        await self.coordinator.change(edit, [shard_id])
        return heir

    def voters(self, shard_id: str) -> set[str]:
        """The nodes of a shard, as last reported."""
        names = {record.detail.node_num: name for name, record in self.coordinator.state.nodes.items()}
        return {names[voter >> 32] for voter in self.coordinator.reports[shard_id].voters}

    def shard_count(self, shard_id: str) -> int:
        """By which its keys are found, as last reported."""
        return self.coordinator.state.shards[shard_id].detail.shard_count

    def leader(self, shard_id: str) -> str:
        return self.coordinator.state.shards[shard_id].leader

    async def until(self, condition: Callable[[], object], timeout_s: float = 60) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 - any state at all, which nobody signals
                await asyncio.sleep(0.02)

    async def until_async(self, condition: Callable[[], Awaitable[object]], timeout_s: float = 60) -> None:
        async with asyncio.timeout(timeout_s):
            while not await condition():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)

    async def execute(self, node_id: str, *operations: storage_pb2.Operation) -> list[storage_pb2.Reply]:
        """One frame to one node, and the replies in the order of the operations."""
        for call, operation in enumerate(operations):
            operation.call = call
        stream = self.shards(node_id).Execute(metadata=METADATA)
        await stream.write(storage_pb2.OperationFrame(operations=operations))
        await stream.done_writing()
        found: dict[int, storage_pb2.Reply] = {}
        async for frame in stream:
            found.update((reply.call, reply) for reply in frame.replies)
        return [found[call] for call in range(len(operations))]

    async def settle(self, *operations: storage_pb2.Operation) -> list[storage_pb2.Reply]:
        """Send each operation to its shard's leader, again and again while the answer is certainly 'not done'."""
        node_id = ""
        answers: list[storage_pb2.Reply] = []
        for operation in operations:
            async with asyncio.timeout(60):
                while True:
                    count = self.coordinator.state.partitioning.num_shards
                    home = f"shard-{shard_index(operation.key, count)}"
                    home = f"shard-{shard_index(operation.key, home_count(count, self.shard_count(home)))}"
                    if operation.shard_id != home:
                        operation.shard_id, node_id = home, self.leader(home)
                    node_id = node_id if node_id in self.nodes else next(iter(self.nodes))
                    (reply,) = await self.execute(node_id, operation)
                    if reply.code not in (Code.NOT_LEADER, Code.SHARD_MOVED, Code.UNAVAILABLE):
                        break
                    hint = (reply.leader_hint or reply.new_node_hint).rpartition(":")[2]
                    node_id = next((name for name, port in self._ports.items() if str(port) == hint), node_id)
                    await asyncio.sleep(0.05)
            answers.append(reply)
        return answers

    async def digests(self, shard_id: str, node_ids: Iterable[str]) -> list[storage_pb2.ReplicaDigest]:
        """Of the replicas that these nodes have of a shard."""
        found = []
        for node_id in node_ids:
            response = await self.shards(node_id).Digest(storage_pb2.DigestRequest(), metadata=METADATA)
            found += [digest for digest in response.replicas if digest.shard_id == shard_id]
        return found


def put(key: bytes, value: bytes, **fields: Any) -> storage_pb2.Operation:
    return storage_pb2.Operation(kind=storage_pb2.PUT, key=key, value=value, **fields)


def get(key: bytes, **fields: Any) -> storage_pb2.Operation:
    return storage_pb2.Operation(kind=storage_pb2.GET, key=key, **fields)


def delete(key: bytes, **fields: Any) -> storage_pb2.Operation:
    return storage_pb2.Operation(kind=storage_pb2.DELETE, key=key, **fields)
