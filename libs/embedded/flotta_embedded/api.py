"""What the embedded database promises: engines below it, commands above it.

An `Engine` stores rows in named spaces (one per replica). A `Registry` names deterministic commands. The machine
(`machine.py`) joins them: it is the `StateMachine` that a replicated group drives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class View(Protocol):
    """Rows of one space, in bytewise key order."""

    def get(self, key: bytes) -> bytes | None: ...

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def scan(
        self, low: bytes, high: bytes | None, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows with low <= key < high (None: to the end)."""


class FrozenView(View, Protocol):
    """A view that no later write changes. Must be closed."""

    def close(self) -> None: ...


class Engine(Protocol):
    """Rows in named spaces. A write is atomic within its space and visible at once; it survives a power cut only
    once a flush that began after it has completed. After a crash each space is at one of its flushed states.
    A space that does not exist is a KeyError; a failed disk is an OSError, and the process must end."""

    def spaces(self) -> list[str]: ...

    def create(self, space: str) -> None:
        """Durable at return. ValueError if it exists."""

    def drop(self, space: str) -> None:
        """Durable at return. Frozen views of it stay readable until closed."""

    def view(self, space: str) -> View: ...

    def freeze(self, space: str) -> FrozenView: ...

    def write(self, space: str, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes]) -> None:
        """One atomic batch; deletes and puts name disjoint keys."""

    def flush(self, space: str) -> None:
        """Blocking, lets go of the GIL, callable from any thread. OSError on a failed disk: end the process."""

    def compact(self, space: str) -> None:
        """Rewrite the space's files without what was deleted or replaced. As `flush`: blocking, from any thread."""

    def bytes_unflushed(self, space: str) -> int: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Command:
    """One command of an apply batch, as a vectorised handler sees it. Never changed; not frozen, because the hot path
    makes one per command and freezing makes that four times as dear."""

    index: int
    revision: int  # revision base of the replica + index
    now_ms: int  # group time at this entry: max(previous group time, the entry's stamp)
    args: bytes


class Overlay(Protocol):
    """The state inside one apply batch: reads see the batch's own earlier writes; all writes land in one batch."""

    def get(self, key: bytes) -> bytes | None: ...

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def scan(
        self, low: bytes, high: bytes | None, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]: ...

    def put(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None: ...


VectorHandler = Callable[[Overlay, Sequence[Command]], list[Any]]
"""Applies a run of commands of one name in order, one result each. A rejection is a result."""


class Bulk(NamedTuple):
    """What a bulk handler made of a whole apply batch."""

    puts: list[tuple[bytes, bytes]]  # all that it writes, each key once, and none but users' rows (`keys.DATA`)
    results: Sequence[Any]  # one for each entry
    now_ms: int  # group time after it


BulkHandler = Callable[[View, Mapping[bytes, bytes | None], Sequence[bytes], int, int], Bulk | None]
"""(view, kept rows, payloads, revision of the first, group time before them): a short cut for apply batches that are
much alike. It must come to exactly what the commands' own handlers come to, or be None; then those are asked."""
