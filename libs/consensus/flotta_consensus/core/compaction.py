"""When a replica is flushed and how far its log may go: a pure decision over figures.

Invariant: nothing is compacted above what a completed flush of the state machine covers. Above that, entries are
kept for followers that are alive and behind, and for snapshots on their way, as long as the log stays within
`kept_bytes_max`; a follower left behind by that gets a snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

_SHARE_BYTES_MIN = 1 << 20


@dataclass(frozen=True, slots=True)
class LogPolicy:
    """Bounds for one group's log. The host keeps live entries in memory, so these are bounds on memory too."""

    bytes_max: int = 16 << 20  # more than this since the last compaction: compact
    entries_max: int = 50_000
    reserve_entries: int = 5_000  # tail kept anyway, so that a short absence needs no snapshot
    kept_bytes_max: int = 64 << 20  # beyond this nothing is kept for slow followers
    process_bytes_max: int = 256 << 20  # of all groups together: many groups get smaller logs

    def shared_by(self, groups: int) -> LogPolicy:
        """What one of so many groups may use."""
        share = max(self.process_bytes_max // max(groups, 1), _SHARE_BYTES_MIN)
        if share >= self.kept_bytes_max:
            return self
        return replace(self, bytes_max=min(self.bytes_max, share), kept_bytes_max=share)


@dataclass(frozen=True, slots=True)
class LogView:
    """What is known of one replica's log and state."""

    first_index: int
    last_index: int
    log_bytes: int
    applied: int
    durable: int  # covered by a completed flush
    matched: Mapping[int, int] = field(default_factory=dict)  # leader only: replica -> durable there
    active: Mapping[int, bool] = field(default_factory=dict)
    snapshots: Mapping[int, int] = field(default_factory=dict)  # snapshots being built or sent: who -> index
    pinned: int = 0  # the host wants entries up to here gone: a cold group holds old segments


@dataclass(frozen=True, slots=True)
class LogDecision:
    """`compact_to` 0: not now. `flush`: much more could go after a newer flush; ask again when it is done."""

    flush: bool = False
    compact_to: int = 0


def decide(view: LogView, policy: LogPolicy) -> LogDecision:
    """What to do about one group's log now."""
    entries = max(view.last_index - view.first_index + 1, 0)
    full = view.log_bytes > policy.bytes_max or entries > policy.entries_max
    target = min(view.pinned, view.applied)
    if full:
        target = max(target, _reclaimable(view, policy, entries))
    if target < view.first_index:
        return LogDecision()
    now = min(target, view.durable)
    if now < view.first_index:
        now = 0
    # What is durable goes at once: waiting for the whole target would wait for ever while writes go on.
    left = target - max(now, view.first_index - 1)
    flush = target > view.durable and (left * 2 > entries or view.pinned > view.durable)
    return LogDecision(flush, now)


def _reclaimable(view: LogView, policy: LogPolicy, entries: int) -> int:
    bytes_per_entry = max(view.log_bytes // max(entries, 1), 1)
    reserve = min(policy.reserve_entries, policy.bytes_max // 2 // bytes_per_entry, policy.entries_max // 2)
    keep_from = view.applied - reserve
    if view.log_bytes <= policy.kept_bytes_max:
        for replica, matched in view.matched.items():
            if view.active.get(replica, False):
                keep_from = min(keep_from, matched)
        for index in view.snapshots.values():
            keep_from = min(keep_from, index)
    return keep_from
