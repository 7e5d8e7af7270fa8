"""flotta.kv.v1.Kv/Scan: a page of rows in key order, put together from what each shard has next.

Every shard is asked at once, by operations that the dispatcher sends, repeats and redirects as it does all others. What
a shard says it owned decides whether the answers make a whole; while the number of shards changes they may not, and the
page is asked for anew.

Invariants: memory is taken before anything is asked, and given back with the page; no page takes longer than its
deadline; nothing of a page that failed is shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, cast

from flotta_proto.flotta.kv_pb2 import ScanRequest, ScanResponse, ShardRead
from flotta_proto.flotta.storage_pb2 import SCAN, Operation, ScanPart, ScanRange
from flotta_proto.kvdb.gateway_pb2 import READ_YOUR_WRITES, ServedGuarantee, Status
from flotta_runtime.clock import Clock
from flotta_runtime.errors import FlottaError, RateLimited, Unavailable

from flotta_gateway.call import Admission, Call, Maps
from flotta_gateway.core.operations import traceparent_of
from flotta_gateway.core.replies import failure_status, refusal
from flotta_gateway.core.retry import pause_ms
from flotta_gateway.core.routing import make_strong
from flotta_gateway.core.scans import (
    Page,
    Plan,
    Residue,
    ScanLimits,
    frontier,
    missing,
    page_of,
    plan_of,
    token_of,
)
from flotta_gateway.core.shard_map import Route, ShardMap
from flotta_gateway.core.validation import VALUE_BYTES_MAX
from flotta_gateway.dispatcher import NO_SHARDS, OVERLOAD_RETRY_AFTER_MS, Dispatcher

_JITTER: Final = 0.5
SLICE_ROWS: Final = 500
_NO_MAP: Final = "no coordinator has given this gateway a shard map in time"
_NO_WHOLE: Final = "the shards did not make a whole in time: their number is being changed"

Parts = Mapping[Residue, ScanPart]


class Piece(Call):
    """What is asked of one shard. It is routed by the shard's place among all, for it has no key."""

    def __init__(self, index: int, operation: Operation, deadline_ms: float, done: Callable[[bytes], None]) -> None:
        self.kind = SCAN
        self.key = b""
        self.deadline_ms = deadline_ms
        self.done = done
        self.operation = operation
        self.index = index

    def route_in(self, current: ShardMap) -> Route | None:
        return current.route_at(self.index)


class _Failed(Exception):
    """A shard gave no part of the page."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


class _Divided(Exception):
    """The shards' answers are of different times: before some of them were divided, and after."""


