"""A storage node whose wall clock is wrong notices it from its peers, and time stands still where it leads."""

from __future__ import annotations

import pytest
from flotta_runtime.clock import SYSTEM_CLOCK, SystemClock
from flotta_storage.app import StorageNode
from storage_cluster import Cluster, Code, get, put

NODES = ["node-1", "node-2", "node-3"]
HOUR_MS = 3_600_000


class WrongClock(SystemClock):
    def __init__(self) -> None:
        self.ahead_ms = 0

    def wall_ms(self) -> int:
        return super().wall_ms() + self.ahead_ms


def said(node: StorageNode) -> str:
    assert node.backend is not None
    return node.backend.health.readiness()[1]


def group_times(cluster: Cluster) -> list[int]:
    return [replica.machine.group_time_ms() for node in cluster.nodes.values() for replica in node.replicas]


@pytest.mark.parametrize("ahead_ms", [HOUR_MS, -HOUR_MS])
async def test_a_wrong_clock_stamps_nothing(cluster: Cluster, ahead_ms: int) -> None:
    clocks = {node_id: WrongClock() for node_id in NODES}
    await cluster.start_coordinator()
    for node_id in NODES:
        await cluster.start(node_id, clock=clocks[node_id])
    await cluster.create_shards(3, NODES)
    keys = [b"%d" % number for number in range(30)]
    await cluster.settle(*(put(key, b"v", ttl_ms=HOUR_MS // 2) for key in keys))
    clocks["node-1"].ahead_ms = ahead_ms
    wrong, right = cluster.nodes["node-1"], cluster.nodes["node-2"]
    await cluster.until(lambda: "no time is stamped" in said(wrong))
    assert wrong.backend is not None and wrong.backend.health.readiness()[0], "it is ready all the same"
    assert "no time is stamped" not in said(right)
    assert [one.code for one in await cluster.settle(*(get(key) for key in keys))] == [Code.OK] * len(keys)
    await cluster.settle(*(put(key, b"w", ttl_ms=HOUR_MS // 2) for key in keys))
    assert [one.value for one in await cluster.settle(*(get(key) for key in keys))] == [b"w"] * len(keys)
    assert max(group_times(cluster)) <= SYSTEM_CLOCK.wall_ms()
    clocks["node-1"].ahead_ms = 0
    await cluster.until(lambda: "no time is stamped" not in said(wrong))
