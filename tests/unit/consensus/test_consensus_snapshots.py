"""Snapshots, flushes and compaction: the slow work beside a replica, and what must never overlap."""

from __future__ import annotations

import pytest
from consensus_fakes import CODES, Bench, FakeHost, FakeMembership, FakeStatus, ListMachine
from flotta_consensus.api import Committed, Members, ReadReady, Unknown
from flotta_consensus.core.compaction import LogDecision, LogPolicy, LogView, decide
from flotta_consensus.core.driver import Driver, DriverLimits
from flotta_consensus.core.effects import SendSnapshot
from flotta_consensus.core.group import InvariantError
from flotta_consensus.core.host import HostCodes
from flotta_consensus.core.manifest import Manifest, ManifestError, built_name, incoming_name

POLICY = LogPolicy(bytes_max=1_000, entries_max=100, reserve_entries=10, kept_bytes_max=5_000)


def manifest(group: int, index: int) -> Manifest:
    return Manifest(group, index, 10, bytes(32), built_name(group, index))


def offer_install(bench: Bench, index: int) -> None:
    payload = (FakeMembership([1, 2]), manifest(bench.group, index).encode())
    bench.host.batch.applies.append((bench.group, index, 3, 0, CODES.APPLY_SNAPSHOT, payload))


def test_a_manifest_survives_its_bytes_and_nothing_else_does() -> None:
    original = Manifest(7, 9, 1 << 40, bytes(range(32)), "7-9.snap")
    data = original.encode()
    assert Manifest.decode(data) == original
    for damaged in (data[:-1], data + b"x", b"", b"XXXX" + data[4:], data[:-1] + b"\xff"):
        with pytest.raises(ManifestError):
            Manifest.decode(damaged)
    with pytest.raises(ManifestError):
        Manifest(7, 9, 1, b"short", "x").encode()
    assert incoming_name(7, 9, bytes(32)).startswith("7-9-")


def test_a_wanted_snapshot_is_built_once_and_handed_out_again() -> None:
    bench = Bench()
    bench.commit((0, b"a"))
    bench.host.batch.snapshots_wanted.append((bench.group, 1, 22))
    (build,) = bench.driver.turn(0).builds
    assert (build.group, build.index, build.source.index) == (bench.group, 2, 2)
    bench.host.batch.snapshots_wanted.append((bench.group, 1, 33))
    bench.commit((0, b"b"))
    assert bench.driver.turn(1).builds == []
    bench.driver.snapshot_built(bench.group, manifest(bench.group, 2))
    assert bench.host.called("snapshot_ready") == [(bench.group, 2, manifest(bench.group, 2).encode())]
    effects = bench.driver.turn(2)
    assert effects.builds == [] and effects.superseded == [(bench.group, 2)]
    assert len(bench.host.called("snapshot_ready")) == 2  # for the second follower, the same file
    bench.host.batch.snapshots_wanted.append((bench.group, 3, 33))
    (newer,) = bench.driver.turn(3).builds
    assert newer.index == 3


def test_a_snapshot_waits_until_the_machine_is_there() -> None:
    bench = Bench()
    bench.host.batch.snapshots_wanted.append((bench.group, 3, 22))
    assert bench.driver.turn(0).builds == []
    bench.commit((0, b"a"), (0, b"b"))
    assert [build.index for build in bench.driver.turn(1).builds] == [3]


def test_a_stale_snapshot_is_built_anew_and_a_failed_one_on_demand() -> None:
    bench = Bench()
    bench.host.batch.snapshots_wanted.append((bench.group, 1, 22))
    bench.driver.turn(0)
    bench.driver.snapshot_build_failed(bench.group)
    assert bench.driver.turn(1).builds == []
    bench.host.batch.snapshots_wanted.append((bench.group, 1, 22))
    assert [build.index for build in bench.driver.turn(2).builds] == [1]
    bench.driver.snapshot_built(bench.group, manifest(bench.group, 1))
    bench.host.batch.events.append((bench.group, "snapshot_stale", 2, ""))
    bench.commit((0, b"a"))
    assert [build.index for build in bench.driver.turn(3).builds] == [2]


