"""Is this node ready? Every replica that votes knows a leader and has applied nearly all that is committed; and the
disk of its log answers: while a sync hangs nothing can be asked of the replicas, so that is looked at by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import flotta_native
from flotta_consensus.groups import Groups

from flotta_storage.replica_table import ReplicaTable
from flotta_storage.stamping import Stamps

CHECK_MS = 500
LAG_ENTRIES_MAX = 1_000
SYNC_SECONDS_MAX = 10


def lagging(
    statuses: Sequence[flotta_native.GroupStatus], applied: dict[int, int], lag_entries_max: int = LAG_ENTRIES_MAX
) -> list[str]:
    """What stands between this node and readiness, one sentence per replica."""
    found = []
    for status in statuses:
        if status.replica not in status.membership.voters:
            continue  # still catching up as a learner: nobody depends on it yet
        if not status.leader:
            found.append(f"group {status.group} has no known leader")
        elif status.committed - applied.get(status.group, 0) > lag_entries_max:
            behind = status.committed - applied.get(status.group, 0)
            found.append(f"group {status.group} has {behind} committed entries to apply")
    return found


class HealthMonitor:
    """`run()` looks at all replicas now and then; `readiness` tells what it saw last."""

    def __init__(self, host: Groups, replicas: ReplicaTable, stamps: Stamps) -> None:
        self._host = host
        self._replicas = replicas
        self._stamps = stamps
        self._problems: list[str] | None = None
        self.led = 0
        self.lag_entries = 0
        self.log_bytes = 0

    async def run(self) -> None:
        while True:
            await self.check()
            await asyncio.sleep(CHECK_MS / 1000)

    async def check(self) -> None:
        self._stamps.now_ms()  # an idle node shall notice as well
        statuses = await self._host.statuses()
        applied = {replica.group: replica.machine.applied_index() for replica in self._replicas}
        self._problems = lagging(statuses, applied)
        self.led = sum(status.role == flotta_native.ROLE_LEADER for status in statuses)
        self.lag_entries = max((one.committed - applied.get(one.group, 0) for one in statuses), default=0)
        self.log_bytes = sum(status.log_bytes for status in statuses)

    def readiness(self) -> tuple[bool, str]:
        _, _, under_way_ns = self._host.sync_times()
        if under_way_ns > SYNC_SECONDS_MAX * 1e9:
            return False, f"the disk of the Raft log has not answered for {under_way_ns // 10**9} s"
        if self._problems is None:
            return False, "the replicas have not been looked at yet"
        if self._problems:
            more = f" (and {len(self._problems) - 1} more)" if len(self._problems) > 1 else ""
            return False, self._problems[0] + more
        clock = f"; {self._stamps.problem}" if self._stamps.problem else ""
        return True, f"{len(self._replicas)} replicas, {self.led} of them leading{clock}"
