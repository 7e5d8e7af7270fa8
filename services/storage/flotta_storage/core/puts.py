"""Runs of plain puts, the bulk of what a shard applies: a short cut past `commands.apply_writes`.

A plain put has a key, a value and the shard's epoch, and neither conditions nor a time to live nor a request id. In a
shard whose changes nobody follows, over rows that do not expire, each of them just replaces its row. The entries are
taken apart and the rows made natively; no object is made for a key. Anything else is left to `apply_writes`.

Invariant: state and results are those of `apply_writes`, whatever the runs are; a test applies both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import overload

from flotta_embedded.api import Bulk, View
from flotta_native import PutRun

from . import keys
from .shard_state import Stage, decode_state
from .writes import WriteKind, WriteResult


class PutResults(Sequence[WriteResult]):
    """What a run of plain puts came to. Only whoever proposed them looks, so the results are made when they are."""

    __slots__ = ("_revisions",)

    def __init__(self, revisions: range) -> None:
        self._revisions = revisions

    def __len__(self) -> int:
        return len(self._revisions)

    @overload
    def __getitem__(self, index: int) -> WriteResult: ...

    @overload
    def __getitem__(self, index: slice) -> PutResults: ...

    def __getitem__(self, index: int | slice) -> WriteResult | PutResults:
        if isinstance(index, slice):
            return PutResults(self._revisions[index])
        revision = self._revisions[index]
        return WriteResult(WriteKind.OK, revision, revision)

    def __iter__(self) -> Iterator[WriteResult]:
        return map(WriteResult, repeat(WriteKind.OK), self._revisions, self._revisions)


def apply_plain_puts(
    view: View, kept: Mapping[bytes, bytes | None], payloads: Sequence[bytes], revision: int, now_ms: int
) -> Bulk | None:
    """The bulk handler; see `flotta_embedded.api.BulkHandler`."""
    raw_state = kept[keys.SHARD_KEY]
    if raw_state is None:
        return None
    state = decode_state(raw_state)
    if state.stage is not Stage.SERVES:
        return None
    run = PutRun.of(payloads, state.epoch, now_ms)
    if run is None:
        return None
    row_keys = run.keys(keys.DATA_PREFIX)
    rows = run.rows(view.multi_get(row_keys), revision)
    if rows is None:
        return None
    return Bulk(
        list(zip(row_keys, rows, strict=True)), PutResults(range(revision, revision + len(payloads))), run.now_ms
    )
