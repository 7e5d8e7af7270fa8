"""Readiness of a node: what stands between it and being asked."""

from __future__ import annotations

from typing import Any, cast

import pytest
from flotta_storage.health import HealthMonitor
from flotta_storage.replica_table import ReplicaTable


class Host:
    """A log whose disk has hung for so long."""

    def __init__(self) -> None:
        self.under_way_ns = 0

    def sync_times(self) -> tuple[list[int], int, int]:
        return [0] * 15, 0, self.under_way_ns

    async def statuses(self) -> list[Any]:
        return []


class Stamps:
    problem = ""

    def now_ms(self) -> int:
        return 1


@pytest.mark.parametrize(("seconds", "ready"), [(0, True), (9, True), (11, False)])
async def test_a_node_whose_disk_hangs_is_not_ready_though_its_replicas_were(seconds: int, ready: bool) -> None:
    host = Host()
    health = HealthMonitor(cast(Any, host), ReplicaTable(), cast(Any, Stamps()))
    assert health.readiness() == (False, "the replicas have not been looked at yet")
    await health.check()
    assert health.readiness()[0]
    host.under_way_ns = seconds * 10**9
    assert health.readiness()[0] == ready
    if not ready:
        assert health.readiness()[1] == "the disk of the Raft log has not answered for 11 s"