def test_sent_snapshots_are_reported() -> None:
    bench = Bench()
    bench.host.batch.snapshot_messages.append((3, bench.group, 30, 10, 5, 2, b"manifest", b"message"))
    (offer,) = bench.driver.turn(0).sends
    assert offer == SendSnapshot(3, bench.group, 30, 10, 5, 2, b"manifest", b"message")
    bench.driver.snapshot_progress(offer)
    assert bench.host.called("snapshot_progress") == [(bench.group, 30)]
    bench.driver.snapshot_sent(offer, False)
    assert bench.host.called("report_snapshot") == [(bench.group, 30, False)]


def test_a_snapshot_whose_file_is_gone_is_built_anew() -> None:
    bench = Bench()
    offer = SendSnapshot(3, bench.group, 30, 10, 1, 1, manifest(bench.group, 1).encode(), b"message")
    for lost, built_again in ((False, 0), (True, 1)):
        bench.host.batch.snapshots_wanted.append((bench.group, 1, 30))
        if not lost:
            bench.driver.turn(0)
            bench.driver.snapshot_built(bench.group, manifest(bench.group, 1))
        bench.driver.snapshot_sent(offer, False, file_lost=lost)
        bench.host.batch.snapshots_wanted.append((bench.group, 1, 30))
        assert len(bench.driver.turn(1).builds) == built_again


def test_an_install_holds_back_what_comes_after_it() -> None:
    bench = Bench()
    bench.propose(b"mine")
    bench.driver.read_barrier(bench.group, bench.outcomes.append, 10_000)
    bench.driver.turn(0)
    bench.commit((0, b"a"))
    offer_install(bench, 10)
    bench.host.batch.applies.append((bench.group, 11, 3, 0, CODES.APPLY_NORMAL, b"k"))
    bench.host.batch.reads.append((bench.group, bench.read_ids()[0], 12))
    bench.host.batch.events.append((bench.group, "outcome_unknown", bench.proposed_ids()[0], "jumped over"))
    effects = bench.driver.turn(1)
    (install,) = effects.installs
    assert bench.outcomes == [Unknown("jumped over")] and effects.events == []
    assert bench.machine.rows == [b"a"] and bench.driver.installing(bench.group)
    bench.host.batch.applies.append((bench.group, 12, 3, 0, CODES.APPLY_NORMAL, b"l"))
    effects = bench.driver.turn(2)
    assert effects.installs == [] and bench.machine.rows == [b"a"]
    sink = install.machine.restore()
    sink.write(b"x\ny\n")
    bench.driver.install(bench.group, sink)
    assert bench.machine.rows == [b"x", b"y", b"k", b"l"]
    assert (bench.machine.index, bench.machine.durable) == (12, 10)
    assert bench.machine.members() == Members(voters=(1, 2))
    assert bench.outcomes[1:] == [ReadReady(12)]
    assert not bench.driver.installing(bench.group)


def test_two_snapshots_in_a_row_are_installed_in_order() -> None:
    bench = Bench()
    offer_install(bench, 10)
    offer_install(bench, 20)
    (first,) = bench.driver.turn(0).installs
    assert first.index == 10
    bench.driver.install(bench.group, first.machine.restore())
    (second,) = bench.driver.turn(1).installs
    assert second.index == 20
    bench.driver.install(bench.group, second.machine.restore())
    assert bench.machine.index == 20


