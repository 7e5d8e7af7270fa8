"""Opening a process's log over its state machines, in the only order that is safe.

Machines first: their applied indexes tell the log what is committed at least. Then the log. Then each replica gets
its machine back, and a snapshot that the log took over but the machine lacks must still be there as a file. Only
after all of that may the host start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import flotta_native

from flotta_consensus.api import Failpoints, StateMachine
from flotta_consensus.core.driver import Driver, DriverLimits, Send
from flotta_consensus.core.host import HostCodes
from flotta_consensus.core.manifest import Manifest
from flotta_consensus.durable import make_directory
from flotta_consensus.snapshot_files import SnapshotFiles


class MissingMachine(ValueError):
    """The log knows replicas for which no state machine was given."""


@dataclass(frozen=True, slots=True)
class HostOptions:
    """How a host runs; the defaults are for production."""

    tick_ms: int = 100
    election_ticks: int = 10
    heartbeat_ticks: int = 2
    segment_bytes: int = 64 << 20
    entry_bytes_max: int = 32 << 20
    snapshot_timeout_ticks: int = 600
    timer_ms: int = 25  # how late a deadline may be noticed
    apply_delay_ms: int = 0  # how long followers' entries may wait for more, and the news of a commit for company
    limits: DriverLimits = field(default_factory=DriverLimits)


@dataclass(frozen=True, slots=True)
class Opened:
    """A recovered, not yet started host with everything attached."""

    host: flotta_native.RaftHost
    driver: Driver
    files: SnapshotFiles
    orphans: dict[int, StateMachine]  # machines whose group the log does not know


def open_replicas(
    data_dir: Path,
    node_num: int,
    machines: Mapping[int, StateMachine],
    send: Send,
    options: HostOptions,
    failpoints: Failpoints,
) -> Opened:
    """Blocking. MissingMachine, SnapshotDamaged, flotta_native.LogCorruption and OSError stop the start."""
    make_directory(data_dir)
    make_directory(data_dir / "raft")
    host = flotta_native.RaftHost(
        node_num,
        str(data_dir / "raft"),
        applied={group: machine.applied_index() for group, machine in machines.items()},
        tick_ms=options.tick_ms,
        election_ticks=options.election_ticks,
        heartbeat_ticks=options.heartbeat_ticks,
        segment_bytes=options.segment_bytes,
        entry_bytes_max=options.entry_bytes_max,
        snapshot_timeout_ticks=options.snapshot_timeout_ticks,
        apply_delay_ms=options.apply_delay_ms,
    )
    try:
        return _attach(host, data_dir, machines, send, options, failpoints)
    except BaseException:
        host.stop()
        raise


def _attach(
    host: flotta_native.RaftHost,
    data_dir: Path,
    machines: Mapping[int, StateMachine],
    send: Send,
    options: HostOptions,
    failpoints: Failpoints,
) -> Opened:
    known = host.groups()
    missing = sorted(set(known) - set(machines))
    if missing:
        raise MissingMachine(
            f"the log in {data_dir / 'raft'} has replicas of {len(missing)} groups whose state is gone "
            f"(the first is group {missing[0]}); this directory is damaged, replace the node"
        )
    codes = HostCodes.of(flotta_native)
    limits = replace(options.limits, entry_bytes_max=options.entry_bytes_max)
    driver = Driver(host, codes, send=send, limits=limits, failpoints=failpoints)
    pending = []
    for group in known:
        install = host.pending_install(group)
        if install is not None and install[0] > machines[group].applied_index():
            pending.append(Manifest.decode(install[3]))
        driver.open_group(group, machines[group])
    files = SnapshotFiles(data_dir / "snapshots", data_dir / "incoming", failpoints)
    files.prepare(pending)
    return Opened(host, driver, files, {number: each for number, each in machines.items() if number not in known})
