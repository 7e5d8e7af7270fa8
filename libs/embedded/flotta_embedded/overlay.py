"""Writes laid over a state that is read but not yet changed.

One `Layer` over the engine's view holds an apply batch; one more over that holds a transaction, which is merged on
success and dropped on rollback.

Invariants: the base does not change while a layer over it lives (the apply thread is the only writer), so what was
read once is remembered; a scan shows the state as it was when the scan began.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from .api import View

Row = tuple[bytes, bytes]


class Layer:
    """An `Overlay`: reads see its own writes first, then the base."""

    __slots__ = ("_base", "_known", "_sorted", "_writes")

    def __init__(self, base: View, known: Mapping[bytes, bytes | None] | None = None) -> None:
        """`known`: rows of the base, or their absence, that need no reading."""
        self._base = base
        self._known: dict[bytes, bytes | None] = dict(known) if known else {}
        self._writes: dict[bytes, bytes | None] = {}
        self._sorted: list[bytes] = []

    def get(self, key: bytes) -> bytes | None:
        try:
            return self._known[key]
        except KeyError:
            value = self._known[key] = self._base.get(key)
            return value

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One read of the base for all keys; a later `get` of any of them costs a dict lookup."""
        known = self._known
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        if missing:
            known.update(zip(missing, self._base.multi_get(missing), strict=True))
        return [known[key] for key in keys]

    def put(self, key: bytes, value: bytes) -> None:
        self._known[key] = value
        self._writes[key] = value

    def delete(self, key: bytes) -> None:
        self._known[key] = None
        self._writes[key] = None

    def scan(self, low: bytes, high: bytes | None, *, reverse: bool = False, limit: int | None = None) -> Iterator[Row]:
        keys = self._sorted_writes()
        first = bisect_left(keys, low)
        last = len(keys) if high is None else bisect_left(keys, high)
        own = [(key, self._writes[key]) for key in keys[first:last]]
        if not own:
            return self._base.scan(low, high, reverse=reverse, limit=limit)
        if reverse:
            own.reverse()
        return islice(_merged(self._base.scan(low, high, reverse=reverse), own, reverse), limit)

    def writes(self) -> tuple[list[Row], list[bytes]]:
        """What an engine takes: puts and deletes, in the order of their keys' first write."""
        puts: list[Row] = []
        deletes: list[bytes] = []
        for key, value in self._writes.items():
            if value is None:
                deletes.append(key)
            else:
                puts.append((key, value))
        return puts, deletes

    def wrote(self, key: bytes) -> bool:
        return key in self._writes

    def merge_into(self, below: Layer) -> None:
        """Make this layer's writes the lower layer's; this layer is spent."""
        below._known.update(self._writes)
        below._writes.update(self._writes)

    def _sorted_writes(self) -> list[bytes]:
        # Keys are only ever added, so an equal count means an equal set.
        if len(self._sorted) != len(self._writes):
            self._sorted = sorted(self._writes)
        return self._sorted


def _merged(base: Iterator[Row], own: Iterable[tuple[bytes, bytes | None]], reverse: bool) -> Iterator[Row]:
    below = next(base, None)
    for key, value in own:
        while below is not None and ((below[0] > key) if reverse else (below[0] < key)):
            yield below
            below = next(base, None)
        if below is not None and below[0] == key:
            below = next(base, None)
        if value is not None:
            yield key, value
    if below is not None:
        yield below
        yield from base
