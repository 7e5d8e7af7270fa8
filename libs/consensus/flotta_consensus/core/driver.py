"""The life of every replica of a process, between a Raft host and the state machines: no clock, no I/O, no threads.

Callers hand in requests with a callback; a front end calls `turn` whenever the host has something or time passed,
and carries out the effects it returns. All requests since the last turn cross to the host in one call. Every
callback is called exactly once, with what is certain: committed and applied here, certainly without effect, or
unknown. All methods must be called from one thread; callbacks may call back in. An exception out of any method but
the argument errors documented (ValueError) is fatal: the process must end, and a restart recovers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import repeat

from flotta_consensus.api import (
    Failpoints,
    NoFailpoints,
    ProposeDone,
    ReadDone,
    Rejected,
    RejectReason,
    RoleChange,
    Seizure,
    SnapshotSink,
    StateMachine,
    Unknown,
)
from flotta_consensus.core.compaction import LogPolicy
from flotta_consensus.core.effects import Effects, HostEvent, SendSnapshot
from flotta_consensus.core.group import Applier, Group, HostApply, InvariantError, Phase
from flotta_consensus.core.host import Host, HostBatch, HostCodes, HostStatus, MembershipChange, members_of
from flotta_consensus.core.manifest import Manifest
from flotta_consensus.core.planner import check_log, plan
from flotta_consensus.core.reads import Barriers, GroupReads, ReadRetry
from flotta_consensus.core.waiters import ProposeManyDone, Waiters

Send = Callable[[int, bytes], None]
"""(node_num, frame): hand a frame to the transport; must not block and may lose it."""


@dataclass(frozen=True, slots=True)
class DriverLimits:
    """Bounds and paces of a driver."""

    entry_bytes_max: int = 32 << 20  # of a proposal; the host's own bound must not be lower
    waiters_max: int = 200_000  # proposals waiting for an outcome; more are OVERLOADED
    reads_max: int = 200_000  # barriers waiting
    apply_entries_max: int = 4_096  # per `apply_many` call
    read_retry: ReadRetry = field(default_factory=ReadRetry)
    log: LogPolicy = field(default_factory=LogPolicy)


class Driver:
    """See the module. `send` is called inside `turn`, before anything of that turn is applied."""

    def __init__(
        self,
        host: Host,
        codes: HostCodes,
        *,
        send: Send,
        limits: DriverLimits | None = None,
        failpoints: Failpoints | None = None,
    ) -> None:
        self._host = host
        self._codes = codes
        self._send = send
        self._limits = limits or DriverLimits()
        self._failpoints = failpoints or NoFailpoints()
        self._groups: dict[int, Group] = {}
        self._waiters = Waiters(self._limits.waiters_max)
        self._applier = Applier(codes, self._waiters, self._failpoints, self._limits.apply_entries_max)
        self._touched: dict[int, Group] = {}  # groups to which something happened that may let work begin
        self._barriers = Barriers(self._limits.reads_max, self._waiters.new_id)
        self._queue: list[tuple[int, int, bytes]] = []
        self._effects = Effects()
        self._now_ms = 0
        self._closed = False

    # -- requests -----------------------------------------------------------------------------------------------

    def propose(self, group: int, payload: bytes, done: ProposeDone, deadline_ms: int) -> None:
        """Crosses to the host in the next turn. `done` may be called before this returns (a certain rejection)."""
        rejected = self._refusal(group, 1) or self._misfit(payload)
        if rejected is not None:
            done(rejected)
            return
        self._queue.append((group, self._waiters.add(group, done, deadline_ms), payload))

    def propose_many(self, group: int, payloads: Sequence[bytes], done: ProposeManyDone, deadline_ms: int) -> None:
        """All of them in order; `done` gets one outcome each, once all are decided. One misfit rejects all."""
        rejected = self._refusal(group, len(payloads))
        if payloads and not (min(map(len, payloads)) and max(map(len, payloads)) <= self._limits.entry_bytes_max):
            rejected = rejected or Rejected(RejectReason.INVALID)
        if rejected is not None or not payloads:
            done([rejected] * len(payloads) if rejected is not None else [])
            return
        numbers = self._waiters.add_many(group, len(payloads), done, deadline_ms)
        self._queue.extend(zip(repeat(group), numbers, payloads))

    def read_barrier(self, group: int, done: ReadDone, deadline_ms: int) -> None:
        """`ReadReady` once the local machine holds everything that was committed when this was called. Works on
        any replica that can reach a leader. All barriers of a group and turn share one request."""
        replica = self._groups.get(group)
        if self._closed:
            done(Rejected(RejectReason.CLOSED))
        elif replica is None or replica.phase is Phase.REMOVING:
            done(Rejected(RejectReason.UNKNOWN_GROUP))
        else:
            self._barriers.add(group, replica.reads, done, deadline_ms)

    def change_membership(
        self, group: int, changes: Sequence[MembershipChange], done: ProposeDone, deadline_ms: int
    ) -> None:
        """One change, or several as one joint change that leaves by itself (watch `Members.outgoing`).
        Committed.result is the `Members` in force from that entry on."""
        rejected = self._refusal(group, 1)
        if rejected is not None:
            done(rejected)
            return
        if not changes:
            raise ValueError("changes must not be empty")
        number = self._waiters.add(group, done, deadline_ms)
        try:
            self._host.change_membership(group, number, changes)
        except ValueError:
            self._waiters.resolve(number, Rejected(RejectReason.INVALID))

    def transfer_leader(self, group: int, to_replica: int) -> None:
        """A wish: it may come to nothing. Watch the roles."""
        self._open(group)
        self._host.transfer_leader(group, to_replica)

    def campaign(self, group: int) -> None:
        self._open(group)
        self._host.campaign(group)

    # -- replicas -----------------------------------------------------------------------------------------------

    def create_group(
        self, group: int, replica: int, voters: Sequence[int], machine: StateMachine, done: Callable[[], None]
    ) -> None:
        """Create a replica over a machine that is durable already: at index 1 with exactly these voters for a
        birth replica, at index 0 for an empty one (no voters). `done` once the log has it durably.
        ValueError, and nothing changed, if the group exists or is still being removed, the machine does not fit,
        or the host refuses (a tombstoned replica)."""
        self._must_be_free(group)
        expected = 1 if voters else 0
        if machine.applied_index() != expected:
            raise ValueError(
                f"group {group}: a machine at index {expected} is needed to create it, not at {machine.applied_index()}"
            )
        if set(voters) != set(machine.members().voters):
            raise ValueError(f"group {group}: the machine's members {machine.members().voters} are not {voters}")
        self._host.create_group(group, replica, voters)
        self._groups[group] = self._new_group(group, machine, Phase.CREATING)
        self._groups[group].created_done = done

    def open_group(self, group: int, machine: StateMachine) -> None:
        """Attach the machine of a replica the host recovered; before the host is started. If the log accepted a
        snapshot that the machine lacks, the next turn asks to install it."""
        self._must_be_free(group)
        if group not in self._host.groups():
            raise ValueError(f"group {group} is not in the log")
        opened = self._touch(self._new_group(group, machine, Phase.OPEN))
        pending = self._host.pending_install(group)
        if pending is not None and pending[0] > machine.applied_index():
            index, term, membership, manifest = pending
            opened.begin_install(index, term, members_of(membership), manifest)
        self._groups[group] = opened

    def remove_group(self, group: int, done: Callable[[], None]) -> None:
        """Forget a replica for good: tombstoned durably, then its state destroyed, then `done`. What waits on it
        is answered now."""
        removing = self._touch(self._open(group))
        removing.phase = Phase.REMOVING
        removing.removed_done = done
        self._waiters.fail_group(group, Unknown("the replica was removed"))
        self._barriers.fail_group(group, Rejected(RejectReason.UNKNOWN_GROUP))
        self._host.remove_group(group)

    def seize_group(self, group: int, seizure: Seizure, done: Callable[[], None]) -> None:
        """Go on alone, for good; `done` once that is durable. ValueError, and nothing changed, if the host refuses, or
        while a snapshot is being installed."""
        seized = self._touch(self._open(group))
        if seized.phase is not Phase.OPEN:
            raise ValueError(f"group {group} is {seized.phase.value}")
        self._host.seize_group(group, *seizure)
        seized.seize(done)

    def groups(self) -> list[int]:
        return [number for number, group in self._groups.items() if group.phase is not Phase.REMOVING]

    def machine(self, group: int) -> StateMachine:
        """KeyError if there is no such replica."""
        return self._groups[group].machine

    def role(self, group: int) -> RoleChange | None:
        """The last role the host told, None before the first."""
        found = self._groups.get(group)
        return found.role if found is not None else None

    def installing(self, group: int) -> bool:
        """The state is about to be replaced by a snapshot; until then reads see an old state."""
        return self._groups[group].phase is Phase.INSTALLING

    def fresh_ms(self, group: int) -> int | None:
        """When the last completed read barrier of this replica was issued: its state is at least that fresh."""
        return self._groups[group].reads.fresh_ms

    def waiting(self) -> int:
        """Proposals and barriers without an answer."""
        return len(self._waiters) + self._barriers.waiting

    # -- turns --------------------------------------------------------------------------------------------------

    def receive(self, frame: bytes) -> None:
        """A frame from another process."""
        self._failpoints.reach("consensus.before_step")
        self._host.step(frame)

    def submit(self, now_ms: int) -> None:
        """Hand what was queued to the host. `turn` does it too; a manual host is driven in between."""
        self._now_ms = now_ms
        if self._queue:
            queue, self._queue = self._queue, []
            self._failpoints.reach("consensus.before_propose")
            self._host.propose_many(queue)
        requests = self._barriers.requests(now_ms)
        if requests:
            self._host.read_index_many(requests)

    def turn(self, now_ms: int) -> Effects:
        """Submit, take what the host has, apply it, answer, and return the work to be done outside."""
        self.submit(now_ms)
        batch = self._host.poll()
        for node_num, frame in batch.messages:
            self._failpoints.reach("consensus.before_send")
            self._send(node_num, frame)
        self._take(batch)
        self.expire(now_ms)
        self._plan()
        effects, self._effects = self._effects, Effects()
        return effects

    def expire(self, now_ms: int) -> None:
        """Answer whose time is up. After the host's news were taken, so that a stall makes nothing unknown that
        is known."""
        self._now_ms = now_ms
        self._waiters.expire(now_ms, Unknown("deadline"))
        self._barriers.expire(now_ms)

    def close(self, reason: str = "closed") -> None:
        """Answer everybody: what never reached the host certainly has no effect."""
        self._closed = True
        queue, self._queue = self._queue, []
        for _, number, _ in queue:
            self._waiters.resolve(number, Rejected(RejectReason.CLOSED))
        self._waiters.fail_all(Unknown(reason))
        self._barriers.fail_all(Rejected(RejectReason.CLOSED))

    # -- answers to effects -------------------------------------------------------------------------------------

    def flushed(self, group: int, index: int) -> None:
        """A `Flush` is done, and covers `index`."""
        flushed = self._touch(self._groups[group])
        if flushed.machine.durable_index() < index:
            raise InvariantError(f"group {group}: flushed to {index}, durable is {flushed.machine.durable_index()}")
        flushed.flushing = False
        flushed.check_due = True

    def checked(self, groups: Sequence[int], statuses: Sequence[HostStatus]) -> None:
        """Answers `Effects.checks`: decides what is flushed and how far the logs go. Groups that are gone meanwhile
        may be missing from the statuses."""
        for number in groups:
            if number in self._groups:
                self._touch(self._groups[number]).checking = False
        policy = self._limits.log.shared_by(len(self._groups))
        for status in statuses:
            group = self._groups.get(status.group)
            if group is not None and group.phase is Phase.OPEN:
                check_log(group, status, self._host, policy, self._failpoints, self._effects)

    def snapshot_built(self, group: int, manifest: Manifest) -> None:
        """A `BuildSnapshot` is on disk, durably."""
        built = self._touch(self._groups[group])
        wanted = built.build is not None and built.build.wanted and built.phase is not Phase.REMOVING
        built.build = None
        if not wanted:
            self._effects.superseded.append((group, 0))
            return
        built.built = manifest
        self._effects.superseded.append((group, manifest.index))
        self._host.snapshot_ready(group, manifest.index, manifest.encode())

    def snapshot_build_failed(self, group: int) -> None:
        """The host asks again; until then nothing is there."""
        self._touch(self._groups[group]).build = None

    def snapshot_progress(self, offer: SendSnapshot) -> None:
        """It is still on its way, so the host must not give it up yet."""
        self._host.snapshot_progress(offer.group, offer.to_replica)

    def snapshot_sent(self, offer: SendSnapshot, ok: bool, *, file_lost: bool = False) -> None:
        """`file_lost`: there was nothing to send, so the next attempt needs a new file."""
        found = self._groups.get(offer.group)
        if found is not None:
            found.built = None if file_lost else found.built
            self._host.report_snapshot(offer.group, offer.to_replica, ok)

    def install(self, group: int, sink: SnapshotSink) -> None:
        """An `InstallSnapshot` has written everything to the sink: switch the state, durably, and go on with what
        the log delivered meanwhile. When this returns the file may go."""
        installing = self._touch(self._groups[group])
        install = installing.install
        if install is None or not installing.install_handed_out:
            raise InvariantError(f"group {group}: no snapshot is being installed")
        if installing.phase is Phase.REMOVING:
            sink.abort()
        else:
            sink.commit(install.index, install.term, install.members)
            if installing.machine.applied_index() != install.index:
                raise InvariantError(f"group {group}: restored to {installing.machine.applied_index()}")
            installing.phase = Phase.OPEN
        installing.install, installing.install_handed_out = None, False
        deferred, installing.deferred = installing.deferred, []
        if installing.phase is Phase.OPEN:
            self._apply(installing, deferred)

    def unreachable(self, node_num: int) -> None:
        """Frames to this node were lost."""
        self._host.report_unreachable(node_num)

    # -- inside -------------------------------------------------------------------------------------------------

    def _take(self, batch: HostBatch) -> None:
        for group, name, number, text in batch.events:
            self._take_event(group, name, number, text)
        runs: dict[int, list[HostApply]] = {}
        for item in batch.applies:
            runs.setdefault(item[0], []).append(item)
        for number, items in runs.items():
            found = self._groups.get(number)
            if found is None:
                raise InvariantError(f"group {number} has entries to apply but no state machine")
            if found.phase is not Phase.REMOVING:
                self._apply(found, items)
        for number, read_id, index in batch.reads:
            found = self._groups.get(number)
            if found is not None:
                self._barriers.answered(found.reads, read_id, index, found.machine.applied_index())
        for number, request_id, reason, leader in batch.dropped:
            self._take_drop(number, request_id, Rejected(self._codes.drop_reasons[reason], leader))
        for number, role, term, leader in batch.roles:
            found = self._groups.get(number)
            if found is not None:
                found.role = RoleChange(number, role == self._codes.role_leader, term, leader)
                self._effects.roles.append(found.role)
        for number, minimum, _ in batch.snapshots_wanted:
            found = self._groups.get(number)
            if found is not None:
                self._touch(found).snapshot_minimum = max(minimum, found.snapshot_minimum or 0)
        for number, index in batch.compactions_wanted:
            found = self._groups.get(number)
            if found is not None:
                self._touch(found).pinned = max(found.pinned, index)
                found.check_due = True
        for offer in batch.snapshot_messages:
            self._failpoints.reach("consensus.before_snapshot_send")
            self._effects.sends.append(SendSnapshot(*offer))

    def _take_event(self, number: int, name: str, value: int, text: str) -> None:
        group = self._groups.get(number)
        if group is not None:
            self._touch(group)
        if name in ("created", "seized") and group is not None:
            group.ready()
        elif name == "removed" and group is not None:
            group.removed = True
        elif name == "outcome_unknown":
            # A snapshot stands for the entry at the proposal's index: nobody here can say whose entry that was.
            self._waiters.resolve(value, Unknown(text))
            return
        elif name == "snapshot_stale" and group is not None:
            group.built = None
            group.snapshot_minimum = max(value, group.snapshot_minimum or 0)
        self._effects.events.append(HostEvent(number, name, value, text))

    def _take_drop(self, number: int, request_id: int, rejected: Rejected) -> None:
        if self._waiters.resolve(request_id, rejected):
            return
        group = self._groups.get(number)
        if group is not None:
            self._barriers.dropped(number, group.reads, request_id, rejected, self._now_ms)

    def _apply(self, group: Group, items: Sequence[HostApply]) -> None:
        self._touch(group)
        self._applier.apply(group, items)
        self._barriers.applied(group.reads, group.machine.applied_index())

    def _plan(self) -> None:
        if not self._touched:
            return
        touched, self._touched = self._touched, {}
        policy = self._limits.log.shared_by(len(self._groups))
        for group in touched.values():
            if plan(group, self._host, policy, self._failpoints, self._effects):
                self._destroy(group)

    def _touch(self, group: Group) -> Group:
        self._touched[group.number] = group
        return group

    def _destroy(self, group: Group) -> None:
        self._failpoints.reach("consensus.before_destroy")
        group.machine.destroy()
        self._failpoints.reach("consensus.after_destroy")
        del self._groups[group.number]
        self._effects.superseded.append((group.number, 0))
        if group.removed_done is not None:
            group.removed_done()

    def _new_group(self, number: int, machine: StateMachine, phase: Phase) -> Group:
        return Group(number, machine, GroupReads(self._limits.read_retry), phase)

    def _must_be_free(self, group: int) -> None:
        if self._closed:
            raise ValueError("the host is closed")
        if group in self._groups:
            raise ValueError(f"group {group} exists already")

    def _open(self, group: int) -> Group:
        found = self._groups.get(group)
        if found is None or found.phase is Phase.REMOVING:
            raise ValueError(f"there is no group {group} here")
        return found

    def _misfit(self, payload: bytes) -> Rejected | None:
        return None if 0 < len(payload) <= self._limits.entry_bytes_max else Rejected(RejectReason.INVALID)

    def _refusal(self, group: int, count: int) -> Rejected | None:
        if self._closed:
            return Rejected(RejectReason.CLOSED)
        found = self._groups.get(group)
        if found is None or found.phase is Phase.REMOVING:
            return Rejected(RejectReason.UNKNOWN_GROUP)
        if not self._waiters.room_for(count):
            return Rejected(RejectReason.OVERLOADED)
        return None
