"""Reading a column family: live, or as it was at one moment.

What rocksdict 0.3.29 gets wrong is kept in here (docs/adr/0021): iterating over its snapshots shows live rows, its
`items()` ends early at a damaged block without a word, and its lower bound sets the upper one.

Invariant: a row that RocksDB cannot read is an OSError, never a row that is not there.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice, repeat

from rocksdict import ColumnFamily, Rdict, RdictIter

from .overlay import Row

BLOCK_ROWS = 256
BLOCK_BYTES = 256 << 10

_MISUSE = "raw mode only support bytes"


def disk_error(error: Exception, doing: str) -> OSError:
    text = str(error)
    number = errno.ENOSPC if "No space left" in text or "NoSpace" in text else errno.EIO
    return OSError(number, f"RocksDB failed while {doing}: {text}")


def reported(error: Exception, doing: str) -> Exception:
    """rocksdict raises plain `Exception` for what RocksDB reports, and KeyError or ValueError for rows that are not
    bytes; here these mean other things."""
    if type(error) is Exception:
        return disk_error(error, doing)
    if isinstance(error, KeyError | ValueError) and error.args == (_MISUSE,):
        return TypeError(f"keys and values are bytes ({doing})")
    return error


@contextmanager
def disk(doing: str) -> Iterator[None]:
    """`_reported` for calls that are not made once per row."""
    try:
        yield
    except Exception as error:
        raise reported(error, doing) from error


class Space:
    """One column family's handles, and how much was written to it. The two counters have one writer thread each."""

    __slots__ = ("__weakref__", "dropped", "family", "flushed_bytes", "name", "rows", "written_bytes")

    def __init__(self, name: str, rows: Rdict, family: ColumnFamily) -> None:
        self.name = name
        self.rows: Rdict | None = rows
        self.family: ColumnFamily | None = family
        self.written_bytes = 0
        self.flushed_bytes = 0
        self.dropped = False

    def live(self) -> Rdict:
        if self.rows is None:
            raise ValueError("the engine is closed")
        return self.rows


class RocksView:
    """The live rows of one space; after a drop, its last ones."""

    __slots__ = ("_space",)

    def __init__(self, space: Space) -> None:
        self._space = space

    def get(self, key: bytes) -> bytes | None:
        try:
            found: bytes | None = self._space.live().get(key)
        except Exception as error:
            raise reported(error, "reading") from error
        return found

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        try:
            found: list[bytes | None] = self._space.live().get(list(keys))  # type: ignore[assignment]
        except Exception as error:
            raise reported(error, "reading") from error
        return found

    def scan(self, low: bytes, high: bytes | None, *, reverse: bool = False, limit: int | None = None) -> Iterator[Row]:
        """The state of now, however slowly it is read."""
        with disk("scanning"):
            now = RocksFrozenView(self._space.live())
        return now.scan(low, high, reverse=reverse, limit=limit)


class RocksFrozenView:
    """The rows of one space at the moment of its making.

    It is one iterator, made then: RocksDB pins what an iterator sees. rocksdict's own snapshots will not do, because
    iterating over one of them (0.3.29) shows the live rows. Scans read ahead in blocks and seek anew for each, so any
    number of them share the iterator; the lock is held for one block or one get.
    """

    __slots__ = ("_family", "_lock", "_rows")

    def __init__(self, family: Rdict) -> None:
        self._rows: RdictIter | None = family.iter()
        # Using an iterator after the last handle of a dropped family is gone ends in a segmentation fault.
        self._family: Rdict | None = family
        self._lock = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        return self.multi_get((key,))[0]

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = []
        with self._lock, disk("reading a frozen view"):
            rows = self._live()
            for key in keys:
                rows.seek(key)
                if not rows.valid():
                    rows.status()
                    found.append(None)
                else:
                    found.append(rows.value() if rows.key() == key else None)
        return found

    def scan(self, low: bytes, high: bytes | None, *, reverse: bool = False, limit: int | None = None) -> Iterator[Row]:
        self._live()
        if limit == 0 or (high is not None and low >= high):
            return iter(())
        blocks = self._blocks_down(low, high, limit) if reverse else self._blocks_up(low, high, limit)
        rows = chain.from_iterable(blocks)
        return rows if limit is None else islice(rows, limit)

    def close(self) -> None:
        with self._lock:
            self._rows = None
            self._family = None

    def _live(self) -> RdictIter:
        if self._rows is None:
            raise ValueError("the frozen view is closed")
        return self._rows

    def _blocks_up(self, low: bytes, high: bytes | None, limit: int | None) -> Iterator[list[Row]]:
        for rows_max in _block_sizes(limit):
            with self._lock, disk("scanning a frozen view"):
                rows = self._live()
                rows.seek(low)
                block, more = _take_up(rows, high, rows_max)
            yield block
            if not more:
                return
            low = block[-1][0] + b"\x00"

    def _blocks_down(self, low: bytes, high: bytes | None, limit: int | None) -> Iterator[list[Row]]:
        for rows_max in _block_sizes(limit):
            with self._lock, disk("scanning a frozen view"):
                rows = self._live()
                if high is None:
                    rows.seek_to_last()
                else:
                    rows.seek_for_prev(high)
                    if rows.valid() and rows.key() == high:
                        rows.prev()
                block, more = _take_down(rows, low, rows_max)
            yield block
            if not more:
                return
            high = block[-1][0]


def _block_sizes(limit: int | None) -> Iterator[int]:
    """Small first, for scans that end early; bounded, because a block is held in memory."""
    if limit is None:
        yield from (4, 16, 64)
    else:
        yield min(limit, BLOCK_ROWS)
    yield from repeat(BLOCK_ROWS)


def _take_up(rows: RdictIter, high: bytes | None, rows_max: int) -> tuple[list[Row], bool]:
    """A block of the rows from here on, and whether there may be more."""
    block: list[Row] = []
    size = 0
    while rows.valid():
        key = rows.key()
        if high is not None and key >= high:
            return block, False
        value = rows.value()
        block.append((key, value))
        size += len(key) + len(value)
        if len(block) == rows_max or size > BLOCK_BYTES:
            return block, True
        rows.next()
    rows.status()  # the end of an iterator may be a damaged block
    return block, False


def _take_down(rows: RdictIter, low: bytes, rows_max: int) -> tuple[list[Row], bool]:
    block: list[Row] = []
    size = 0
    while rows.valid():
        key = rows.key()
        if key < low:
            return block, False
        value = rows.value()
        block.append((key, value))
        size += len(key) + len(value)
        if len(block) == rows_max or size > BLOCK_BYTES:
            return block, True
        rows.prev()
    rows.status()
    return block, False
