"""Which slow work a replica starts now: install, snapshot, log check, flush, compaction, destruction.

Nothing here waits: each step hands out an effect and marks it on the group, and starts nothing that conflicts with
what is marked.
"""

from __future__ import annotations

from flotta_consensus.api import Failpoints
from flotta_consensus.core.compaction import LogPolicy, LogView, decide
from flotta_consensus.core.effects import BuildSnapshot, Effects, Flush
from flotta_consensus.core.group import Build, Group, InvariantError, Phase
from flotta_consensus.core.host import Host, HostStatus


def plan(group: Group, host: Host, policy: LogPolicy, failpoints: Failpoints, effects: Effects) -> bool:
    """Start what is due for one group. True: it is removed and quiet, and may be destroyed."""
    if group.phase is Phase.REMOVING:
        return group.removed and group.quiet()
    if group.phase is Phase.INSTALLING:
        if not group.install_handed_out and not group.flushing and group.install is not None:
            group.install_handed_out = True
            effects.installs.append(group.install)
    elif group.phase is Phase.OPEN:
        if group.snapshot_minimum is not None and group.build is None:
            _plan_snapshot(group, group.snapshot_minimum, host, failpoints, effects)
        grown = group.bytes_unchecked * 4 > policy.bytes_max or group.entries_unchecked * 4 > policy.entries_max
        if (grown or group.check_due) and not group.checking and not group.flushing:
            group.bytes_unchecked = group.entries_unchecked = 0
            group.check_due, group.checking = False, True
            effects.checks.append(group.number)
    return False


def _plan_snapshot(group: Group, minimum: int, host: Host, failpoints: Failpoints, effects: Effects) -> None:
    if group.built is not None and group.built.index >= minimum:
        group.snapshot_minimum = None
        host.snapshot_ready(group.number, group.built.index, group.built.encode())
    elif group.machine.applied_index() >= max(minimum, 1):
        group.snapshot_minimum = None
        failpoints.reach("consensus.before_snapshot_build")
        source = group.machine.snapshot()
        if source.index != group.machine.applied_index():
            raise InvariantError(f"group {group.number}: a snapshot at {source.index} was made")
        group.build = Build(source.index)
        effects.builds.append(BuildSnapshot(group.number, source.index, source))


def check_log(
    group: Group, status: HostStatus, host: Host, policy: LogPolicy, failpoints: Failpoints, effects: Effects
) -> None:
    """Compact what may go, and start a flush if more could."""
    snapshots = dict(status.pending_snapshot)
    if group.build is not None:
        snapshots[0] = group.build.index
    view = LogView(
        first_index=status.first_index,
        last_index=status.last_index,
        log_bytes=status.log_bytes,
        applied=group.machine.applied_index(),
        durable=group.machine.durable_index(),
        matched=status.matched,
        active=status.recent_active,
        snapshots=snapshots,
        pinned=group.pinned,
    )
    decision = decide(view, policy)
    if decision.compact_to:
        failpoints.reach("consensus.before_compact")
        host.compact(group.number, decision.compact_to)
    if decision.flush and not group.flushing:
        group.flushing = True
        effects.flushes.append(Flush(group.number, group.machine.flush()))
    else:
        group.pinned = 0
