"""Puts a storage node together: `await start(settings)` serves until `stop()`.

The ports are bound first, so that probes and peers find somebody. A new data directory then waits until a coordinator
has admitted it, which gives it its number for ever; a known one goes to work at once, coordinators or not, and
introduces itself beside that. Stopping hands leaderships over first.
"""

from __future__ import annotations

import asyncio
from functools import partial

from flotta_consensus import failpoints
from flotta_consensus.identity import DataDirectory, IdentityError
from flotta_consensus.native_transport import LINK_KEEPALIVE_MS, make_transport
from flotta_embedded.failpoints import FAILPOINTS as EMBEDDED_FAILPOINTS
from flotta_proto.flotta import cluster_pb2
from flotta_proto.flotta.storage_pb2_grpc import add_BackupsServicer_to_server, add_ShardsServicer_to_server
from flotta_proto.kvdb.kvstore_pb2_grpc import add_KVServiceServicer_to_server
from flotta_proto.kvdb.replication_pb2_grpc import add_ReplicationServiceServicer_to_server
from flotta_runtime.auth import TokenCheck
from flotta_runtime.clock import SYSTEM_CLOCK, Clock
from flotta_runtime.errors import StartupError
from flotta_runtime.http import HttpServer, status_server
from flotta_runtime.links import Links, open_links
from flotta_runtime.log_times import LogTimes
from flotta_runtime.logging import get_logger
from flotta_runtime.metrics import Metrics
from flotta_runtime.native_tls import client_tls
from flotta_runtime.readiness import follow_readiness
from flotta_runtime.server import CALLS_MAX, REQUEST_BYTES_MAX, GrpcServer, build_server, dialer
from flotta_runtime.tasks import Supervisor
from flotta_runtime.throttle import Throttle
from flotta_runtime.tls import open_channel
from flotta_runtime.tls_watch import follow_files
from flotta_runtime.tracing import open_tracer
from flotta_runtime.turns import Turns

from flotta_storage.backend import Backend, Shared, open_backend
from flotta_storage.backups_service import BackupsService
from flotta_storage.batch_handler import BatchHandler, Deadlines
from flotta_storage.budget import Budget
from flotta_storage.coordinator_link import CoordinatorLink
from flotta_storage.core.limits import Limits
from flotta_storage.heartbeat import Refused, say_hello
from flotta_storage.hints import Hints
from flotta_storage.kvservice import KvService, ReplicationService
from flotta_storage.map_model import MapModel
from flotta_storage.membership import MembershipAsker
from flotta_storage.outbox import UNSENT_BYTES_MAX, Connections
from flotta_storage.reading import ReadBatcher
from flotta_storage.replica_manager import FAILPOINTS
from flotta_storage.replica_table import ReplicaTable
from flotta_storage.request_links import RequestLinks
from flotta_storage.scanning import Scanner
from flotta_storage.settings import StorageSettings
from flotta_storage.shards_service import ShardsService
from flotta_storage.stamping import Stamps
from flotta_storage.telemetry import Telemetry
from flotta_storage.tracing import OperationTracer

SHARDS_SERVICE = "flotta.storage.v1.Shards"
BACKUPS_SERVICE = "flotta.storage.v1.Backups"
KV_SERVICE = "kvdb.kvstore.KVService"
REPLICATION_SERVICE = "kvdb.replication.ReplicationService"
RAFT_SERVICE = "flotta.raft.v1.RaftTransport"
DATA_SERVICES = (SHARDS_SERVICE, KV_SERVICE)  # of no use to anybody before the node is ready

_LEAVE_MS = 300  # for gateways to have their answers and go
_STREAM_GRACE_MS = 300


