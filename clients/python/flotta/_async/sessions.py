"""A session: weak reads that still see what it has written and read."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from flotta._async.calls import AsyncCalls
from flotta.errors import FlottaError
from flotta.models import Consistency, Delete, Entry, Get, Operation, Put


class AsyncSession:
    """What `AsyncClient.session` returns. Its reads are EVENTUAL and yet never older than what the session has written
    or read of their shard: any replica answers them that is as far. It needs its client, and is over with it.
    """

    def __init__(self, calls: AsyncCalls) -> None:
        self._calls = calls

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The client stays open."""

    async def get(
        self,
        key: str | bytes,
        *,
        consistency: Consistency = Consistency.EVENTUAL,
        max_staleness_ms: int = 0,
        head_only: bool = False,
        timeout_ms: int | None = None,
    ) -> Entry | None:
        """As the client's, with what this session has seen. The first read of a shard is STRONG."""
        return await self._calls.get(Get(key, consistency, max_staleness_ms, head_only), timeout_ms)

    async def put(
        self,
        key: str | bytes,
        value: str | bytes,
        *,
        ttl_ms: int = 0,
        if_version: int = 0,
        if_absent: bool = False,
        request_id: str = "",
        timeout_ms: int | None = None,
    ) -> int:
        """As the client's."""
        return await self._calls.write(Put(key, value, ttl_ms, if_version, if_absent, request_id), timeout_ms) or 0

    async def delete(
        self, key: str | bytes, *, if_version: int = 0, request_id: str = "", timeout_ms: int | None = None
    ) -> int | None:
        """As the client's."""
        return await self._calls.write(Delete(key, if_version, request_id), timeout_ms)

    async def batch(
        self, operations: Iterable[Operation], *, timeout_ms: int | None = None
    ) -> list[Entry | int | FlottaError | None]:
        """As the client's. A get that asks for EVENTUAL sees what this session has seen, and the writes of its key that
        come before it in the batch."""
        return await self._calls.batch(operations, timeout_ms)