def test_an_install_waits_for_a_running_flush_and_voids_a_running_build() -> None:
    bench = Bench(DriverLimits(log=POLICY))
    bench.commit(*((0, b"x" * 30) for _ in range(40)))
    bench.host.batch.snapshots_wanted.append((bench.group, 1, 22))
    effects = bench.driver.turn(0)
    assert effects.checks == [bench.group] and len(effects.builds) == 1
    bench.driver.checked([bench.group], [FakeStatus(bench.group, last_index=41, log_bytes=1_200)])
    (flush,) = bench.driver.turn(1).flushes
    offer_install(bench, 100)
    assert bench.driver.turn(2).installs == []
    bench.driver.flushed(bench.group, flush.run())
    (install,) = bench.driver.turn(3).installs
    bench.driver.install(bench.group, install.machine.restore())
    bench.driver.snapshot_built(bench.group, manifest(bench.group, 41))
    assert bench.host.called("snapshot_ready") == []
    assert (bench.group, 0) in bench.driver.turn(4).superseded


def test_a_pending_install_is_taken_up_at_open() -> None:
    host = FakeHost()
    host.known = [7]
    host.installs[7] = (10, 3, FakeMembership([1, 2]), manifest(7, 10).encode())
    driver = Driver(host, HostCodes.of(CODES), send=lambda node, frame: None)
    machine = ListMachine()
    driver.open_group(7, machine)
    host.batch.applies.append((7, 11, 3, 0, CODES.APPLY_NORMAL, b"after"))
    (install,) = driver.turn(0).installs
    assert (install.index, install.term, install.members) == (10, 3, Members(voters=(1, 2)))
    driver.install(7, install.machine.restore())
    assert (machine.index, machine.rows) == (11, [b"after"])
    done = ListMachine(index=10, voters=(1, 2))
    again = Driver(host, HostCodes.of(CODES), send=lambda node, frame: None)
    again.open_group(7, done)
    assert again.turn(0).installs == []


def test_a_removed_replica_is_destroyed_only_when_nothing_runs_beside_it() -> None:
    bench = Bench()
    offer_install(bench, 10)
    (install,) = bench.driver.turn(0).installs
    removed: list[bool] = []
    bench.driver.remove_group(bench.group, lambda: removed.append(True))
    bench.host.batch.events.append((bench.group, "removed", 1, ""))
    bench.driver.turn(1)
    assert not bench.machine.destroyed
    sink = install.machine.restore()
    bench.driver.install(bench.group, sink)
    bench.driver.turn(2)
    assert bench.machine.destroyed and removed == [True] and sink.aborted  # type: ignore[attr-defined]


def test_an_install_nobody_asked_for_is_fatal() -> None:
    bench = Bench()
    with pytest.raises(InvariantError):
        bench.driver.install(bench.group, bench.machine.restore())


def test_compaction_only_below_a_completed_flush() -> None:
    bench = Bench(DriverLimits(log=POLICY))
    bench.commit(*((0, b"x" * 30) for _ in range(60)))
    assert bench.driver.turn(0).checks == [bench.group]
    status = FakeStatus(bench.group, last_index=61, log_bytes=1_800)
    bench.driver.checked([bench.group], [status])
    assert bench.host.called("compact") == []
    (flush,) = bench.driver.turn(1).flushes
    bench.commit(*((0, b"x" * 30) for _ in range(60)))
    effects = bench.driver.turn(2)
    assert effects.flushes == [] and effects.checks == []  # one at a time
    bench.driver.flushed(bench.group, flush.run())
    assert bench.driver.turn(3).checks == [bench.group]
    bench.driver.checked([bench.group], [status])
    ((group, index),) = bench.host.called("compact")
    assert group == bench.group and index <= bench.machine.durable == 61


def test_a_flush_that_covers_less_than_it_says_is_fatal() -> None:
    bench = Bench()
    with pytest.raises(InvariantError):
        bench.driver.flushed(bench.group, 50)


