"""Makes the state machines of children out of the rows of a shard that divided, in one pass over them.

Blocking, for a worker thread. Nothing of it is visible before it is whole (`flotta_embedded/births.py`), and it reads
from a frozen view alone, so the shard goes on serving, and may even be pruned, meanwhile. `bear_in_thread` never
returns, cancelled or not, while the thread still uses the view or the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from flotta_consensus.api import Failpoints, Members
from flotta_embedded.api import Engine, FrozenView
from flotta_embedded.births import BIRTH_INDEX, BIRTH_TERM, Birth
from flotta_embedded.machine import Machine
from flotta_embedded.meta import Header
from flotta_embedded.registry import Registry

from flotta_storage.core.divisions import Division, first_rows, inherited
from flotta_storage.core.replicas import LocalReplica
from flotta_storage.core.shard_state import ShardState


def space_name(group: int) -> str:
    return f"group-{group}"


class Abandoned(Exception):
    """Nobody waits for it any more."""


@dataclass(frozen=True, slots=True)
class Estate:
    """What is divided: the parent's rows, its record and its division, all of one moment."""

    view: FrozenView
    state: ShardState
    division: Division


async def bear_in_thread(
    engine: Engine,
    estate: Estate,
    records: Sequence[LocalReplica],
    registry: Registry,
    failpoints: Failpoints,
) -> list[Machine]:
    """`bear`, and the view closed after it."""
    abandoned = threading.Event()
    args = (engine, estate, records, registry, failpoints, abandoned)
    work = asyncio.get_running_loop().run_in_executor(None, bear, *args)
    try:
        return await asyncio.shield(work)
    finally:
        abandoned.set()
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):  # however often: it is on its way already
                await asyncio.wait({work})
        if not work.cancelled():
            work.exception()  # looked at, whoever is left to hear of it
        estate.view.close()


def bear(
    engine: Engine,
    estate: Estate,
    records: Sequence[LocalReplica],
    registry: Registry,
    failpoints: Failpoints,
    abandoned: threading.Event,
) -> list[Machine]:
    """The machines of these children, durable at return."""
    division = estate.division
    births = {record.shard_index: Birth(engine, space_name(record.group), failpoints) for record in records}
    for found in inherited(estate.view, division):
        if abandoned.is_set():
            raise Abandoned
        for index, rows in found.items():
            if index in births:
                births[index].write(rows)
        time.sleep(0)  # let the event loop have its turn
    for record in records:
        child = division.child_of(record.group)
        if child is None:
            raise ValueError(f"group {record.group} is no child of {estate.state.shard_id}")
        birth = births[record.shard_index]
        birth.write(first_rows(estate.state, division, child))
        birth.finish(
            Header(BIRTH_INDEX, BIRTH_TERM, division.group_time_ms, division.revision, Members(voters=record.voters))
        )
    return [Machine.open(engine, space_name(record.group), registry, failpoints=failpoints) for record in records]