class Scanner:
    """Makes pages. Event loop only."""

    def __init__(
        self, dispatcher: Dispatcher, maps: Maps, clock: Clock, limits: ScanLimits, admission: Admission | None = None
    ) -> None:
        self._dispatcher = dispatcher
        self._maps = maps
        self._clock = clock
        self._limits = limits
        self._admission = admission
        self._bytes = 0

    @property
    def bytes_open(self) -> int:
        """What the pages that are being made may take."""
        return self._bytes

    async def page(self, request: ScanRequest, deadline_ms: float) -> ScanResponse:
        """Never raises: what went wrong is in the response's status."""
        try:
            plan = plan_of(request, self._limits)
            if self._admission is not None:
                self._admission.admit(request, self._clock.monotonic_ms())
            if plan.empty:
                return ScanResponse(status=Status(code=Status.OK))
            return await self._made(plan, _Work(self, request, deadline_ms), deadline_ms)
        except FlottaError as error:
            return ScanResponse(status=failure_status(refusal(error)))
        except _Failed as failed:
            return ScanResponse(status=failed.status)

    async def _made(self, plan: Plan, work: _Work, deadline_ms: float) -> ScanResponse:
        pauses = 0
        while True:
            try:
                return await (work.count(plan) if plan.count_only else work.rows(plan))
            except _Divided:
                await self.pause(pauses, deadline_ms, _NO_WHOLE)
                pauses += 1

    def take(self, size: int) -> None:
        """RateLimited while other pages leave no room for this one."""
        if self._bytes and self._bytes + size > self._limits.memory_bytes_max:
            raise RateLimited("too many scans are open on this gateway", retry_after_ms=OVERLOAD_RETRY_AFTER_MS)
        self._bytes += size

    def give_back(self, size: int) -> None:
        self._bytes -= size

    async def shards(self, deadline_ms: float) -> int:
        """How many there are, once that is known."""
        pauses = 0
        while True:
            current = self._maps.current
            if current.initialised:
                return current.num_shards
            if self._maps.answered:
                raise Unavailable(NO_SHARDS)
            await self.pause(pauses, deadline_ms, _NO_MAP)
            pauses += 1

    async def pause(self, pauses: int, deadline_ms: float, what: str) -> None:
        """Before another look at the map; Unavailable, saying `what`, if there is no time for it."""
        wait_ms = pause_ms(pauses, _JITTER)
        if self._clock.monotonic_ms() + wait_ms >= deadline_ms:
            raise Unavailable(what)
        self._maps.refresh_soon()
        await asyncio.sleep(wait_ms / 1000)

    async def ask(
        self, residues: Sequence[Residue], asked: Sequence[ScanRange], request: ScanRequest, deadline_ms: float
    ) -> list[ScanPart]:
        """What each shard says, all of them or `_Failed`."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        found: dict[int, ScanPart] = {}

        def done(position: int, response: bytes) -> None:
            part = ScanPart.FromString(response)
            if answer.done():
                return
            if part.status.code != Status.OK:
                answer.set_exception(_Failed(part.status))
                return
            found[position] = part
            if len(found) == len(residues):
                answer.set_result(None)

        pieces = [
            Piece(index, _operation(request, scan), deadline_ms, partial(done, position))
            for position, ((index, _), scan) in enumerate(zip(residues, asked, strict=True))
        ]
        self._dispatcher.submit_pieces(pieces)
        try:
            await answer
        finally:
            for piece in pieces:
                self._dispatcher.abandon(piece)
        return [found[position] for position in range(len(residues))]


class _Work:
    """One request on its way."""

    def __init__(self, scanner: Scanner, request: ScanRequest, deadline_ms: float) -> None:
        self._scanner = scanner
        self._request = request
        self._deadline_ms = deadline_ms

    async def rows(self, plan: Plan) -> ScanResponse:
        count = await self._scanner.shards(self._deadline_ms)
        size = count * plan.piece(count).bytes_max
        self._scanner.take(size)
        try:
            parts = await self._whole(plan)
            page = page_of(plan, parts)
            if not page.rows and page.rest:
                parts, page = await self._one(plan, parts)
            return await _response(plan, parts, page)
        finally:
            self._scanner.give_back(size)

    async def count(self, plan: Plan) -> ScanResponse:
        """All shards counted up to the same key: those that got further count again, up to there."""
        parts = await self._whole(plan)
        while (least := frontier(plan, parts)) is not None:
            bound, _ = least
            further = [residue for residue, part in parts.items() if part.rest != bound]
            if not further:
                break
            upto = plan.upto(bound)
            asked = [upto.piece(len(parts))] * len(further)
            again = await self._scanner.ask(further, asked, self._request, self._deadline_ms)
            for residue, part in zip(further, again, strict=True):
                _check_same(residue, part)
                part.rest = part.rest or bound
                parts[residue] = part
        rest = least[0] if least is not None else b""
        response = await _response(plan, parts, Page([], rest))
        response.count = sum(part.count for part in parts.values())
        return response

    async def _one(self, plan: Plan, parts: dict[Residue, ScanPart]) -> tuple[dict[Residue, ScanPart], Page]:
        """Nothing can be shown before a row that is larger than its share, or lies behind a lot that has expired: get
        that row alone."""
        least = frontier(plan, parts)
        if least is None:
            raise ValueError("a page without rows is the last one, or a shard has more")
        bound, residue = least
        self._scanner.take(VALUE_BYTES_MAX)
        try:
            asked = [plan.rest(bound).one()]
            (part,) = await self._scanner.ask([residue], asked, self._request, self._deadline_ms)
            _check_same(residue, part)
            parts = {**parts, residue: part}
            return parts, page_of(plan, parts)
        finally:
            self._scanner.give_back(VALUE_BYTES_MAX)

    async def _whole(self, plan: Plan) -> dict[Residue, ScanPart]:
        """A part for every key there may be, and no two for any. A shard that has been divided names what it has left;
        the new ones are asked for the rest."""
        count = await self._scanner.shards(self._deadline_ms)
        parts: dict[Residue, ScanPart] = {}
        wanted: list[Residue] | None = [(index, count) for index in range(count)]
        piece = plan.piece(count)
        while wanted:
            asked = [piece] * len(wanted)
            for part in await self._scanner.ask(wanted, asked, self._request, self._deadline_ms):
                parts[part.shard_index, part.shard_count] = part
            before, wanted = wanted, missing(parts)
            if wanted is None or not set(wanted).isdisjoint(before):
                raise _Divided
        return parts


def _operation(request: ScanRequest, scan: ScanRange) -> Operation:
    options = request.options
    operation = Operation(
        kind=SCAN,
        scan=scan,
        consistency=options.consistency,
        read_mode=options.read_mode,
        max_staleness_ms=options.max_staleness_ms,
        traceparent=traceparent_of(request.ctx),
    )
    if options.read_mode == READ_YOUR_WRITES:
        make_strong(operation)
    return operation


def _check_same(residue: Residue, part: ScanPart) -> None:
    """A shard that is asked a second time must still be what it was."""
    if (part.shard_index, part.shard_count) != residue:
        raise _Divided


async def _response(plan: Plan, parts: Parts, page: Page) -> ScanResponse:
    """In slices: others have their turn meanwhile."""
    response = ScanResponse(
        status=Status(code=Status.OK), count=len(page.rows), next_page_token=token_of(plan, page.rest)
    )
    for part in parts.values():
        guarantee = cast("ServedGuarantee.ValueType", part.guarantee)
        response.shards.append(ShardRead(shard_id=part.shard_id, revision=part.revision, guarantee=guarantee))
    for position, (_, entry) in enumerate(page.rows, start=1):
        response.entries.add().MergeFromString(entry)
        if position % SLICE_ROWS == 0:
            await asyncio.sleep(0)
    return response
