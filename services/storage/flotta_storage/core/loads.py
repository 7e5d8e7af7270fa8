"""The command `kv.load@1`: rows of a backup, put into a shard as they were, versions and times included.

A batch is loaded whole or not at all. A row that is there already, the very same, is left alone, so a batch may be
sent again. Invariants: a load never replaces a row; what it puts is older than the command's own revision, so every
later write has a greater version than any row before it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from flotta_embedded.api import Command, Overlay
from flotta_embedded.codec import command_encoder
from flotta_runtime.saved_rows import SavedRow, read_rows

from . import keys
from .rows import encode_row
from .shard_state import Stage, decode_state

LOAD: Final = "kv.load"
LOAD_VERSION: Final = 1

load_payload = command_encoder(LOAD, LOAD_VERSION)
"""`load_payload(stamp_ms, rows)`: the log entry; the rows as `saved_rows` encodes them."""


class LoadKind(enum.IntEnum):
    """Everything but LOADED changed nothing."""

    LOADED = 1
    MOVED = 2  # a key is not this shard's, or its keys are going over to another
    CONFLICT = 3  # another row is in the place of one of them
    TOO_NEW = 4  # a row's version is not below the shard's revision


class LoadResult(NamedTuple):
    """`rows`: how many of them were not there before. `key`: the one that stood in the way."""

    kind: LoadKind
    rows: int = 0
    key: bytes = b""


def apply_loads(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    """A run of `kv.load@1` in log order."""
    return [_load(overlay, command) for command in commands]


def _load(overlay: Overlay, command: Command) -> LoadResult:
    raw_state = overlay.get(keys.SHARD_KEY)
    if raw_state is None:
        return LoadResult(LoadKind.MOVED)
    rows, state = read_rows(command.args), decode_state(raw_state)
    if state.stage is not Stage.SERVES:
        return LoadResult(LoadKind.MOVED)
    for row, owned in zip(rows, state.own([row.key for row in rows]), strict=True):
        if not owned:
            return LoadResult(LoadKind.MOVED, key=row.key)
        if row.version >= command.revision:
            return LoadResult(LoadKind.TOO_NEW, key=row.key)
    stored = [encode_row(row.version, row.create_ms, row.update_ms, row.expire_ms, row.value) for row in rows]
    there = overlay.multi_get([keys.data_key(row.key) for row in rows])
    for row, before, after in zip(rows, there, stored, strict=True):
        if before is not None and before != after:
            return LoadResult(LoadKind.CONFLICT, key=row.key)
    fresh = [(row, after) for row, before, after in zip(rows, there, stored, strict=True) if before is None]
    for row, after in fresh:
        _put(overlay, row, after)
    return LoadResult(LoadKind.LOADED, len(fresh))


def _put(overlay: Overlay, row: SavedRow, stored: bytes) -> None:
    overlay.put(keys.data_key(row.key), stored)
    if row.expire_ms:
        overlay.put(keys.expiry_key(row.expire_ms, row.key), b"")