class StorageNode:
    """A storage node; made by `start`."""

    def __init__(self, settings: StorageSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._log = get_logger("storage", node=settings.node_id)
        self._throttle = Throttle(clock)
        self._failpoints = failpoints.from_environment(extra=(*EMBEDDED_FAILPOINTS, *FAILPOINTS))
        try:
            self.directory = DataDirectory.open(settings.data_dir, settings.node_id, failpoints=self._failpoints)
        except IdentityError as error:
            raise StartupError(str(error)) from error
        token = settings.token()
        self.metrics = Metrics("storage", settings.node_id)
        self.model = MapModel(self.directory.identity.cluster_id)
        self.replicas = ReplicaTable()
        self.backend: Backend | None = None
        self._tls = settings.tls()
        dial = dialer(token, self._tls)
        self._link = CoordinatorLink(settings.coordinators, dial)
        self._asker = MembershipAsker(dial)
        self._turns = Turns()
        self._native: Links | None = None
        if settings.transport == "native":
            self._native = open_links(
                self._turns,
                unsent_bytes_max=UNSENT_BYTES_MAX,
                keepalive_ms=LINK_KEEPALIVE_MS,
                tls=client_tls(self._tls),
                report=self._link_trouble,
            )
        self._transport = make_transport(
            self._native,
            self.directory,
            self._address_of,
            token=token,
            channels=partial(open_channel, self._tls),
            failpoints=self._failpoints,
            report=lambda text: self._log.warning("peer", reason=text),
            wall_ms=clock.wall_ms,
            monotonic_ms=clock.monotonic_ms,
        )
        peers = self._transport.peer_clocks
        self._stamps = Stamps(clock, peers, settings.clock_skew_max_ms, settings.node_id)
        self._telemetry = Telemetry(self.metrics)
        self._tracer = open_tracer(settings.otlp_endpoint, "storage", self.metrics, settings.node_id)
        self._budget = Budget(settings.operations_max, settings.operation_bytes_max)
        self._deadlines = Deadlines(settings.operation_timeout_ms, settings.operation_timeout_max_ms)
        self._hints = Hints(self.model, settings.node_id)
        self.handler = BatchHandler(
            self.replicas,
            self._hints,
            self._stamps.now_ms,
            self._budget,
            Limits(settings.value_bytes_max),
            self._deadlines,
            self._telemetry,
            OperationTracer(self._tracer) if self._tracer is not None else None,
        )
        self._connections = Connections()
        self._shards = ShardsService(self.handler, self.replicas, self._budget, self._connections)
        self._backups = BackupsService(self.replicas, self._hints, self._stamps.now_ms)
        if self._native is not None:
            RequestLinks(
                self._native, self.handler, self._budget, self._connections, TokenCheck(token), self._link_trouble
            )
        self._server = self._make_server(token)
        self._telemetry.watch(self._budget, self.replicas, self._stamps)
        self._supervisor = Supervisor("storage")
        self._http: HttpServer | None = None
        self._stopping: asyncio.Task[None] | None = None
        self.port = 0
        self.http_port = 0

    @property
    def address(self) -> str:
        """Where others reach this node."""
        return self._settings.advertised(self.port)

    async def start(self) -> None:
        """Bind, be admitted if this directory is new, open what it holds, and serve."""
        await self._supervisor.start()
        if self._tls is not None:
            self._supervisor.spawn("tls files", follow_files(self._tls))
        if self._tracer is not None:
            self._supervisor.spawn("tracing", self._tracer.run())
        if self._native is not None:
            self._supervisor.spawn("links", self._native.run())
        try:
            self.port = await self._server.start(waiting=DATA_SERVICES)
            http = status_server(self.metrics, self._readiness, self._settings.http_address(self.port))
            self.http_port = await http.start()
            self._http = http
            self._supervisor.spawn("grpc health", follow_readiness(self._server, DATA_SERVICES, self._readiness))
            known = self.directory.identity.node_num != 0
            if not known:
                await self._introduce()
            self.backend = await asyncio.to_thread(
                open_backend,
                Shared(
                    self._settings,
                    self.directory,
                    self._link,
                    self._asker,
                    self.model,
                    self.replicas,
                    self._clock,
                    self._stamps,
                    self._failpoints,
                    self._turns,
                ),
                self._transport,
            )
            await self._serve(self.backend, hello=known)
        except BaseException:
            await self._take_down()
            raise

    async def wait(self) -> None:
        """Return once stopped; raise when a part of it failed."""
        await self._supervisor.wait()
        if self._stopping is not None:
            await asyncio.shield(self._stopping)

    async def stop(self) -> None:
        """Hand leaderships over, answer what is in work, close everything. Safe to call more than once."""
        await asyncio.shield(self.request_stop())

    def request_stop(self) -> asyncio.Task[None]:
        """Begin to stop, and do not wait for it."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name="storage.stop")
        return self._stopping

    async def _introduce(self) -> None:
        identity = self.directory.identity
        request = cluster_pb2.NodeHelloRequest(
            node_id=identity.node_id,
            address=self.address,
            zone=self._settings.zone,
            store_id=identity.store_id,
            cluster_id=identity.cluster_id,
            node_num=identity.node_num,
        )
        answer = await say_hello(self._link, request)
        try:
            self.directory.adopt(answer.cluster_id, answer.node_num)
        except IdentityError as error:
            raise Refused(str(error)) from error
        self.model.cluster_id = answer.cluster_id

    async def _serve(self, backend: Backend, *, hello: bool) -> None:
        await backend.run(self._supervisor)
        reads = ReadBatcher(
            backend.host,
            self._hints,
            self._stamps.now_ms,
            self._budget,
            self._deadlines,
            self._turns.soon,
        )
        self._shards.host = self._backups.host = backend.host
        self._shards.compactor = backend.compactor
        self._shards.map_version = lambda: self.model.version
        self._telemetry.watch_host(backend.health, backend.duties, backend.compactor)
        LogTimes(self.metrics, backend.host.sync_times)
        # Not the end of a turn but the next one: between two steps of a scan all else has its turn.
        next_pass = asyncio.get_running_loop().call_soon
        scans = Scanner(backend.host, self._hints, self._stamps.now_ms, self._deadlines, next_pass)
        self.handler.attach(backend.host, reads, scans)
        if hello:
            self._supervisor.spawn("hello", self._introduce())

    async def _stop(self) -> None:
        half_ms = self._settings.stop_timeout_ms // 2
        if self.backend is not None and self._supervisor.failure is None:
            left = await self.backend.duties.hand_over(half_ms)
            if left:
                self._log.info("stopping as a leader", shards=left)
        await self._connections.leave(_LEAVE_MS)  # gateways go elsewhere, each with all its answers
        self.handler.detach()
        await self._take_down()

    async def _take_down(self) -> None:
        """From whatever state: requests first, then replication, then files."""
        await self._stop_server()
        if self._http is not None:
            await self._http.stop()
        await self._supervisor.stop()  # the tasks first: none of them must meet a closed host
        if self._tracer is not None:
            await self._tracer.close()
        if self.backend is not None:
            await self.backend.close()
        await self._asker.close()
        await self._link.close()
        if self._native is not None:
            self._native.shut_down()
        if self.backend is not None:
            await asyncio.to_thread(self.backend.close_engine)
        self.directory.close()

    async def _stop_server(self) -> None:
        """What is in work may still need the other nodes; their Raft streams have no end of their own, so they are
        ended after it. Gateways that are still there get the grace: what they send is refused, and so in no doubt."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._server.stop(_STREAM_GRACE_MS))
            if self.backend is not None:
                await self.backend.host.settled(_STREAM_GRACE_MS)
            self._transport.end_streams()

    def _make_server(self, token: str) -> GrpcServer:
        return build_server(
            [
                (add_ShardsServicer_to_server, self._shards, SHARDS_SERVICE),
                (add_BackupsServicer_to_server, self._backups, BACKUPS_SERVICE),
                (add_KVServiceServicer_to_server, KvService(self.handler, self.model, self._shutdown), KV_SERVICE),
                (add_ReplicationServiceServicer_to_server, ReplicationService(), REPLICATION_SERVICE),
                (lambda _, server: self._transport.add_to(server), self._transport, RAFT_SERVICE),
            ],
            listen=self._settings.listen,
            token=token,
            transport=self._settings.transport,
            # Refusals are to be the budget's, which says RATE_LIMITED.
            calls_max=max(CALLS_MAX, 2 * self._settings.operations_max),
            request_bytes_max=max(REQUEST_BYTES_MAX, 2 * self._settings.operation_bytes_max),
            metrics=self.metrics,
            tls=self._tls,
            links=self._native.hub if self._native is not None else None,
            turns=self._turns,
        )

    def _link_trouble(self, text: str) -> None:
        left_out = self._throttle.admit("link")
        if left_out is not None:
            self._log.warning("link", reason=text, left_out=left_out)

    def _shutdown(self) -> None:
        self.request_stop()

    def _address_of(self, node_num: int) -> str | None:
        return self.backend.address_of(node_num) if self.backend is not None else None

    def _readiness(self) -> tuple[bool, str]:
        if self._stopping is not None:
            return False, "the node is stopping"
        if self.backend is None:
            return False, "no coordinator has admitted this node yet"
        return self.backend.health.readiness()


async def start(settings: StorageSettings, clock: Clock = SYSTEM_CLOCK) -> StorageNode:
    """A serving storage node."""
    node = StorageNode(settings, clock)
    await node.start()
    return node
