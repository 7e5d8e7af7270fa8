"""The client: typed get, put, delete, batches of them, and scans.

Writes are exactly-once by default: each carries a request id, under which the shard remembers its outcome for ten
minutes, so that a write without an answer can be sent again. The id holds the time of the first attempt; the shard
refuses one that is older than its memory, so a late repeat is an error and never a second execution. It therefore
needs a clock that is right within a minute. With `idempotent_writes=False` a write is sent once.

Invariants:
- A write without a request id is never sent again once it may have reached the cluster.
- No call lasts longer than its timeout.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from flotta_runtime.tls import Tls, TlsError, TlsFiles, client_tls

from flotta._async.calls import AsyncCalls
from flotta._async.gateways import AsyncGateways
from flotta._async.leaders import AsyncLeaders
from flotta._async.scans import AsyncPager, AsyncScan
from flotta._async.sessions import AsyncSession
from flotta.errors import FlottaError, InvalidArgumentError
from flotta.messages import raise_unless_ok
from flotta.models import Consistency, Delete, Entry, Get, Operation, Put
from flotta.scan_messages import check_sizes, scan_request


class AsyncClient:
    """A connection to a cluster through its gateways, or to its nodes: see `smart`.

    Use it as `async with AsyncClient("host:7000") as client`.

    Given several gateways it talks to one, and turns to the next when that one cannot be reached. With `tls` it speaks
    TLS: `TlsFiles(ca_file=…)`, and `cert_file` and `key_file` where the gateways ask for a certificate. Files that are
    replaced are used for new connections; InvalidArgumentError if they cannot be used at first.
    """

    def __init__(
        self,
        address: str = "localhost:7000",
        *more: str,
        timeout_ms: int = 5_000,
        idempotent_writes: bool = True,
        tls: TlsFiles | None = None,
    ) -> None:
        self._calls = AsyncCalls(AsyncGateways((address, *more), _tls(tls)), timeout_ms, idempotent_writes)

    @classmethod
    def smart(
        cls,
        coordinator: str = "localhost:9001",
        *more: str,
        internal_token: str,
        timeout_ms: int = 5_000,
        idempotent_writes: bool = True,
        tls: TlsFiles | None = None,
    ) -> Self:
        """A client that needs no gateway: it follows the coordinators' shard map, goes to the leader of each shard by
        itself, and where the map is behind, to whom the nodes name. It is a part of the cluster: it must reach every
        node, and know the internal token. Make it where its event loop runs.
        """
        made = cls()
        leaders = AsyncLeaders((coordinator, *more), internal_token, _tls(tls))
        made._calls = AsyncCalls(leaders, timeout_ms, idempotent_writes)
        return made

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls that are waiting are cancelled."""
        await self._calls.cluster.close()

    async def get(
        self,
        key: str | bytes,
        *,
        consistency: Consistency = Consistency.STRONG,
        max_staleness_ms: int = 0,
        head_only: bool = False,
        timeout_ms: int | None = None,
    ) -> Entry | None:
        """The entry under `key`, or None. `max_staleness_ms` bounds how far an EVENTUAL read may lag; 0: any lag."""
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
        """Store `value` under `key`; returns the new version.

        `if_version`: only if that is the key's version (VersionMismatchError). `if_absent`: only if there is no such
        key (AlreadyExistsError). `ttl_ms`: expires after so long; 0: never. `request_id`: an id of the caller's own,
        to make this write exactly-once across processes.
        """
        operation = Put(key, value, ttl_ms, if_version, if_absent, request_id)
        return await self._calls.write(operation, timeout_ms) or 0

    async def delete(
        self, key: str | bytes, *, if_version: int = 0, request_id: str = "", timeout_ms: int | None = None
    ) -> int | None:
        """Delete `key`; returns the version of the deletion, or None if there was no such key."""
        return await self._calls.write(Delete(key, if_version, request_id), timeout_ms)

    async def batch(
        self, operations: Iterable[Operation], *, timeout_ms: int | None = None
    ) -> list[Entry | int | FlottaError | None]:
        """Carry out many operations in one request; returns a result for each, in their order.

        A result is what `get`, `put` or `delete` would return, or the error it would raise: each operation succeeds or
        fails alone. Those of one key are done in their order, and after one that was not done, or not certainly, none
        that comes later; of different keys nothing is promised. Others may see some of them done and others not yet.
        A gateway takes 1000 of them and 16.5 MiB, unless it is set otherwise; more is an InvalidArgumentError or a
        PayloadTooLargeError, and nothing is done. What fails as a whole is raised.
        """
        return await self._calls.batch(operations, timeout_ms)

    def session(self) -> AsyncSession:
        """Reads that any replica may answer, and that see all the same what was written and read in this session."""
        return AsyncSession(self._calls.in_session())

    def scan(
        self,
        prefix: str | bytes = b"",
        *,
        start: str | bytes = b"",
        end: str | bytes = b"",
        reverse: bool = False,
        limit: int = 0,
        keys_only: bool = False,
        consistency: Consistency = Consistency.STRONG,
        max_staleness_ms: int = 0,
        page_size: int = 0,
        token: bytes = b"",
        timeout_ms: int | None = None,
    ) -> AsyncScan:
        """The entries whose keys begin with `prefix` and lie in [start, end), in the order of their keys. `reverse`:
        the greatest first. `limit`: so many at most; 0: all. `keys_only`: with empty values.

        Rows are got a page at a time, of `page_size` entries at most (0: as many as the gateway likes), while you
        iterate. Within a page each shard is seen in one state; different shards, and different pages, at different
        times. `token`: of a page, to go on behind it. `timeout_ms` is for each page.
        """
        check_sizes(limit, page_size)
        request = scan_request(
            prefix, start, end, reverse=reverse, consistency=consistency, max_staleness_ms=max_staleness_ms
        )
        request.keys_only, request.page_token = keys_only, token
        return AsyncScan(self._pager(timeout_ms), request, limit, page_size)

    async def count(
        self,
        prefix: str | bytes = b"",
        *,
        start: str | bytes = b"",
        end: str | bytes = b"",
        consistency: Consistency = Consistency.STRONG,
        max_staleness_ms: int = 0,
        timeout_ms: int | None = None,
    ) -> int:
        """How many keys a scan of that range would show; the nodes count them. `timeout_ms` is for each page."""
        request = scan_request(prefix, start, end, consistency=consistency, max_staleness_ms=max_staleness_ms)
        request.count_only = True
        pager = self._pager(timeout_ms)
        total = 0
        while True:
            response = await pager.ask(request)
            raise_unless_ok(response.status)
            total += response.count
            if not response.next_page_token:
                return total
            request.page_token = response.next_page_token

    def _pager(self, timeout_ms: int | None) -> AsyncPager:
        return AsyncPager(self._calls.cluster, self._calls.timeout_ms if timeout_ms is None else timeout_ms)


def _tls(files: TlsFiles | None) -> Tls | None:
    try:
        return client_tls(files)
    except TlsError as error:
        raise InvalidArgumentError(str(error)) from error