def test_a_pinned_cold_group_is_flushed_and_compacted() -> None:
    bench = Bench()
    bench.commit((0, b"a"), (0, b"b"))
    bench.host.batch.compactions_wanted.append((bench.group, 3))
    assert bench.driver.turn(0).checks == [bench.group]
    status = FakeStatus(bench.group, first_index=2, last_index=3, log_bytes=10)
    bench.driver.checked([bench.group], [status])
    (flush,) = bench.driver.turn(1).flushes
    bench.driver.flushed(bench.group, flush.run())
    assert bench.driver.turn(2).checks == [bench.group]
    bench.driver.checked([bench.group], [status])
    assert bench.host.called("compact") == [(bench.group, 3)]
    assert bench.driver.turn(3).flushes == []


@pytest.mark.parametrize(
    ("view", "decision"),
    [
        # small: nothing
        (LogView(first_index=2, last_index=50, log_bytes=500, applied=50, durable=50), LogDecision()),
        # too many bytes, and flushed: keep the reserve (10 entries)
        (LogView(2, 80, 1_001, applied=80, durable=80), LogDecision(compact_to=70)),
        # too many entries
        (LogView(2, 110, 10, applied=110, durable=110), LogDecision(compact_to=100)),
        # not flushed far enough
        (LogView(2, 110, 10, applied=110, durable=1), LogDecision(flush=True)),
        # a little of it is: that goes at once, or writes that never stop would put it off for ever
        (LogView(2, 110, 10, applied=110, durable=20), LogDecision(flush=True, compact_to=20)),
        # most of it is: no new flush for the rest
        (LogView(2, 110, 10, applied=110, durable=90), LogDecision(compact_to=90)),
        # an active follower behind keeps its entries
        (LogView(2, 110, 10, 110, 110, matched={9: 30}, active={9: True}), LogDecision(compact_to=30)),
        # a dead one does not
        (LogView(2, 110, 10, 110, 110, matched={9: 30}, active={9: False}), LogDecision(compact_to=100)),
        # nor one that would keep too much
        (LogView(2, 110, 5_001, 110, 110, matched={9: 30}, active={9: True}), LogDecision(compact_to=100)),
        # a snapshot on its way keeps what follows it
        (LogView(2, 110, 10, 110, 110, snapshots={9: 40}), LogDecision(compact_to=40)),
        # all of it is needed: wait
        (LogView(2, 110, 10, 110, 110, matched={9: 1}, active={9: True}), LogDecision()),
        # big entries: the reserve is bounded in bytes as well
        (LogView(2, 11, 1_500, applied=11, durable=11), LogDecision(compact_to=8)),
        # pinned: without a reserve, never above what is applied
        (LogView(2, 50, 10, applied=40, durable=40, pinned=50), LogDecision(compact_to=40)),
        (LogView(2, 50, 10, applied=50, durable=30, pinned=50), LogDecision(flush=True, compact_to=30)),
        (LogView(60, 59, 0, applied=59, durable=59, pinned=50), LogDecision()),
    ],
)
def test_decisions_about_a_log(view: LogView, decision: LogDecision) -> None:
    assert decide(view, POLICY) == decision


def test_outcomes_after_an_install_are_committed_again() -> None:
    bench = Bench()
    offer_install(bench, 10)
    (install,) = bench.driver.turn(0).installs
    bench.driver.install(bench.group, install.machine.restore())
    bench.propose(b"new")
    bench.driver.turn(1)
    bench.commit((bench.proposed_ids()[-1], b"new"), term=4)
    bench.driver.turn(2)
    assert bench.outcomes == [Committed(11, 4, (11, b"new"))]


def test_many_groups_share_the_memory_for_logs() -> None:
    policy = LogPolicy(bytes_max=16 << 20, kept_bytes_max=64 << 20, process_bytes_max=256 << 20)
    assert policy.shared_by(0) == policy.shared_by(1) == policy.shared_by(4) == policy
    assert (policy.shared_by(8).bytes_max, policy.shared_by(8).kept_bytes_max) == (16 << 20, 32 << 20)
    assert (policy.shared_by(64).bytes_max, policy.shared_by(64).kept_bytes_max) == (4 << 20, 4 << 20)
    assert policy.shared_by(10_000).bytes_max == 1 << 20
