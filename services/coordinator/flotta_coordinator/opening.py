"""A coordinator's state and log, as they lie in its data directory; made there on the first start."""

from __future__ import annotations

from flotta_consensus.aio import GroupHost, HostOptions
from flotta_consensus.api import Failpoints, Members
from flotta_consensus.identity import DataDirectory, IdentityError
from flotta_consensus.transport import Transport
from flotta_embedded.api import Engine
from flotta_embedded.generations import current
from flotta_embedded.machine import Machine
from flotta_embedded.registry import Registry
from flotta_runtime.turns import Turns

from flotta_coordinator.core.roster_transitions import is_founder
from flotta_coordinator.group import GROUP, Coordinators
from flotta_coordinator.settings import CoordinatorSettings

SPACE = "coordinator"
TICK_MS = 50


def open_machine(
    engine: Engine, directory: DataDirectory, coordinators: Coordinators, registry: Registry, failpoints: Failpoints
) -> Machine:
    """The replicated state. IdentityError if it is gone."""
    if current(engine, SPACE) is not None:
        return Machine.open(engine, SPACE, registry, failpoints=failpoints)
    if directory.formed:
        raise IdentityError(
            f"data directory {directory.path} took part in cluster {directory.identity.cluster_id} "
            "but its state is gone"
        )
    if not is_founder(directory.identity.node_num):
        return Machine.create_empty(engine, SPACE, registry, failpoints=failpoints)
    members = Members(voters=tuple(sorted(coordinators.replicas)))
    return Machine.create(engine, SPACE, registry, members=members, failpoints=failpoints)


def open_host(
    directory: DataDirectory,
    machine: Machine,
    transport: Transport,
    settings: CoordinatorSettings,
    failpoints: Failpoints,
    turns: Turns,
) -> GroupHost:
    """The log, not started yet. IdentityError if it is gone."""
    options = HostOptions(
        tick_ms=TICK_MS,
        election_ticks=max(2, settings.election_timeout_ms // TICK_MS),
        heartbeat_ticks=max(1, settings.raft_heartbeat_ms // TICK_MS),
    )
    host = GroupHost.open(
        directory.path,
        directory.identity.node_num,
        {GROUP: machine},
        transport,
        options=options,
        failpoints=failpoints,
        turns=turns,
    )
    directory.require_log(len(host.groups()))
    return host
