"""Makes the state machines of children out of the rows of a shard that divided, in one pass over them.

Blocking, for a worker thread. Nothing of it is visible before it is whole (`flotta_embedded/births.py`), and it reads
from a frozen view alone, so the shard goes on serving, and may even be pruned, meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from flotta_consensus.api import Failpoints, Members
from flotta_embedded.api import Engine, View
from flotta_embedded.births import BIRTH_INDEX, BIRTH_TERM, Birth
from flotta_embedded.machine import Machine
from flotta_embedded.meta import Header
from flotta_embedded.registry import Registry

from flotta_storage.core.divisions import Division, first_rows, inherited
from flotta_storage.core.replicas import LocalReplica
from flotta_storage.core.shard_state import ShardState


def space_name(group: int) -> str:
    return f"group-{group}"


def bear(
    engine: Engine,
    view: View,
    state: ShardState,
    division: Division,
    records: Sequence[LocalReplica],
    registry: Registry,
    failpoints: Failpoints,
) -> list[Machine]:
    """The machines of these children, durable at return. `view`, `state` and `division` are of one moment."""
    births = {record.shard_index: Birth(engine, space_name(record.group), failpoints) for record in records}
    for found in inherited(view, division):
        for index, rows in found.items():
            if index in births:
                births[index].write(rows)
        time.sleep(0)  # let the event loop have its turn
    for record in records:
        child = division.child_of(record.group)
        if child is None:
            raise ValueError(f"group {record.group} is no child of {state.shard_id}")
        birth = births[record.shard_index]
        birth.write(first_rows(state, division, child))
        birth.finish(
            Header(BIRTH_INDEX, BIRTH_TERM, division.group_time_ms, division.revision, Members(voters=record.voters))
        )
    return [Machine.open(engine, space_name(record.group), registry, failpoints=failpoints) for record in records]
