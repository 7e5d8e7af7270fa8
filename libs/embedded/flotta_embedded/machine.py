"""The state machine of one replica: log entries in, one atomic batch out.

Invariants:
- Data, applied index, term, members and group time change in one engine write per `apply_many`.
- Entries apply in index order without a gap, each once; anything else is refused before it changes something.
- Revisions only grow: the base is raised by a command of its own, between two others.
- Group time = max(previous, the entry's stamp): it never goes back, and nothing here reads a clock.
- After an exception the machine takes no more entries; the process ends and replays from the durable state.
- A restore is visible at once and durably, or not at all (`generations.py`).

Called from one thread, but for the functions that `flush` and `compact` return.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flotta_consensus.api import Entry, EntryKind, Failpoints, Members, NoFailpoints

from . import keys
from .api import BulkHandler, Command, Engine, FrozenView, VectorHandler, View
from .births import BIRTH_INDEX, BIRTH_TERM, Birth
from .codec import FORMAT_COMMAND, HEAD, NAME_AT
from .errors import InvariantError, UnknownCommandError
from .generations import check_name, current, drop, generations, space_of, sweep
from .meta import Header, encode_members, encode_state, read_header
from .overlay import Layer, Row
from .registry import RAISE_WIRE, Registry
from .restore import MachineSink
from .snapshot import FrozenSnapshot

_NORMAL = EntryKind.NORMAL
_CONF = EntryKind.CONF


class Machine:
    """A `StateMachine`. Made by `create`, `create_empty` or `open`."""

    def __init__(
        self, engine: Engine, space: str, registry: Registry, generation: int, header: Header, failpoints: Failpoints
    ) -> None:
        self._engine = engine
        self.name = space
        self._registry = registry
        self._handlers = registry.handlers()
        self._bulk_handlers = registry.bulk_handlers()
        self._failpoints = failpoints
        self._generation = generation
        self._space = space_of(space, generation)
        self._view = engine.view(self._space)
        self._kept = _kept(self._view, registry)
        self._header = header
        self._durable = header.index
        self._durable_lock = threading.Lock()
        self._sink: MachineSink | None = None
        self._dead: str | None = None
        self._on_kept: Callable[[], None] | None = None

    # --- making one -------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        engine: Engine,
        space: str,
        registry: Registry,
        *,
        members: Members,
        revision_base: int = 0,
        rows: Iterable[Row] = (),
        group_time_ms: int = 0,
        failpoints: Failpoints | None = None,
    ) -> Machine:
        """A birth replica: every voter starts from these rows, at index 1 and term 1. Durable at return.
        ValueError if the machine exists; what a crash left of an earlier attempt is dropped."""
        header = Header(BIRTH_INDEX, BIRTH_TERM, group_time_ms, revision_base, members)
        return cls._create(engine, space, registry, header, rows, failpoints or NoFailpoints())

    @classmethod
    def create_empty(
        cls, engine: Engine, space: str, registry: Registry, *, failpoints: Failpoints | None = None
    ) -> Machine:
        """A replica that knows nothing yet; its first state comes by snapshot. Durable at return."""
        header = Header(0, 0, 0, 0, Members())
        return cls._create(engine, space, registry, header, (), failpoints or NoFailpoints())

    @classmethod
    def open(cls, engine: Engine, space: str, registry: Registry, *, failpoints: Failpoints | None = None) -> Machine:
        """The machine as it was last durable (or later). KeyError if there is none. Reads two rows, and those
        that are kept in memory."""
        check_name(space)
        generation = current(engine, space)
        if generation is None:
            raise KeyError(f"no machine {space!r} in this engine")
        sweep(engine, space)
        physical = space_of(space, generation)
        if engine.bytes_unflushed(physical):
            engine.flush(physical)
        header = read_header(engine.view(physical))
        if header is None:
            raise InvariantError(f"machine {space!r} has no members row")
        return cls(engine, space, registry, generation, header, failpoints or NoFailpoints())

    @classmethod
    def _create(
        cls, engine: Engine, space: str, registry: Registry, header: Header, rows: Iterable[Row], failpoints: Failpoints
    ) -> Machine:
        birth = Birth(engine, space, failpoints)
        birth.write(rows)
        birth.finish(header)
        return cls(engine, space, registry, birth.generation, header, failpoints)

    # --- what it holds ----------------------------------------------------------------------------------------------

    def applied_index(self) -> int:
        return self._header.index

    def applied_term(self) -> int:
        return self._header.term

    def durable_index(self) -> int:
        return self._durable

    def members(self) -> Members:
        return self._header.members

    def group_time_ms(self) -> int:
        return self._header.group_time_ms

    @property
    def revision_base(self) -> int:
        return self._header.revision_base

    def revision(self, index: int) -> int:
        """The revision of the entry at an index; never regresses, across splits and restores too."""
        return self._header.revision_base + index

    def view(self) -> View:
        """The live state. Take a new one after a restore; each call on it sees whole batches, two calls may not see
        the same one (`freeze` does)."""
        return self._view

    def kept_row(self, key: bytes) -> bytes | None:
        """A row of the live state that the registry has every machine keep in memory. KeyError for any other."""
        return self._kept[key]

    def watch_kept(self, changed: Callable[[], None]) -> None:
        """Have `changed` called, in the machine's own thread, after a batch or a restore that wrote a kept row."""
        self._on_kept = changed

    def freeze(self) -> FrozenView:
        """The state as it is now, whatever is applied, restored or destroyed later. Must be closed."""
        return self._engine.freeze(self._space)

    def bytes_unflushed(self) -> int:
        return self._engine.bytes_unflushed(self._space)

    # --- applying ---------------------------------------------------------------------------------------------------

    def apply_many(self, entries: Sequence[Entry]) -> Sequence[Any]:
        self._check_alive()
        if not entries:
            return []
        if self._header.index == 0:
            raise InvariantError(f"machine {self.name} is empty: its first state must come by snapshot")
        try:
            for handler in self._bulk_handlers:
                done = self._apply_bulk(handler, entries)
                if done is not None:
                    return done
            return self._apply(entries)
        except BaseException as error:
            self._dead = f"an apply failed ({type(error).__name__}: {error})"
            raise

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise InvariantError(f"machine {self.name} takes nothing more: {self._dead}")

    def _apply_bulk(self, handler: BulkHandler, entries: Sequence[Entry]) -> Sequence[Any] | None:
        """All entries in one go, if the handler can; nothing has changed if it cannot."""
        header = self._header
        first, end = header.index + 1, header.index + 1 + len(entries)
        if [entry.index for entry in entries] != list(range(first, end)):
            return None
        payloads = [entry.payload for entry in entries if entry.kind is _NORMAL]
        if len(payloads) != len(entries):
            return None
        made = handler(self._view, self._kept, payloads, header.revision_base + first, header.group_time_ms)
        if made is None:
            return None
        after = Header(end - 1, entries[-1].term, made.now_ms, header.revision_base, header.members)
        state = encode_state(after.index, after.term, after.group_time_ms, after.revision_base)
        made.puts.append((keys.META_STATE, state))
        self._failpoints.reach("machine.apply_before_write")
        self._engine.write(self._space, made.puts, [])
        self._header = after
        self._failpoints.reach("machine.apply_written")
        return made.results

    def _apply(self, entries: Sequence[Entry]) -> list[Any]:
        overlay = Layer(self._view, self._kept)
        results: list[Any] = []
        header = self._header
        index = header.index
        now_ms = header.group_time_ms
        base = header.revision_base
        members = header.members
        run_wire = b""
        run: list[Command] = []
        for entry in entries:
            index += 1
            if entry.index != index:
                raise InvariantError(f"machine {self.name}: entry {entry.index} came where {index} is next")
            if entry.kind is _NORMAL:
                payload = entry.payload
                if len(payload) < NAME_AT:
                    raise InvariantError(f"machine {self.name}: entry {index} is not a command")
                command_format, stamp_ms, name_bytes = HEAD.unpack_from(payload)
                if command_format != FORMAT_COMMAND:
                    raise InvariantError(f"machine {self.name}: entry {index} is not a command")
                args_at = NAME_AT + name_bytes
                wire = payload[NAME_AT:args_at]
                if stamp_ms > now_ms:
                    now_ms = stamp_ms
                if wire != run_wire:
                    base += self._run(run_wire, overlay, run, results)
                    run_wire = wire
                    run = []
                run.append(Command(index, base + index, now_ms, payload[args_at:]))
            else:
                base += self._run(run_wire, overlay, run, results)
                run = []
                if entry.kind is _CONF:
                    members = self._change_members(overlay, entry, members)
                results.append(None)
        base += self._run(run_wire, overlay, run, results)
        self._write(overlay, Header(index, entries[-1].term, now_ms, base, members))
        return results

    def _run(self, wire: bytes, overlay: Layer, run: list[Command], results: list[Any]) -> int:
        """By how much later revisions are higher for it."""
        if not run:
            return 0
        handler: VectorHandler | None = self._handlers.get(wire)
        if handler is None:
            raise UnknownCommandError(
                f"machine {self.name}: entry {run[0].index} calls {wire.decode(errors='replace')}, which this build "
                "does not have; applying stops before it, and goes on with a build that has it"
            )
        answered = handler(overlay, run)
        if len(answered) != len(run):
            raise InvariantError(f"{wire.decode()} gave {len(answered)} results for {len(run)} commands")
        results += answered
        return sum(answered) if wire == RAISE_WIRE else 0

    def _change_members(self, overlay: Layer, entry: Entry, before: Members) -> Members:
        after = entry.members
        if after is None:
            raise InvariantError(f"machine {self.name}: membership entry {entry.index} has no members")
        for hook in self._registry.members_hooks():
            hook(overlay, entry.index, before, after)
        return after

    def _write(self, overlay: Layer, header: Header) -> None:
        if overlay.wrote(keys.META_STATE) or overlay.wrote(keys.META_MEMBERS):
            raise InvariantError("a command wrote the machine's own rows")
        state = encode_state(header.index, header.term, header.group_time_ms, header.revision_base)
        overlay.put(keys.META_STATE, state)
        if header.members is not self._header.members:
            overlay.put(keys.META_MEMBERS, encode_members(header.members))
        puts, deletes = overlay.writes()
        self._failpoints.reach("machine.apply_before_write")
        self._engine.write(self._space, puts, deletes)
        rewritten = [key for key in self._kept if overlay.wrote(key)]
        for key in rewritten:
            self._kept[key] = overlay.get(key)
        self._header = header
        self._failpoints.reach("machine.apply_written")
        if rewritten and self._on_kept is not None:
            self._on_kept()

    # --- durability -------------------------------------------------------------------------------------------------

    def flush(self) -> Callable[[], int]:
        index = self._header.index
        generation = self._generation
        space = self._space

        def run() -> int:
            try:
                self._engine.flush(space)
            except KeyError:
                # A restore or a removal overtook this flush; a restored state is durable at a higher index.
                if generation == self._generation and self._dead is None:
                    raise
                return index
            with self._durable_lock:
                self._durable = max(self._durable, index)
            return index

        return run

    def compact(self) -> Callable[[], None]:
        """What to run, in any thread, to rewrite the files of the state as it is now."""
        space = self._space

        def run() -> None:
            # A space that is gone was replaced by a restore, whose files are new, or the replica was removed.
            with contextlib.suppress(KeyError):
                self._engine.compact(space)

        return run

    def snapshot(self) -> FrozenSnapshot:
        if self._header.index == 0:
            raise InvariantError(f"machine {self.name} is empty and has no snapshot to give")
        return FrozenSnapshot(self._header, self.freeze())

    def restore(self) -> MachineSink:
        """One at a time: an unfinished earlier sink is aborted."""
        self._check_alive()
        if self._sink is not None:
            self._sink.abort()
        generation = generations(self._engine, self.name)[-1] + 1
        self._sink = MachineSink(
            self._engine,
            self.name,
            generation,
            self._failpoints,
            applied_index=self.applied_index,
            committed=self._switch,
        )
        return self._sink

    def _switch(self, generation: int, header: Header) -> None:
        old = [number for number in generations(self._engine, self.name) if number < generation]
        self._sink = None
        self._generation = generation
        self._space = space_of(self.name, generation)
        self._view = self._engine.view(self._space)
        self._kept = _kept(self._view, self._registry)
        self._header = header
        with self._durable_lock:
            self._durable = header.index
        drop(self._engine, self.name, old)
        self._failpoints.reach("machine.restore_dropped")
        if self._on_kept is not None:
            self._on_kept()

    def destroy(self) -> None:
        """Idempotent, and picks up after a crash in the middle of it: `open` the rest and destroy that."""
        self._dead = "it was destroyed"
        if self._sink is not None:
            self._sink.abort()
            self._sink = None
        drop(self._engine, self.name, generations(self._engine, self.name))


def _kept(view: View, registry: Registry) -> dict[bytes, bytes | None]:
    keys_kept = registry.kept_rows()
    return dict(zip(keys_kept, view.multi_get(keys_kept), strict=True))
