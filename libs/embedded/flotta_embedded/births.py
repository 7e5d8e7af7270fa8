"""A machine in the making: rows are put into a space beside all others, and the last write makes it a machine.

The steps, and what a crash after each leaves: create the space (an empty left-over); write rows (a partial left-over);
write the machine's own rows and flush (the machine). Left-overs are swept when the machine is begun again.

Invariant: until `finish` has returned there is no machine, and from then on it is durable.
"""

from __future__ import annotations

from collections.abc import Iterable

from flotta_consensus.api import Failpoints, NoFailpoints

from .api import Engine
from .generations import check_name, current, generations, space_of, sweep
from .meta import Header, write_header, write_rows
from .overlay import Row

BIRTH_INDEX = 1
BIRTH_TERM = 1


class Birth:
    """ValueError if the machine exists."""

    def __init__(self, engine: Engine, name: str, failpoints: Failpoints | None = None) -> None:
        check_name(name)
        if current(engine, name) is not None:
            raise ValueError(f"machine {name!r} exists")
        self.name = name
        self.generation = max(generations(engine, name), default=0) + 1
        self._engine = engine
        self._space = space_of(name, self.generation)
        self._failpoints = failpoints or NoFailpoints()
        sweep(engine, name)
        engine.create(self._space)
        self._failpoints.reach("machine.create_created")

    def write(self, rows: Iterable[Row]) -> None:
        """In bounded batches."""
        write_rows(self._engine, self._space, rows)

    def finish(self, header: Header) -> None:
        write_header(self._engine, self._space, header)
        self._failpoints.reach("machine.create_before_flush")
        self._engine.flush(self._space)
        self._failpoints.reach("machine.create_flushed")
