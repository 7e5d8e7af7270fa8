"""A shard whose keys another takes over: `kv.follow@1`, `kv.seal@1`, `kv.unfollow@1`, and pages of its rows.

From `kv.follow` on every write leaves a note of the rows it may have changed. So a copy needs no frozen state: all
rows, read at any time after that and in any number of pieces, and then the noted ones as they are by then, in the order
of the notes, are in the end the shard's rows. `kv.seal` ends the notes: nothing is written, or read as of now, after.

Invariants: `token`, the revision of the `kv.follow` that the notes begin with, names an unbroken run of notes; a sealed
shard is never opened again; a page comes from one state, and says it is the last only if that state is sealed.
Rows that go because their time has come leave no note: whoever copies them has their times too.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from flotta_embedded.api import Command, Overlay, View
from flotta_embedded.codec import command_encoder, decode_value, encode_value
from flotta_embedded.meta import read_header

from . import keys
from .divisions import SLICE_BYTES, SLICE_ROWS, inherited_kinds
from .shard_state import Stage, decode_state, encode_state

FOLLOW: Final = "kv.follow"
SEAL: Final = "kv.seal"
UNFOLLOW: Final = "kv.unfollow"
VERSION: Final = 1
UNFOLLOW_ROWS_MAX: Final = 4096

_TOKEN = struct.Struct(">Q")
_encode_follow = command_encoder(FOLLOW, VERSION)
_encode_seal = command_encoder(SEAL, VERSION)
_encode_unfollow = command_encoder(UNFOLLOW, VERSION)


class Phase(enum.IntEnum):
    """How far a copy is. Numbers as in flotta.storage.v1.FollowPhase."""

    ROWS = 1  # all there are, in key order
    TOUCHED = 2  # those that were noted
    WHOLE = 3  # nothing is to come


@dataclass(frozen=True, slots=True)
class Followed:
    """A page. Rows that are None are gone. `phase` and `cursor`: what to ask for next; `more`: there is something."""

    token: int
    revision: int
    group_time_ms: int
    phase: Phase
    cursor: bytes
    more: bool = False
    rows: tuple[tuple[bytes, bytes | None], ...] = ()


def follow_payload(stamp_ms: int) -> bytes:
    return _encode_follow(stamp_ms, b"")


def seal_payload(stamp_ms: int) -> bytes:
    return _encode_seal(stamp_ms, b"")


def unfollow_payload(stamp_ms: int) -> bytes:
    return _encode_unfollow(stamp_ms, b"")


def token_of(row: bytes) -> int:
    """Of a row under `FOLLOWED_KEY`."""
    return int(_TOKEN.unpack(row)[0])


def note(overlay: Overlay, revision: int, data_key: bytes, dedup_key: bytes) -> None:
    """A write has run here; `dedup_key` is empty if it has no request id."""
    overlay.put(keys.touched_key(revision), encode_value([data_key, dedup_key]))


def apply_follows(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    """A run of `kv.follow@1`: each is answered whether the shard is followed now."""
    return [_follow(overlay, command) for command in commands]


def _follow(overlay: Overlay, command: Command) -> bool:
    raw, noted, division = overlay.multi_get([keys.SHARD_KEY, keys.FOLLOWED_KEY, keys.DIVISION_KEY])
    state = None if raw is None else decode_state(raw)
    if state is not None and state.stage is Stage.SERVES and noted is None and division is None:
        overlay.put(keys.FOLLOWED_KEY, _TOKEN.pack(command.revision))
        overlay.put(keys.SHARD_KEY, encode_state(replace(state, stage=Stage.FOLLOWED)))
        return True
    return state is not None and state.stage in (Stage.FOLLOWED, Stage.SEALED)


def apply_seals(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    """A run of `kv.seal@1`: each is answered whether the shard is sealed now."""
    return [_seal(overlay) for _ in commands]


def _seal(overlay: Overlay) -> bool:
    raw = overlay.get(keys.SHARD_KEY)
    state = None if raw is None else decode_state(raw)
    if state is not None and state.stage is Stage.FOLLOWED:
        overlay.put(keys.SHARD_KEY, encode_state(replace(state, stage=Stage.SEALED, epoch=state.epoch + 1)))
        return True
    return state is not None and state.sealed


def apply_unfollows(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    """A run of `kv.unfollow@1`: each is answered whether no note is left. Each removes a bounded number of them."""
    return [_unfollow(overlay) for _ in commands]


def _unfollow(overlay: Overlay) -> bool:
    raw = overlay.get(keys.SHARD_KEY)
    state = None if raw is None else decode_state(raw)
    if state is None or state.sealed:
        return False
    if state.stage is Stage.FOLLOWED:
        overlay.put(keys.SHARD_KEY, encode_state(replace(state, stage=Stage.SERVES)))
    notes = [row_key for row_key, _ in overlay.scan(keys.TOUCHED_PREFIX, keys.TOUCHED_END, limit=UNFOLLOW_ROWS_MAX + 1)]
    for row_key in notes[:UNFOLLOW_ROWS_MAX]:
        overlay.delete(row_key)
    if len(notes) > UNFOLLOW_ROWS_MAX:
        return False
    overlay.delete(keys.FOLLOWED_KEY)
    return True


def page_of(view: View, phase: Phase, cursor: bytes, token: int = 0) -> Followed | None:
    """What comes at the cursor, from a view that stays as it is; None while the shard is not followed. With another
    token than the notes have, there is nothing but that token."""
    raw, noted = view.multi_get([keys.SHARD_KEY, keys.FOLLOWED_KEY])
    header = read_header(view)
    if raw is None or noted is None or header is None:
        return None
    state, now = decode_state(raw), token_of(noted)
    if state.stage not in (Stage.FOLLOWED, Stage.SEALED):
        return None
    page = Followed(now, header.revision_base + header.index, header.group_time_ms, phase, cursor)
    if token not in (0, now) or phase is Phase.WHOLE:
        return page
    if phase is Phase.ROWS:
        return _rows(view, page)
    return _touched(view, page, sealed=state.sealed)


def _rows(view: View, page: Followed) -> Followed:
    for kind in inherited_kinds():
        low = max(page.cursor, kind.low)
        if low >= kind.high:
            continue
        rows: list[tuple[bytes, bytes | None]] = []
        size = 0
        for row_key, row in view.scan(low, kind.high, limit=SLICE_ROWS):
            size += len(row_key) + len(row)
            if rows and size > SLICE_BYTES:
                break
            rows.append((row_key, row))
        if rows:
            return replace(page, rows=tuple(rows), cursor=(rows[-1][0] or b"") + b"\x00", more=True)
    return replace(page, phase=Phase.TOUCHED, cursor=b"", more=True)


def _touched(view: View, page: Followed, *, sealed: bool) -> Followed:
    rows: dict[bytes, bytes | None] = {}
    size = notes = 0
    cursor, more = page.cursor, False
    low = keys.TOUCHED_PREFIX + (page.cursor + b"\x00" if page.cursor else b"")
    for note_key, noted in view.scan(low, keys.TOUCHED_END, limit=SLICE_ROWS):
        fresh = [key for key in decode_value(noted) if key and key not in rows]
        found = view.multi_get(fresh)
        size += sum(len(key) + len(row or b"") for key, row in zip(fresh, found, strict=True))
        if notes and size > SLICE_BYTES:
            more = True
            break
        rows.update(zip(fresh, found, strict=True))
        cursor, notes = note_key[len(keys.TOUCHED_PREFIX) :], notes + 1
    more = more or notes == SLICE_ROWS
    phase = Phase.WHOLE if sealed and not more else Phase.TOUCHED
    return replace(page, rows=tuple(rows.items()), cursor=cursor, phase=phase, more=more)
