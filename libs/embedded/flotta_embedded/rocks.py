"""Spaces as column families of one RocksDB: raw bytes, no write-ahead log, one atomic batch per write.

RocksDB's own log is off (docs/adr/0020): the Raft log is the log. What survives a crash of a space is its last flushed
memtable, and a batch never spans two memtables, so it is always a whole number of writes.

Invariants: no call here syncs, except `create`, `drop`, `flush` and `compact`; one thread writes a space, any may flush
or compact it; every failure of RocksDB itself becomes an OSError, after which the process must end.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flotta_consensus.api import Failpoints, NoFailpoints
from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteBatch, WriteOptions

from .overlay import Row
from .rocks_views import RocksFrozenView, RocksView, Space, disk, reported

DEFAULT_FAMILY = "default"  # RocksDB insists on it; it is not a space and stays empty


@dataclass(frozen=True, slots=True)
class RocksTuning:
    """Small on purpose: several storage nodes share a laptop."""

    write_buffer_bytes: int = 8 << 20  # per space
    write_buffers_bytes: int = 48 << 20  # all spaces together; over it the fullest is flushed
    arena_block_bytes: int = 128 << 10  # the least a space with any unflushed write takes
    block_cache_bytes: int = 32 << 20  # all spaces, index and filter blocks included
    open_files_max: int = 512
    background_jobs: int = 2
    target_file_bytes: int = 32 << 20


class RocksEngine:
    """An `Engine` over one RocksDB directory. One process at a time: RocksDB holds a lock file."""

    def __init__(
        self, path: str | Path, *, tuning: RocksTuning | None = None, failpoints: Failpoints | None = None
    ) -> None:
        self._path = str(path)
        self._tuning = tuning or RocksTuning()
        self._failpoints = failpoints or NoFailpoints()
        self._cache = Cache(self._tuning.block_cache_bytes)
        self._unlogged = WriteOptions()
        self._unlogged.disable_wal = True  # type: ignore[assignment,method-assign]
        self._lock = threading.Lock()  # over creating, dropping and closing
        self._compacting = threading.Lock()  # one at a time; closing waits for it
        self._closing = False
        self._spaces: dict[str, Space] = {}
        self._dropped: weakref.WeakSet[Space] = weakref.WeakSet()  # views of them may live on
        _make_directory(self._path)
        with disk(f"opening {self._path}"):
            families = self._families()
            self._db: Rdict | None = Rdict(
                self._path, self._options(), column_families={name: self._options() for name in families}
            )
            for name in families:
                if name != DEFAULT_FAMILY:
                    self._spaces[name] = self._handles(self._db, name)

    def spaces(self) -> list[str]:
        self._live()
        return sorted(self._spaces)

    def create(self, space: str) -> None:
        with self._lock:
            db = self._live()
            if space in self._spaces or space == DEFAULT_FAMILY:
                raise ValueError(f"space {space!r} exists")
            self._failpoints.reach("engine.before_create")
            with disk(f"creating space {space}"):
                db.create_column_family(space, self._options())
                self._spaces[space] = self._handles(db, space)
            self._failpoints.reach("engine.after_create")

    def drop(self, space: str) -> None:
        with self._lock:
            found = self._space(space)
            self._failpoints.reach("engine.before_drop")
            found.dropped = True
            del self._spaces[space]
            found.family = None
            self._dropped.add(found)
            with disk(f"dropping space {space}"):
                self._live().drop_column_family(space)
            self._failpoints.reach("engine.after_drop")

    def view(self, space: str) -> RocksView:
        return RocksView(self._space(space))

    def freeze(self, space: str) -> RocksFrozenView:
        found = self._space(space)
        with disk(f"freezing space {space}"):
            return RocksFrozenView(found.live())

    def write(self, space: str, puts: Sequence[Row], deletes: Sequence[bytes]) -> None:
        found = self._space(space)
        self._failpoints.reach("engine.before_write")
        if found.family is None:
            raise KeyError(f"space {space!r} was dropped")
        batch = WriteBatch(raw_mode=True)
        batch.set_default_column_family(found.family)
        try:
            for key, value in puts:
                batch[key] = value
            for key in deletes:
                del batch[key]
            size = batch.size_in_bytes()
            self._live().write(batch, self._unlogged)
        except Exception as error:
            raise reported(error, f"writing to space {space}") from error
        found.written_bytes += size
        self._failpoints.reach("engine.after_write")

    def flush(self, space: str) -> None:
        found = self._space(space)
        self._failpoints.reach("engine.before_flush")
        written = found.written_bytes
        try:
            with disk(f"flushing space {space}"):
                found.live().flush(True)
        except OSError:
            if found.dropped:
                raise KeyError(f"space {space!r} was dropped while it was flushed") from None
            raise
        found.flushed_bytes = max(found.flushed_bytes, written)
        self._failpoints.reach("engine.after_flush")

    def compact(self, space: str) -> None:
        found = self._space(space)
        with self._compacting:
            if self._closing:
                raise ValueError("the engine is closed")
            try:
                with disk(f"compacting space {space}"):
                    found.live().compact_range(None, None)
            except OSError:
                if found.dropped:
                    raise KeyError(f"space {space!r} was dropped while it was compacted") from None
                raise

    def bytes_unflushed(self, space: str) -> int:
        """What was written since the last explicit flush: at least what a crash would lose."""
        found = self._space(space)
        return found.written_bytes - found.flushed_bytes

    def statistics(self) -> dict[str, int]:
        """Bytes, for metrics: memtables, block cache, table files on disk."""
        db = self._live()
        tables = sum(_property(space.live(), "rocksdb.total-sst-files-size") for space in list(self._spaces.values()))
        memtables = sum(_property(space.live(), "rocksdb.size-all-mem-tables") for space in list(self._spaces.values()))
        return {
            "memtable_bytes": memtables,
            "block_cache_bytes": self._cache.get_usage(),
            "table_bytes": tables,
            "background_errors": _property(db, "rocksdb.background-errors"),
        }

    def close(self) -> None:
        """Idempotent. Frozen views and scans must be closed first, or the directory stays locked until they are."""
        with self._lock:
            db = self._db
            if db is None:
                return
            self._closing = True
            with self._compacting:  # cancelled, it would make the flush fail that closing is
                self._db = None
            for space in (*self._spaces.values(), *self._dropped):
                space.rows = None
                space.family = None
            self._spaces.clear()
            with disk(f"closing {self._path}"):
                db.close()

    def _live(self) -> Rdict:
        if self._db is None:
            raise ValueError("the engine is closed")
        return self._db

    def _space(self, space: str) -> Space:
        found = self._spaces.get(space)
        if found is None:
            self._live()
            raise KeyError(f"no space {space!r}")
        return found

    def _handles(self, db: Rdict, name: str) -> Space:
        return Space(name, db.get_column_family(name), db.get_column_family_handle(name))

    def _families(self) -> list[str]:
        """A directory without CURRENT holds no database yet: it is made last."""
        if not os.path.exists(os.path.join(self._path, "CURRENT")):
            return [DEFAULT_FAMILY]
        return Rdict.list_cf(self._path)

    def _options(self) -> Options:
        tuning = self._tuning
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(tuning.write_buffer_bytes)
        options.set_db_write_buffer_size(tuning.write_buffers_bytes)
        # A stalled write would hold the GIL, and with it the process: leave compaction a lot of room before one.
        options.set_max_write_buffer_number(4)
        options.set_level_zero_slowdown_writes_trigger(48)
        options.set_level_zero_stop_writes_trigger(96)
        options.set_arena_block_size(tuning.arena_block_bytes)
        options.set_max_open_files(tuning.open_files_max)
        options.set_max_background_jobs(tuning.background_jobs)
        options.set_target_file_size_base(tuning.target_file_bytes)
        options.set_level_compaction_dynamic_level_bytes(True)
        options.set_compression_type(DBCompressionType.lz4())
        options.set_keep_log_file_num(2)
        options.set_max_log_file_size(1 << 20)
        options.set_stats_dump_period_sec(0)
        options.set_stats_persist_period_sec(0)
        options.set_skip_stats_update_on_db_open(True)
        blocks = BlockBasedOptions()
        blocks.set_block_cache(self._cache)
        blocks.set_bloom_filter(10, False)
        blocks.set_cache_index_and_filter_blocks(True)
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
        options.set_block_based_table_factory(blocks)
        return options


def _property(rows: Rdict, name: str) -> int:
    value: Any = rows.property_int_value(name)
    return int(value or 0)


def _make_directory(path: str) -> None:
    """Make the directory and make its name durable in its parent."""
    if os.path.isdir(path):
        return
    os.makedirs(path)
    parent = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
