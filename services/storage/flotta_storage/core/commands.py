"""The commands of a shard: `kv.write@1`, `kv.expire@1`, `kv.load@1` (`loads.py`), `kv.split@1` and `kv.prune@1`
(`splits.py`), those by which it gives its keys to another (`follows.py`) or takes others over (`absorptions.py`),
`shard.takeover@1` (`takeover.py`), and the hook that moves its epoch.

A whole run of writes costs one multi-get; each write then sees those before it through the overlay, and all land in one
batch. Runs of plain puts take the short cut of `puts.py`, which comes to the same. Conditions, epoch and ownership are
decided here, at apply, by the replicated state alone. Time is group time: a row whose `expire_ms` has come counts as
absent for every condition, whether or not it has been swept. Nothing is swept while a division is not done with.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from flotta_consensus.api import Members
from flotta_embedded.api import Command, Overlay
from flotta_embedded.codec import command_encoder
from flotta_embedded.dedup import DedupRun
from flotta_embedded.dedup import sweep as sweep_dedup
from flotta_embedded.registry import Registry

from . import absorptions, dedup, follows, keys
from .loads import LOAD, LOAD_VERSION, apply_loads
from .puts import apply_plain_puts
from .rows import encode_row, header_of
from .shard_state import Stage, after_conf, birth_state, decode_state, encode_state
from .splits import PRUNE, PRUNE_VERSION, SPLIT, SPLIT_VERSION, apply_prunes, apply_splits
from .takeover import TAKEOVER, TAKEOVER_VERSION, apply_takeovers
from .writes import WRITE, WRITE_VERSION, Write, WriteKind, WriteResult, decode_write

EXPIRE: Final = "kv.expire"
EXPIRE_VERSION: Final = 1
EXPIRE_ROWS_MAX: Final = 4096

_OK = WriteKind.OK
_EXPIRE_ARGS = struct.Struct(">I")
_encode_expire = command_encoder(EXPIRE, EXPIRE_VERSION)


class ExpireResult(NamedTuple):
    """`swept` rows went; `more`: perhaps not all that are due; group time is now `now_ms`."""

    swept: int
    more: bool
    now_ms: int


def new_registry() -> Registry:
    """Everything a shard's replicas know how to do."""
    registry = Registry()
    registry.vector(WRITE, version=WRITE_VERSION)(apply_writes)
    registry.vector(EXPIRE, version=EXPIRE_VERSION)(apply_expire)
    registry.vector(LOAD, version=LOAD_VERSION)(apply_loads)
    registry.vector(SPLIT, version=SPLIT_VERSION)(apply_splits)
    registry.vector(PRUNE, version=PRUNE_VERSION)(apply_prunes)
    registry.vector(TAKEOVER, version=TAKEOVER_VERSION)(apply_takeovers)
    registry.vector(follows.FOLLOW, version=follows.VERSION)(follows.apply_follows)
    registry.vector(follows.SEAL, version=follows.VERSION)(follows.apply_seals)
    registry.vector(follows.UNFOLLOW, version=follows.VERSION)(follows.apply_unfollows)
    registry.vector(absorptions.ABSORB, version=absorptions.VERSION)(absorptions.apply_absorbs)
    registry.vector(absorptions.COPY, version=absorptions.VERSION)(absorptions.apply_copies)
    registry.vector(absorptions.MERGE, version=absorptions.VERSION)(absorptions.apply_merges)
    registry.vector(absorptions.LET_GO, version=absorptions.VERSION)(absorptions.apply_let_goes)
    registry.bulk(apply_plain_puts)
    registry.on_members(apply_members)
    for row_key in (keys.SHARD_KEY, keys.DIVISION_KEY, keys.FOLLOWED_KEY, keys.ABSORPTION_KEY):
        registry.keep_row(row_key)
    return registry


def birth_rows(shard_id: str, table: str, shard_index: int, shard_count: int) -> list[tuple[bytes, bytes]]:
    """The rows that every birth voter of a shard begins with."""
    return [(keys.SHARD_KEY, encode_state(birth_state(shard_id, table, shard_index, shard_count)))]


def expire_payload(stamp_ms: int, rows_max: int = EXPIRE_ROWS_MAX) -> bytes:
    """A log entry that moves group time to its stamp and sweeps at most `rows_max` due rows (0: only the time)."""
    if not 0 <= rows_max <= EXPIRE_ROWS_MAX:
        raise ValueError(f"rows_max {rows_max} must be between 0 and {EXPIRE_ROWS_MAX}")
    return _encode_expire(stamp_ms, _EXPIRE_ARGS.pack(rows_max))


