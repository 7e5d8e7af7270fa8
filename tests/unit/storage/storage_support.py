"""A shard's state in memory, for tests of the commands alone: a dict of rows under an apply layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from flotta_consensus.api import Members
from flotta_embedded.api import Command, Overlay
from flotta_embedded.codec import decode_command
from flotta_embedded.keys import META_MEMBERS, META_STATE
from flotta_embedded.meta import encode_members, encode_state
from flotta_embedded.overlay import Layer
from flotta_embedded.registry import RAISE_WIRE
from flotta_runtime.saved_rows import SavedRow, encode_row
from flotta_storage.core import absorptions, commands, loads, splits
from flotta_storage.core.keys import ABSORPTION_KEY, SHARD_KEY
from flotta_storage.core.reads import Miss, read_many
from flotta_storage.core.shard_state import ShardState, decode_state
from flotta_storage.core.writes import Write, encode_write

_HANDLERS = commands.new_registry().handlers()


class DictView:
    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self.rows = rows

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.rows.get(key) for key in keys]

    def scan(
        self, low: bytes, high: bytes | None, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        found = sorted((k, v) for k, v in self.rows.items() if k >= low and (high is None or k < high))
        if reverse:
            found.reverse()
        return iter(found[:limit])


class ShardModel:
    """Applies runs of commands as the machine would: group time never goes back, one batch per run."""

    def __init__(self, shard_index: int = 0, shard_count: int = 1, revision_base: int = 0) -> None:
        self.rows = dict(commands.birth_rows("shard-0", "default", shard_index, shard_count))
        self.index = 1
        self.group_time_ms = 0
        self.revision_base = revision_base

    @property
    def view(self) -> DictView:
        return DictView(self.rows)

    def _run(self, handler: Any, args: Sequence[bytes], stamp_ms: int) -> list[Any]:
        batch = []
        self.group_time_ms = max(self.group_time_ms, stamp_ms)
        for arg in args:
            self.index += 1
            batch.append(Command(self.index, self.revision_base + self.index, self.group_time_ms, arg))
        overlay = Layer(self.view)
        results = handler(overlay, batch)
        self.take(overlay)
        return list(results)

    def take(self, overlay: Layer) -> None:
        puts, deletes = overlay.writes()
        self.rows.update(puts)
        for key in deletes:
            self.rows.pop(key, None)

    def write(self, *writes: Write, at_ms: int = 0) -> list[Any]:
        return self._run(commands.apply_writes, [encode_write(write) for write in writes], at_ms)

    def expire(self, at_ms: int, rows_max: int = 100) -> Any:
        payload_args = rows_max.to_bytes(4, "big")
        return self._run(commands.apply_expire, [payload_args], at_ms)[0]

    def load(self, *rows: SavedRow, at_ms: int = 0) -> Any:
        """One batch."""
        return self._run(loads.apply_loads, [b"".join(map(encode_row, rows))], at_ms)[0]

    def split(self, split: splits.Split, at_ms: int = 0) -> Any:
        args = decode_command(splits.split_payload(at_ms, split)).args
        return self._run(splits.apply_splits, [args], at_ms)[0]

    def prune(self, rows_max: int = 100) -> Any:
        return self._run(splits.apply_prunes, [rows_max.to_bytes(4, "big")], 0)[0]

    def do(self, payload: bytes) -> Any:
        """One entry, whatever it calls."""
        called = decode_command(payload)
        if called.wire == RAISE_WIRE:
            self.index += 1
            self.revision_base += int.from_bytes(called.args, "big")
            return None
        return self._run(_HANDLERS[called.wire], [called.args], called.stamp_ms)[0]

    def frozen(self) -> DictView:
        """The state with the machine's own rows, as it is now."""
        state = encode_state(self.index, 1, self.group_time_ms, self.revision_base)
        return DictView({**self.rows, META_STATE: state, META_MEMBERS: encode_members(Members(voters=(1,)))})

    def state(self) -> ShardState:
        return decode_state(self.rows[SHARD_KEY])

    def absorption(self) -> absorptions.Absorption | None:
        row = self.rows.get(ABSORPTION_KEY)
        return None if row is None else absorptions.decode_absorption(row)

    def revision(self) -> int:
        return self.revision_base + self.index

    def members(self, before: Members, after: Members) -> None:
        self.index += 1
        overlay: Overlay = Layer(self.view)
        commands.apply_members(overlay, self.index, before, after)
        assert isinstance(overlay, Layer)
        self.take(overlay)

    def read(self, key: bytes, epoch: int = 0, wall_ms: int | None = None) -> bytes | Miss:
        return read_many(self.view, [(key, epoch)], self.group_time_ms, wall_ms)[1][0]
