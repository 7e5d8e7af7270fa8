"""A running coordinator: the data directory, the server, the group, and the tasks around them.

Order of a start: lock the directory, bind the port (others may have to ask who we are), become a member of the
cluster, open log and state, serve. Order of a stop: end the watches, the server, the tasks, the log, the state.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from functools import partial
from typing import Any

import flotta_native
from flotta_consensus.aio import GroupHost, MissingMachine
from flotta_consensus.api import Failpoints, ReadReady, replica_id
from flotta_consensus.core.effects import HostEvent
from flotta_consensus.failpoints import from_environment
from flotta_consensus.grpc_transport import GrpcTransport
from flotta_consensus.identity import DataDirectory, IdentityError
from flotta_consensus.native_transport import LINK_KEEPALIVE_MS, make_transport
from flotta_embedded.failpoints import FAILPOINTS as EMBEDDED_FAILPOINTS
from flotta_embedded.machine import Machine
from flotta_embedded.rocks import RocksEngine
from flotta_proto.flotta import cluster_pb2_grpc, operator_pb2_grpc, roster_pb2_grpc
from flotta_proto.kvdb import coordinator_pb2_grpc, raft_pb2_grpc
from flotta_runtime.clock import SYSTEM_CLOCK, Clock
from flotta_runtime.errors import StartupError
from flotta_runtime.http import HttpServer, status_server
from flotta_runtime.links import Links, open_links
from flotta_runtime.log_times import LogTimes
from flotta_runtime.logging import get_logger
from flotta_runtime.metrics import Metrics
from flotta_runtime.native_tls import client_tls
from flotta_runtime.readiness import follow_readiness
from flotta_runtime.server import GrpcServer, build_server, dialer
from flotta_runtime.tasks import Supervisor
from flotta_runtime.throttle import Throttle
from flotta_runtime.tls import open_channel
from flotta_runtime.tls_watch import follow_files
from flotta_runtime.turns import Turns

from flotta_coordinator import (
    cluster_service,
    formation,
    operator_service,
    raft_service,
    roster_service,
    service,
    wire,
)
from flotta_coordinator.caretaker import Caretaker
from flotta_coordinator.core.roster_transitions import is_founder
from flotta_coordinator.forward import Forwarder
from flotta_coordinator.group import GROUP, HostGroup, Role
from flotta_coordinator.leadership import Leadership
from flotta_coordinator.member import Member, Patience
from flotta_coordinator.opening import open_host, open_machine
from flotta_coordinator.pipeline import Pipeline
from flotta_coordinator.roster import RosterKeeper
from flotta_coordinator.roster_duties import RosterDuties
from flotta_coordinator.settings import CoordinatorSettings
from flotta_coordinator.store import MetadataStore
from flotta_coordinator.watch import Watchers

PROBE_MS = 1_000
STALE_MS = 5_000
HAND_OVER_MS = 1_000
GRACE_MS_MAX = 500
LINK_BYTES_MAX = 64 << 20  # waiting for one peer
TRANSPORT = "flotta.raft.v1.RaftTransport"
MAP_SERVICES = (service.SERVICE, cluster_service.SERVICE, operator_service.SERVICE, raft_service.SERVICE)


class CoordinatorApp:
    """Make it, `await launch()`, `await formed()`; `wait()` and `stop()` as `flotta_runtime.run.Service` says."""

    def __init__(
        self, settings: CoordinatorSettings, *, clock: Clock = SYSTEM_CLOCK, patience: Patience | None = None
    ) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.service, settings.node_id)
        self._clock = clock
        self._log = get_logger("coordinator", node=settings.node_id)
        self._throttle = Throttle(clock)
        self._coordinators = settings.coordinators()
        self._role = Role(self._coordinators)
        self._group = HostGroup()
        self.store = MetadataStore()
        messages = wire.StateMessages()
        self._watchers = Watchers(
            self.store, messages, heartbeat_ms=settings.watch_heartbeat_ms, watchers_max=settings.watchers_max
        )
        self._pipeline = Pipeline(
            self.store, self._group, self._role, clock, commit_timeout_ms=settings.commit_timeout_ms
        )
        self._leadership = Leadership(
            self.store,
            self._pipeline,
            self._role,
            clock,
            timeouts=settings.timeouts(),
            check_ms=settings.liveness_check_ms,
            cluster_id=lambda: self._directory.identity.cluster_id,
        )
        self._caretaker = Caretaker(
            self.store,
            self._pipeline,
            self._leadership,
            clock,
            settings.policy(),
            period_ms=settings.plan_every_ms,
        )
        self._tls = settings.tls()
        self._turns = Turns()
        self._native: Links | None = None
        if settings.transport == "native":
            self._native = open_links(
                self._turns,
                unsent_bytes_max=LINK_BYTES_MAX,
                keepalive_ms=LINK_KEEPALIVE_MS,
                tls=client_tls(self._tls),
                report=lambda text: self._log.warning("link", reason=text),
            )
        self._dial = dialer(settings.token(), self._tls)
        self._forwarder = Forwarder(self._dial)
        self._tasks = Supervisor("coordinator")
        self._formed = asyncio.Event()
        self._refused = asyncio.Event()
        self._refusal: StartupError | None = None
        self._fresh_ms: int | None = None
        self._engine: RocksEngine | None = None
        self._host: GroupHost | None = None
        self._http: HttpServer | None = None
        self._stopped = False
        self.member = Member(
            self._coordinators,
            self._role,
            self._group,
            self.store,
            self._pipeline,
            self._leadership,
            self._caretaker,
            self._watchers,
            self._forwarder,
            messages,
            clock,
            patience or Patience(),
        )
        self._roster = RosterKeeper(self.member, self._dial, lambda: self._directory.identity)
        self._directory: DataDirectory
        self._failpoints: Failpoints
        self._transport: GrpcTransport
        self._server: GrpcServer

    # --- life -------------------------------------------------------------------------------------------------------

    async def launch(self) -> None:
        """Bind the ports and begin; returns while the first start may still wait for the other coordinators."""
        try:
            self._failpoints = from_environment(extra=EMBEDDED_FAILPOINTS)
            self._directory = DataDirectory.open(
                self.settings.data_dir, self.settings.node_id, failpoints=self._failpoints
            )
        except (IdentityError, ValueError) as error:
            raise StartupError(str(error)) from error
        try:
            formation.check_members(self._directory, self._coordinators)
            self._transport = make_transport(
                self._native,
                self._directory,
                self._coordinators.address,
                token=self.settings.token(),
                channels=partial(open_channel, self._tls),
                failpoints=self._failpoints,
                report=lambda text: self._log.warning("peer", reason=text),
            )
            self._server = self._build_server()
            await self._server.start(waiting=MAP_SERVICES)
            self._http = status_server(self.metrics, self.readiness, self.settings.http_address(self._server.port))
            await self._http.start()
            self._add_metrics()
            await self._tasks.start()
            if self._native is not None:
                self._tasks.spawn("links", self._native.run())
            self._tasks.spawn("health", follow_readiness(self._server, MAP_SERVICES, self.readiness))
            if self._tls is not None:
                self._tasks.spawn("tls files", follow_files(self._tls))
            self._tasks.spawn("form", self._form())
        except BaseException:
            await self.stop()
            raise

    async def formed(self) -> None:
        """Return once this member takes part in its cluster. StartupError if it may not."""
        await self._first(self._formed.wait(), self.wait())

    async def wait(self) -> None:
        await self._first(self._refused.wait(), self._tasks.wait())
        if self._refusal is not None:
            raise self._refusal

    @staticmethod
    async def _first(*waits: Coroutine[Any, Any, object]) -> None:
        """Wait for whichever is first, and raise what it raises."""
        tasks = [asyncio.ensure_future(each) for each in waits]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Graceful, within the configured time; safe at any point of the life and more than once."""
        if self._stopped:
            return
        self._stopped = True
        if self._host is not None and self._role.is_leader and self._tasks.failure is None:
            await self._hand_over(self._host)
        self._watchers.close()
        if hasattr(self, "_server"):
            await self._stop_server()
        if self._http is not None:
            await self._http.stop()
        if self._host is not None:
            await self._host.close()
        await self._tasks.stop()
        if self._native is not None:
            self._native.shut_down()
        await self._forwarder.close()
        await self._roster.close()
        if self._engine is not None:
            await asyncio.to_thread(self._close_engine, self._engine)
        if hasattr(self, "_directory"):
            self._directory.close()

    async def _stop_server(self) -> None:
        """Take no new calls, and let those in work be answered; they may still need the other members. The streams of
        these have no end of their own, so they are ended then, or the whole grace would be waited for."""
        grace_ms = min(GRACE_MS_MAX, self.settings.stop_timeout_ms // 2)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._server.stop(grace_ms))
            if self._host is not None:
                await self._host.settled(grace_ms)
            self._transport.end_streams()

    async def _hand_over(self, host: GroupHost) -> None:
        """Let the most advanced follower lead before this member goes, so that nobody waits for a timeout."""
        status = await host.status(GROUP)
        if status is None:
            return
        active = [number for number, seen in status.recent_active.items() if seen and number != status.replica]
        if not active:
            return
        host.transfer_leader(GROUP, max(active, key=lambda number: status.matched.get(number, 0)))
        give_up_ms = self._clock.monotonic_ms() + HAND_OVER_MS
        while self._role.is_leader and self._clock.monotonic_ms() < give_up_ms:
            await self._leadership.wait_turn(HAND_OVER_MS // 10)

    @staticmethod
    def _close_engine(engine: RocksEngine) -> None:
        for space in engine.spaces():
            engine.flush(space)
        engine.close()

    # --- what it says of itself --------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def http_port(self) -> int:
        return 0 if self._http is None else self._http.port

    @property
    def is_leader(self) -> bool:
        """Leads, and is ready to serve as the leader."""
        return self._leadership.session is not None

    def readiness(self) -> tuple[bool, str]:
        """Ready: a leader is known and the local state was proven current a short while ago."""
        if not self._formed.is_set():
            return False, "not part of a cluster yet: waiting for the other coordinators"
        if not self._role.leader_num:
            return False, "no leader is known"
        if self._fresh_ms is None or self._clock.monotonic_ms() - self._fresh_ms > STALE_MS:
            return False, "the local state is not known to be current"
        if self._role.is_leader and not self.is_leader:
            return False, "leads, and is not ready to serve yet"
        return True, "leads" if self._role.is_leader else f"follows {self._role.leader_id}"

    # --- inside -----------------------------------------------------------------------------------------------------

    def _build_server(self) -> GrpcServer:
        return build_server(
            [
                (
                    coordinator_pb2_grpc.add_CoordinatorServicer_to_server,
                    service.CoordinatorService(self.member),
                    service.SERVICE,
                ),
                (
                    cluster_pb2_grpc.add_ClusterServicer_to_server,
                    cluster_service.ClusterService(self.member),
                    cluster_service.SERVICE,
                ),
                (
                    operator_pb2_grpc.add_OperatorServicer_to_server,
                    operator_service.OperatorService(self.member, self.settings.recover_after_ms),
                    operator_service.SERVICE,
                ),
                (
                    raft_pb2_grpc.add_RaftServiceServicer_to_server,
                    raft_service.RaftService(self.member),
                    raft_service.SERVICE,
                ),
                (
                    roster_pb2_grpc.add_RosterServicer_to_server,
                    roster_service.RosterService(self.member, self._roster),
                    roster_service.SERVICE,
                ),
                (lambda _, server: self._transport.add_to(server), self._transport, TRANSPORT),
            ],
            listen=self.settings.listen,
            token=self.settings.token(),
            transport=self.settings.transport,
            metrics=self.metrics,
            tls=self._tls,
            links=self._native.hub if self._native is not None else None,
            turns=self._turns,
        )

    async def _form(self) -> None:
        """Become a member, or say why not."""
        try:
            await formation.join(
                self._directory, self._coordinators, self._dial, new_cluster_id=lambda: uuid.uuid4().hex
            )
            engine = self._engine = RocksEngine(self._directory.path / "state", failpoints=self._failpoints)
            machine = open_machine(engine, self._directory, self._coordinators, self.store.registry, self._failpoints)
            self.store.attach(machine.view)
            if self._directory.formed:
                await self._roster.check_objections()
            host = open_host(self._directory, machine, self._transport, self.settings, self._failpoints, self._turns)
        except (StartupError, IdentityError, MissingMachine, flotta_native.LogCorruption, OSError) as error:
            self._refusal = StartupError(str(error))
            self._refused.set()
            return
        await self._serve(host, machine)

    async def _serve(self, host: GroupHost, machine: Machine) -> None:
        """Start what runs around log and state."""
        self._host = host
        LogTimes(self.metrics, host.sync_times)
        self._group.attach(host)
        self._roster.attach(host)
        host.on_role(self._leadership.on_role)
        host.on_event(self._on_event)
        self._tasks.spawn("raft", host.run())
        if GROUP in host.orphans:
            number = self._directory.identity.node_num
            voters = self._coordinators.replicas if is_founder(number) else ()
            await host.create_group(GROUP, replica_id(number, 1), voters, machine)
        self._directory.mark_formed()
        if len(self._coordinators.members) == 1:
            host.campaign(GROUP)  # nobody else could stand: no need to wait for a timeout
        self._tasks.spawn("pipeline", self._pipeline.run())
        self._tasks.spawn("leadership", self._leadership.run())
        self._tasks.spawn("planner", self._caretaker.run())
        self._tasks.spawn("probe", self._probe())
        self._tasks.spawn("roster", RosterDuties(self.member, host).run())
        self._tasks.spawn("objections", self._watch_objections())
        self._formed.set()
        identity = self._directory.identity
        self._log.info("formed", cluster_id=identity.cluster_id, number=identity.node_num)

    async def _watch_objections(self) -> None:
        try:
            await self._roster.watch_objections()
        except StartupError as error:
            self._refusal = error
            self._refused.set()

    async def _probe(self) -> None:
        """Ask for a read barrier now and then: readiness is a fact about the group, not about this process."""
        while True:
            asked_ms = self._clock.monotonic_ms()
            if isinstance(await self._group.read_barrier(PROBE_MS), ReadReady):
                self._fresh_ms = asked_ms
            await asyncio.sleep(PROBE_MS / 1000)

    def _on_event(self, event: HostEvent) -> None:
        left_out = self._throttle.admit(event.name)
        if left_out is not None:
            self._log.info("raft", event_name=event.name, number=event.number, text=event.text, left_out=left_out)

    def _add_metrics(self) -> None:
        gauges = (
            ("flotta_coordinator_is_leader", "1 when this member leads and is ready.", lambda: int(self.is_leader)),
            ("flotta_coordinator_term", "Raft term.", lambda: self._role.term),
            ("flotta_coordinator_applied_index", "Last applied log index.", self._group.applied_index),
            ("flotta_coordinator_map_version", "Version of the shard map.", lambda: self.store.state().map_version),
            ("flotta_coordinator_planner_looks", "Looks of the planner.", lambda: self._caretaker.looks),
            ("flotta_coordinator_planner_decisions", "Decisions it had done.", lambda: self._caretaker.decided),
            ("flotta_coordinator_watchers", "Open WatchShardMap streams.", lambda: len(self._watchers)),
        )
        for name, text, read in gauges:
            self.metrics.gauge(name, text).set_function(read)


async def launch(settings: CoordinatorSettings, *, patience: Patience | None = None) -> CoordinatorApp:
    """Begin, without waiting for the other coordinators: for several in one process."""
    app = CoordinatorApp(settings, patience=patience)
    await app.launch()
    return app


async def start(settings: CoordinatorSettings) -> CoordinatorApp:
    """A running coordinator that is a member of its cluster. StartupError with one sentence if it cannot be."""
    app = await launch(settings)
    try:
        await app.formed()
    except BaseException:
        await app.stop()
        raise
    return app
