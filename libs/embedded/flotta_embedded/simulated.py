"""An engine in memory that forgets like a machine that loses power: the simulator's disk under every replica.

A crash takes each space, independently, back to a flushed state: its last completed flush, or one that had begun, or
one the engine made by itself in the background (as RocksDB does when a memtable is full). Which one is decided by the
seed alone.

Invariants: rows are copied on write, so a flush and a frozen view cost nothing until the next write; creating and
dropping are durable at once; an injected fault leaves live state as it was.
"""

from __future__ import annotations

import errno
import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import chain

from flotta_consensus.api import Failpoints, NoFailpoints

from .overlay import Row


class _Rows:
    """A sorted map. Shared once anyone else holds it; then the next write takes a copy."""

    __slots__ = ("data", "shared", "sorted")

    def __init__(self, data: dict[bytes, bytes], ordered: list[bytes]) -> None:
        self.data = data
        self.sorted = ordered
        self.shared = False

    def share(self) -> _Rows:
        self.shared = True
        return self

    def writable(self) -> _Rows:
        return _Rows(dict(self.data), list(self.sorted)) if self.shared else self

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self.data:
            insort(self.sorted, key)
        self.data[key] = value

    def delete(self, key: bytes) -> None:
        if key in self.data:
            del self.data[key]
            del self.sorted[bisect_left(self.sorted, key)]

    def scan(self, low: bytes, high: bytes | None, reverse: bool, limit: int | None) -> Iterator[Row]:
        first = bisect_left(self.sorted, low)
        last = len(self.sorted) if high is None else bisect_left(self.sorted, high)
        if reverse:
            first = first if limit is None else max(first, last - limit)
        else:
            last = last if limit is None else min(last, first + limit)
        found = self.sorted[first:last]
        if reverse:
            found.reverse()
        data = self.data
        return iter([(key, data[key]) for key in found])


class _Space:
    __slots__ = ("begun", "flushed", "live", "unflushed_bytes")

    def __init__(self) -> None:
        self.live = _Rows({}, [])
        self.flushed = self.live.share()
        self.begun: list[_Rows] = []  # flushes that began and never completed
        self.unflushed_bytes = 0


class SimView:
    """The live rows of one space; after the space is dropped, its last ones."""

    def __init__(self, space: _Space) -> None:
        self._space = space

    def _rows(self) -> _Rows:
        return self._space.live

    def get(self, key: bytes) -> bytes | None:
        return self._rows().data.get(key)

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        data = self._rows().data
        return [data.get(key) for key in keys]

    def scan(self, low: bytes, high: bytes | None, *, reverse: bool = False, limit: int | None = None) -> Iterator[Row]:
        return self._rows().scan(low, high, reverse, limit)


class SimFrozenView(SimView):
    """Rows as they were; ValueError once closed."""

    def __init__(self, rows: _Rows) -> None:
        self._frozen: _Rows | None = rows

    def _rows(self) -> _Rows:
        if self._frozen is None:
            raise ValueError("the frozen view is closed")
        return self._frozen

    def close(self) -> None:
        self._frozen = None


