"""Builds a replica's state from a snapshot stream, beside the state it replaces.

The steps, and what a crash after each leaves: create the next generation (an empty left-over); write rows (a partial
left-over); write the machine's rows and flush (the new state is current); drop the old generations (only the new one).
"""

from __future__ import annotations

from collections.abc import Callable

from flotta_consensus.api import Failpoints, Members

from .api import Engine
from .errors import InvariantError
from .generations import space_of
from .meta import Header, write_header, write_rows
from .snapshot import SnapshotParser


class MachineSink:
    """A `SnapshotSink`. A bad stream is remembered and reported by `commit`; nothing of it is ever visible."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        generation: int,
        failpoints: Failpoints,
        *,
        applied_index: Callable[[], int],
        committed: Callable[[int, Header], None],
    ) -> None:
        self._engine = engine
        self._space = space_of(name, generation)
        self._generation = generation
        self._failpoints = failpoints
        self._applied_index = applied_index
        self._committed = committed
        self._parser = SnapshotParser()
        self._damage: str | None = None
        self._open = True
        engine.create(self._space)
        failpoints.reach("machine.restore_created")

    def write(self, chunk: bytes) -> None:
        if not self._open:
            raise InvariantError("a snapshot sink was written to after its end")
        if self._damage is not None:
            return
        try:
            rows = self._parser.feed(chunk)
        except ValueError as error:
            self._damage = str(error)
            return
        write_rows(self._engine, self._space, rows)

    def commit(self, index: int, term: int, members: Members) -> None:
        if not self._open:
            raise InvariantError("a snapshot sink was committed after its end")
        header = self._parser.header
        damage = self._damage
        if damage is None and (header is None or not self._parser.finished):
            damage = "the snapshot ends early"
        if damage is None and header is not None:
            damage = _difference(header, index, term, members)
        if damage is not None or header is None:
            self.abort()
            raise ValueError(damage)
        if header.index < self._applied_index():
            raise InvariantError(f"a machine at index {self._applied_index()} was to be restored to {header.index}")
        self._open = False
        self._failpoints.reach("machine.restore_written")
        write_header(self._engine, self._space, header)
        self._failpoints.reach("machine.restore_before_flush")
        self._engine.flush(self._space)
        self._failpoints.reach("machine.restore_flushed")
        self._committed(self._generation, header)

    def abort(self) -> None:
        """Drop what was built; nothing happens after a commit or another abort."""
        if self._open:
            self._open = False
            self._engine.drop(self._space)


def _difference(header: Header, index: int, term: int, members: Members) -> str | None:
    if (header.index, header.term) != (index, term):
        return f"the snapshot is at index {header.index} term {header.term}, not at index {index} term {term}"
    if _as_sets(header.members) != _as_sets(members):
        return f"the snapshot's members are {header.members}, not {members}"
    return None


def _as_sets(members: Members) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    return frozenset(members.voters), frozenset(members.learners), frozenset(members.outgoing)
