"""A gateway of the simulated cluster: the parts of `flotta_gateway.app`, with links made of simulated connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cluster_links import sim_sessions
from cluster_node import ClusterNode, supervised
from flotta_consensus.sim.checkers import SafetyViolation
from flotta_consensus.sim.loop import SimLoop
from flotta_consensus.sim.node import SimNode
from flotta_gateway.app import link_options
from flotta_gateway.core.deadlines import Patience
from flotta_gateway.core.scans import ScanLimits
from flotta_gateway.core.shard_map import ShardMap
from flotta_gateway.core.validation import Limits
from flotta_gateway.dispatcher import Dispatcher, DispatcherOptions
from flotta_gateway.link_pool import LinkPool
from flotta_gateway.map_cache import MapCache, MapOptions
from flotta_gateway.multi import MultiLimits
from flotta_gateway.scanner import Scanner
from flotta_gateway.service import GatewayService, MultiService
from flotta_gateway.settings import GatewaySettings
from flotta_proto.flotta.kv_pb2_grpc import add_KvServicer_to_server
from flotta_proto.kvdb.gateway_pb2_grpc import add_KvGatewayServicer_to_server

if TYPE_CHECKING:
    from cluster_world import Cluster


class _Uncounted:
    """Nobody counts here."""

    def batch(self, size: int) -> None:
        """Requests taken."""

    def answered(self, kind: int, code: int, count: int) -> None:
        """Requests answered."""

    def resent(self, code: int) -> None:
        """A further attempt."""


class GatewayProcess(ClusterNode):
    def __init__(self, cluster: Cluster, number: int, name: str, settings: GatewaySettings) -> None:
        super().__init__(cluster, number, name, cluster.observer)
        self.settings = settings
        self.maps: MapCache | None = None

    def replica_of(self, group: int) -> int:
        raise SafetyViolation(f"{self.name} has no replica of group {group}")

    def peer(self, node_num: int) -> SimNode | None:
        return None

    def dropped(self) -> None:
        super().dropped()
        self.maps = None

    async def main(self, loop: SimLoop) -> None:
        settings, jitter = self.settings, self.rng.random

        def changed(shard_map: ShardMap) -> None:
            links.keep(shard_map.addresses())
            dispatcher.map_changed()

        options = MapOptions(refresh_ms_min=settings.map_refresh_min_ms, idle_ms=settings.map_idle_ms)
        maps = MapCache(settings.coordinators, self.dial(None), changed, jitter, options)
        supervisor = await supervised("gateway", self)
        linking = link_options(settings)
        links = LinkPool(supervisor, linking, (sim_sessions(self.cluster.wires, self, linking),), jitter)
        dispatcher = Dispatcher(
            maps,
            links,
            _Uncounted(),
            self.clock,
            jitter,
            Limits(value_bytes_max=settings.value_bytes_max),
            DispatcherOptions(
                calls_max=settings.requests_max, bytes_max=settings.request_bytes_max, attempt_ms=settings.attempt_ms
            ),
        )
        links.events = dispatcher
        patience = Patience(settings.deadline_default_ms, settings.deadline_max_ms)
        add_KvGatewayServicer_to_server(GatewayService(dispatcher, self.clock, patience), self.server)
        scanner = Scanner(dispatcher, maps, self.clock, ScanLimits())
        multi = MultiService(dispatcher, scanner, self.clock, patience, MultiLimits())
        add_KvServicer_to_server(multi, self.server)
        self.maps = maps
        supervisor.spawn("map watch", maps.watch())
        supervisor.spawn("map refresh", maps.refresh())
        await supervisor.wait()
        await asyncio.Event().wait()
