"""Rows of a range, in the order of their keys, a page at a time.

Invariants: a page is asked for when it is wanted, and not before; what is shown comes once and in order, however often
a page has to be asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from flotta_proto.flotta.kv_pb2 import ScanRequest, ScanResponse
from flotta_proto.kvdb.gateway_pb2 import Status

from flotta._async.gateways import AsyncGateways
from flotta._async.leaders import AsyncLeaders
from flotta._async.primitives import sleep
from flotta.models import Entry, Page
from flotta.patience import Patience
from flotta.scan_messages import PAGE_ROWS, page_of


class AsyncPager:
    """Gets single pages."""

    def __init__(self, cluster: AsyncGateways | AsyncLeaders, timeout_ms: int) -> None:
        self._cluster = cluster
        self._timeout_ms = timeout_ms

    async def ask(self, request: ScanRequest) -> ScanResponse:
        """One page within the timeout, overload waited out."""
        patience = Patience(self._timeout_ms)
        while True:
            response = await self._cluster.scan(request, patience)
            if response.status.code != Status.RATE_LIMITED:
                return response
            patience.longer(response.status.retry_after_ms)
            if not patience.lasts():
                return response
            await sleep(patience.next_pause_s())
            if not patience.allows_an_attempt():
                return response


class AsyncScan:
    """What `AsyncClient.scan` returns: iterate over it for entries, over its `pages()` for pages. Each iteration begins
    anew."""

    def __init__(self, pager: AsyncPager, request: ScanRequest, rows_max: int, page_rows: int) -> None:
        self._pager = pager
        self._request = request
        self._rows_max = rows_max  # 0: all
        self._page_rows = page_rows  # 0: as many as the gateway likes

    async def __aiter__(self) -> AsyncIterator[Entry]:
        async for page in self.pages():
            for entry in page.entries:
                yield entry

    async def pages(self) -> AsyncIterator[Page]:
        """Pages with entries, and at last perhaps one without. The `token` of a page is where the next one begins: give
        it to another `scan` of the same range to go on there."""
        request = ScanRequest()
        request.CopyFrom(self._request)
        left = self._rows_max
        while True:
            request.limit = self._page_rows
            if self._rows_max:
                request.limit = min(left, self._page_rows or PAGE_ROWS)
            page = page_of(await self._pager.ask(request))
            if page.entries or not page.token:
                yield page
            left -= len(page.entries)
            if not page.token or (self._rows_max and left <= 0):
                return
            request.page_token = page.token