def apply_writes(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    """A run of `kv.write@1` in log order."""
    writes = [decode_write(command.args) for command in commands]
    raw_state = overlay.get(keys.SHARD_KEY)
    if raw_state is None:
        return [WriteResult(WriteKind.SHARD_MOVED, 0)] * len(writes)
    state = decode_state(raw_state)
    table = state.table.encode()
    wanted = [keys.DATA_PREFIX + write.key for write in writes]
    guarded = [dedup.dedup_row(table, write) for write in writes if write.request_id]
    overlay.multi_get(wanted + guarded)  # all rows of the run at once; the gets below find them in the overlay
    run = None
    if guarded:
        sweeping = overlay.get(keys.DIVISION_KEY) is None
        run = dedup.new_run(overlay, len(guarded), commands[-1].now_ms, sweeping=sweeping)
    results: list[Any] = []
    for command, write, row_key in zip(commands, writes, wanted, strict=True):
        if not state.admits(write.epoch, write.key):
            results.append(WriteResult(WriteKind.SHARD_MOVED, command.revision))
        elif run is not None and write.request_id:
            results.append(_change_once(overlay, run, table, command, write, row_key))
        else:
            results.append(_change_row(overlay, command, write, row_key))
    if state.stage is Stage.FOLLOWED:
        _note(overlay, table, commands, writes, results)
    return results


def _note(
    overlay: Overlay, table: bytes, commands: Sequence[Command], writes: Sequence[Write], results: Sequence[WriteResult]
) -> None:
    """What may have changed a row, be it only that of its request id."""
    for command, write, result in zip(commands, writes, results, strict=True):
        if result.duplicate or result.kind is WriteKind.SHARD_MOVED:
            continue
        if result.kind is _OK or write.request_id:
            guard = dedup.dedup_row(table, write) if write.request_id else b""
            follows.note(overlay, command.revision, keys.data_key(write.key), guard)


def _change_once(
    overlay: Overlay, run: DedupRun, table: bytes, command: Command, write: Write, row_key: bytes
) -> WriteResult:
    row = dedup.dedup_row(table, write)
    answered = dedup.earlier(run, row, command, write)
    if answered is not None:
        return answered
    result = _change_row(overlay, command, write, row_key)
    dedup.record(run, row, command, write, result)
    return result


def _change_row(overlay: Overlay, command: Command, write: Write, row_key: bytes) -> WriteResult:
    key, value, delete, _, ttl_ms, if_version, if_not_exists, _, _ = write
    revision, now_ms = command.revision, command.now_ms
    raw = overlay.get(row_key)
    version, create_ms, indexed_ms = 0, now_ms, 0  # a row that does not live has no version
    if raw is not None:
        stored = header_of(raw)
        indexed_ms = stored.expire_ms
        if not 0 < indexed_ms <= now_ms:
            version, create_ms = stored.version, stored.create_ms
    if delete and not version:
        return WriteResult(WriteKind.NOT_FOUND, revision)
    if if_not_exists and version:
        return WriteResult(WriteKind.ALREADY_EXISTS, revision, version)
    if if_version and if_version != version:
        return WriteResult(WriteKind.VERSION_MISMATCH, revision, version)
    if indexed_ms:
        overlay.delete(keys.expiry_key(indexed_ms, key))
    if delete:
        overlay.delete(row_key)
        return WriteResult(_OK, revision, revision)
    expire_ms = now_ms + ttl_ms if ttl_ms else 0
    if expire_ms:
        overlay.put(keys.expiry_key(expire_ms, key), b"")
    overlay.put(row_key, encode_row(revision, create_ms, now_ms, expire_ms, value))
    return WriteResult(_OK, revision, revision)


def apply_expire(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    """A run of `kv.expire@1`."""
    return [_sweep(overlay, command) for command in commands]


def _sweep(overlay: Overlay, command: Command) -> ExpireResult:
    (rows_max,) = _EXPIRE_ARGS.unpack(command.args)
    if overlay.get(keys.DIVISION_KEY) is not None:
        return ExpireResult(0, False, command.now_ms)
    low, high = keys.expiry_bounds(command.now_ms)
    due = [row_key for row_key, _ in overlay.scan(low, high, limit=rows_max + 1)]
    for row_key in due[:rows_max]:
        _, key = keys.split_expiry_key(row_key)
        overlay.delete(row_key)
        overlay.delete(keys.data_key(key))
    swept = min(len(due), rows_max)
    swept += sweep_dedup(overlay, dedup.WINDOW_MS, command.now_ms, rows_max - swept) if swept < rows_max else 0
    return ExpireResult(swept, len(due) > rows_max or 0 < swept == rows_max, command.now_ms)


def apply_members(overlay: Overlay, index: int, before: Members, after: Members) -> None:
    """A membership change of the group: the shard's record follows it in the same batch."""
    raw = overlay.get(keys.SHARD_KEY)
    if raw is not None:
        overlay.put(keys.SHARD_KEY, encode_state(after_conf(decode_state(raw), index, before, after)))
