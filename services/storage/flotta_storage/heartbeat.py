"""What this node tells the coordinator: who it is, once per start, then that it is alive and what its shards committed.

Invariants: a refusal of the introduction is final and ends the process with its sentence; a report is sent again at
once when it changed, and every `report_ms` otherwise; a shard is reported only by its leader, and never in the middle
of a joint change.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

from flotta_consensus.api import RoleChange
from flotta_proto.flotta import cluster_pb2 as pb
from flotta_proto.flotta.cluster_pb2_grpc import ClusterStub
from flotta_runtime.clock import Clock
from flotta_runtime.errors import FlottaError, InvalidArgument, StartupError, Unauthenticated
from flotta_runtime.logging import get_logger

from flotta_storage.coordinator_link import CoordinatorLink
from flotta_storage.core.moves import Progress
from flotta_storage.core.replicas import ShardView
from flotta_storage.map_model import MapModel
from flotta_storage.replica_table import Replica, ReplicaTable

HELLO_RETRY_MS = 250


class Refused(StartupError):
    """The coordinator does not take this node. The text is its sentence."""


async def say_hello(link: CoordinatorLink, request: pb.NodeHelloRequest) -> pb.NodeHelloResponse:
    """Introduce this node until a coordinator has decided; Refused if it says no."""
    log = get_logger("storage.hello", node=request.node_id)
    told = ""
    while True:
        try:
            answer: pb.NodeHelloResponse = await link.call(ClusterStub, lambda stub: stub.NodeHello, request)
        except FlottaError as error:
            # Without a number yet, nothing is lost by stopping; a known node serves on, and its operator reads the log.
            if isinstance(error, InvalidArgument) or (isinstance(error, Unauthenticated) and not request.cluster_id):
                raise Refused(f"the coordinators refuse node {request.node_id}: {error.message}") from error
            if error.message != told:
                told = error.message
                log.warning("waiting for a coordinator", reason=told)
            await asyncio.sleep(HELLO_RETRY_MS / 1000)
            continue
        if not answer.accepted:
            raise Refused(f"the coordinator refuses node {request.node_id}: {answer.message}")
        return answer


class Roles(Protocol):
    def role(self, group: int) -> RoleChange | None: ...


def report_of(
    replica: Replica,
    roles: Roles,
    shard: ShardView | None,
    progress: Progress | None,
    *,
    whole: bool = False,
    caught_up: int = 0,
) -> pb.ShardReport | None:
    """What the leader of a shard says of it; None from anybody else, or while there is nothing settled to say."""
    role, state, members = roles.role(replica.group), replica.state(), replica.machine.members()
    if role is None or not role.is_leader or state is None or members.outgoing:
        return None
    targets = shard.targets.keys() if shard is not None else ()
    return pb.ShardReport(
        shard_id=replica.shard_id,
        group_id=replica.group,
        epoch=state.epoch,
        term=role.term,
        leader_replica=replica.replica,
        voters=sorted(members.voters),
        learners=sorted(members.learners),
        conf_index=state.conf_index,
        moving=bool(targets) and set(targets) != set(members.voters),
        applied_index=replica.machine.applied_index(),
        progress=_progress_message(progress),
        shard_count=state.shard_count,
        whole=whole,
        caught_up=caught_up,
        sealed=state.sealed,
    )


def _progress_message(progress: Progress | None) -> pb.MoveProgress | None:
    if progress is None:
        return None
    lags = [pb.ReplicaLag(replica_id=replica, entries=lag) for replica, lag in progress.lags.items()]
    return pb.MoveProgress(lags=lags, copying=progress.copying, waits_for=progress.waits_for)


class ReportBook:
    """Which reports are due, given what was accepted and when."""

    def __init__(self, report_ms: int) -> None:
        self._report_ms = report_ms
        self._sent: dict[int, tuple[bytes, int]] = {}

    def due(self, reports: Sequence[pb.ShardReport], now_ms: int) -> list[pb.ShardReport]:
        led = {report.group_id for report in reports}
        self._sent = {group: sent for group, sent in self._sent.items() if group in led}
        return [report for report in reports if self._is_due(report, now_ms)]

    def accepted(self, reports: Sequence[pb.ShardReport], now_ms: int) -> None:
        for report in reports:
            self._sent[report.group_id] = (_essence(report), now_ms)

    def _is_due(self, report: pb.ShardReport, now_ms: int) -> bool:
        essence, sent_ms = self._sent.get(report.group_id, (b"", 0))
        return essence != _essence(report) or now_ms - sent_ms >= self._report_ms


def _essence(report: pb.ShardReport) -> bytes:
    """What makes a report news: everything but how far the log has come."""
    copy = pb.ShardReport()
    copy.CopyFrom(report)
    copy.applied_index = 0
    return copy.SerializeToString(deterministic=True)


class Heartbeats:
    """`run()` is its one task; `on_version` hears which map version the coordinator has."""

    def __init__(
        self,
        link: CoordinatorLink,
        replicas: ReplicaTable,
        roles: Roles,
        model: MapModel,
        progress: Callable[[int], Progress | None],
        whole: Callable[[int], bool],
        caught_up: Callable[[Replica], int],
        on_version: Callable[[int], None],
        clock: Clock,
        *,
        node_id: str,
        store_id: str,
        heartbeat_ms: int,
        report_ms: int,
    ) -> None:
        self._link = link
        self._replicas = replicas
        self._roles = roles
        self._model = model
        self._progress = progress
        self._whole = whole
        self._caught_up = caught_up
        self._on_version = on_version
        self._clock = clock
        self._node_id = node_id
        self._store_id = store_id
        self._heartbeat_ms = heartbeat_ms
        self._book = ReportBook(report_ms)
        self._news = asyncio.Event()
        self._log = get_logger("storage.heartbeat", node=node_id)
        self._told = ""
        self.accepted = 0

    def news(self) -> None:
        """Something to report may have changed: do not wait for the next beat."""
        self._news.set()

    async def run(self) -> None:
        while True:
            await self._beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_ms / 1000):
                    await self._news.wait()
            self._news.clear()

    async def _beat(self) -> None:
        reports = [
            report_of(
                one,
                self._roles,
                self._model.shard(one.shard_id),
                self._progress(one.group),
                whole=self._whole(one.group),
                caught_up=self._caught_up(one),
            )
            for one in self._replicas
        ]
        due = self._book.due([report for report in reports if report is not None], self._clock.monotonic_ms())
        request = pb.NodeHeartbeatRequest(
            node_id=self._node_id, store_id=self._store_id, map_version=self._model.version, reports=due
        )
        try:
            answer = await self._link.call(ClusterStub, lambda stub: stub.NodeHeartbeat, request)
        except FlottaError as error:
            self._tell(error.message)
            return
        if answer.accepted:
            self._book.accepted(due, self._clock.monotonic_ms())
            self._told = ""
            self.accepted += 1
        else:
            self._tell(answer.message)
        self._on_version(answer.map_version)

    def _tell(self, reason: str) -> None:
        if reason != self._told:
            self._told = reason
            self._log.warning("heartbeat not taken", reason=reason)