class SimEngine:
    """An `Engine`. `crash` ends one process and starts the next one's: what is not flushed is gone.

    `background_flush_one_in`: one write in so many is followed by a flush that nobody asked for (0: never).
    """

    def __init__(
        self, seed: int = 0, *, background_flush_one_in: int = 0, failpoints: Failpoints | None = None
    ) -> None:
        self._random = random.Random(seed)
        self._background_flush_one_in = background_flush_one_in
        self._failpoints = failpoints or NoFailpoints()
        self._spaces: dict[str, _Space] = {}
        self._closed = False
        self._bytes_left: int | None = None
        self._flushes_left: int | None = None

    # --- faults -----------------------------------------------------------------------------------------------------

    def crash(self) -> dict[str, int]:
        """Lose power. Returns counts: spaces that lost something, and their unflushed bytes."""
        lost = {"spaces": 0, "bytes": 0}
        for name in sorted(self._spaces):
            space = self._spaces[name]
            if space.begun:
                space.flushed = self._random.choice([space.flushed, *space.begun])
            if space.live is not space.flushed:
                lost["spaces"] += 1
                lost["bytes"] += space.unflushed_bytes
            space.live = space.flushed.share()
            space.begun = []
            space.unflushed_bytes = 0
        self._closed = False
        return lost

    def fill_up_after(self, bytes: int) -> None:
        """Writes beyond this many bytes fail with ENOSPC, and so do flushes and creations from then on."""
        self._bytes_left = bytes

    def fail_flush_after(self, flushes: int) -> None:
        """This many flushes succeed, the next ones fail with EIO; what they flushed may or may not survive."""
        self._flushes_left = flushes

    def reset_faults(self) -> None:
        self._bytes_left = None
        self._flushes_left = None

    # --- the engine -------------------------------------------------------------------------------------------------

    def spaces(self) -> list[str]:
        self._check_open()
        return sorted(self._spaces)

    def create(self, space: str) -> None:
        self._check_open()
        if space in self._spaces:
            raise ValueError(f"space {space!r} exists")
        self._check_room()
        self._failpoints.reach("engine.before_create")
        self._spaces[space] = _Space()
        self._failpoints.reach("engine.after_create")

    def drop(self, space: str) -> None:
        self._space(space)
        self._failpoints.reach("engine.before_drop")
        del self._spaces[space]
        self._failpoints.reach("engine.after_drop")

    def view(self, space: str) -> SimView:
        return SimView(self._space(space))

    def freeze(self, space: str) -> SimFrozenView:
        return SimFrozenView(self._space(space).live.share())

    def write(self, space: str, puts: Sequence[Row], deletes: Sequence[bytes]) -> None:
        found = self._space(space)
        for item in (*chain.from_iterable(puts), *deletes):
            if not isinstance(item, bytes):
                raise TypeError(f"keys and values are bytes, not {type(item).__name__}")
        size = sum(len(key) + len(value) for key, value in puts) + sum(map(len, deletes))
        if self._bytes_left is not None:
            self._bytes_left -= size
            self._check_room()
        self._failpoints.reach("engine.before_write")
        rows = found.live.writable()
        for key, value in puts:
            rows.put(key, value)
        for key in deletes:
            rows.delete(key)
        found.live = rows
        found.unflushed_bytes += size
        if self._background_flush_one_in and self._random.randrange(self._background_flush_one_in) == 0:
            found.flushed = rows.share()
            found.begun = []
        self._failpoints.reach("engine.after_write")

    def flush(self, space: str) -> None:
        found = self._space(space)
        self._failpoints.reach("engine.before_flush")
        self._check_room()
        found.begun.append(found.live.share())
        if self._flushes_left is not None:
            self._flushes_left -= 1
            if self._flushes_left < 0:
                raise OSError(errno.EIO, f"injected flush error in space {space!r}")
        self._failpoints.reach("engine.in_flush")
        found.flushed = found.begun[-1]
        found.begun = []
        found.unflushed_bytes = 0
        self._failpoints.reach("engine.after_flush")

    def compact(self, space: str) -> None:
        """There are no files to rewrite; RocksDB flushes first, and so does this."""
        self.flush(space)

    def bytes_unflushed(self, space: str) -> int:
        return self._space(space).unflushed_bytes

    def close(self) -> None:
        """Further calls fail until `crash`. Nothing is flushed: a clean end promises no more than a crash."""
        self._closed = True

    def _space(self, space: str) -> _Space:
        self._check_open()
        found = self._spaces.get(space)
        if found is None:
            raise KeyError(f"no space {space!r}")
        return found

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the engine is closed")

    def _check_room(self) -> None:
        if self._bytes_left is not None and self._bytes_left < 0:
            raise OSError(errno.ENOSPC, "injected: no space left on the simulated disk")
