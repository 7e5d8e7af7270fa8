"""What a page of a scan is made of: which keys it is about, what each shard is asked for, and what of it is shown.

Keys lie hashed over the shards, so every shard is asked for its next rows, and a page shows those before the point from
which on some shard has more: up to there nothing can be missing. A token says that point and nothing of shards, so it
is as good after a move, a change of leader, and another number of shards.

Invariants: pages shown one after the other have every key of the range once, in order; a page shows rows, or gets on,
or is the last; classes of keys that overlap, or leave a gap, are never put together into a page.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from flotta_proto.flotta.kv_pb2 import ScanRequest
from flotta_proto.flotta.storage_pb2 import ScanPart, ScanRange
from flotta_runtime.errors import InvalidArgument

from .validation import KEY_BYTES_MAX, check_scan_options

ROWS_DEFAULT: Final = 1_000
PAGE_BYTES_DEFAULT: Final = 1 << 20
COUNT_ROWS: Final = 1 << 16  # of each shard, for a page of a count
SHARE_BYTES_MIN: Final = 64 << 10
_TOKEN_VERSION: Final = b"\x01"
_CHECKSUM_BYTES: Final = 4

Residue = tuple[int, int]
"""(index, count): the keys whose hash is `index` modulo `count`."""
Row = tuple[bytes, bytes]
"""A key, and its serialised `KeyValue`."""


@dataclass(frozen=True, slots=True)
class ScanLimits:
    rows_max: int = 10_000
    page_bytes_max: int = 4 << 20
    memory_bytes_max: int = 256 << 20  # of all pages that are being made


@dataclass(frozen=True, slots=True)
class Plan:
    """One page: the keys in [start, end), `end` empty for all from `start` on."""

    start: bytes
    end: bytes
    reverse: bool
    keys_only: bool
    count_only: bool
    rows: int
    page_bytes: int
    identity: bytes  # of the scan: what its tokens are good for

    @property
    def empty(self) -> bool:
        return bool(self.end) and self.start >= self.end

    def rest(self, bound: bytes) -> Plan:
        """What is left from `bound` on, as the pieces of shards say it."""
        return replace(self, end=bound) if self.reverse else replace(self, start=bound)

    def upto(self, bound: bytes) -> Plan:
        """What is before that."""
        return replace(self, start=bound) if self.reverse else replace(self, end=bound)

    def piece(self, shards: int) -> ScanRange:
        """What to ask of each of so many shards, so that together they most likely fill the page."""
        asked = ScanRange(start=self.start, end=self.end, reverse=self.reverse, keys_only=self.keys_only)
        if self.count_only:
            asked.count_only, asked.rows_max, asked.bytes_max = True, COUNT_ROWS, 1
            return asked
        share = self.rows / shards
        # Of hashed keys a shard has about its share; three deviations more than that are hardly ever needed.
        asked.rows_max = min(self.rows, math.ceil(share + 3 * math.sqrt(share) + 3))
        asked.bytes_max = min(self.page_bytes, max(4 * self.page_bytes // shards, SHARE_BYTES_MIN))
        return asked

    def one(self) -> ScanRange:
        """The next row of one shard, however large it is."""
        return ScanRange(
            start=self.start, end=self.end, reverse=self.reverse, keys_only=self.keys_only, rows_max=1, bytes_max=0
        )


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in order, and where the rest begins; empty: nothing is left."""

    rows: list[Row]
    rest: bytes


def plan_of(request: ScanRequest, limits: ScanLimits) -> Plan:
    """InvalidArgument for what can never be served."""
    check_scan_options(request)
    for name in ("prefix", "start", "end"):
        size = len(getattr(request, name))
        if size > KEY_BYTES_MAX:
            text = f"{name} is {size} bytes long; the limit is {KEY_BYTES_MAX}"
            raise InvalidArgument(text, field=name, limit=KEY_BYTES_MAX)
    if request.end and request.start > request.end:
        raise InvalidArgument("start comes after end; a range has its smaller key first, in reverse too", field="start")
    if request.keys_only and request.count_only:
        text = "keys_only and count_only contradict each other; set one of them"
        raise InvalidArgument(text, field="count_only")
    for name, value, most in (
        ("limit", request.limit, limits.rows_max),
        ("limit_bytes", request.limit_bytes, limits.page_bytes_max),
    ):
        if value > most:
            raise InvalidArgument(
                f"{name} is {value}; the limit is {most}, and more pages follow", field=name, limit=most
            )
    start, end = request.start, request.end
    if request.prefix:
        start = max(start, request.prefix)
        after = _after_prefix(request.prefix)
        end = min(end, after) if end and after else end or after
    plan = Plan(
        start=start,
        end=end,
        reverse=request.reverse,
        keys_only=request.keys_only,
        count_only=request.count_only,
        rows=request.limit or min(ROWS_DEFAULT, limits.rows_max),
        page_bytes=request.limit_bytes or min(PAGE_BYTES_DEFAULT, limits.page_bytes_max),
        identity=_identity(request),
    )
    return plan.rest(_bound_in(request.page_token, plan.identity)) if request.page_token else plan


def token_of(plan: Plan, rest: bytes) -> bytes:
    """What a client sends to go on at `rest`."""
    return _TOKEN_VERSION + _checksum(plan.identity, rest) + rest if rest else b""


def missing(found: Collection[Residue]) -> list[Residue] | None:
    """The classes that make `found` whole; None when two of them overlap, so that they are of different times."""
    finest = max(count for _, count in found)
    covered = bytearray(finest)
    for index, count in found:
        if finest % count:
            return None
        for residue in range(index, finest, count):
            if covered[residue]:
                return None
            covered[residue] = 1
    return [(residue, finest) for residue in range(finest) if not covered[residue]]


def frontier(plan: Plan, parts: Mapping[Residue, ScanPart]) -> tuple[bytes, Residue] | None:
    """Up to where all parts have been looked at, and the one that has been looked at the least."""
    rests = [(part.rest, residue) for residue, part in parts.items() if part.rest]
    if not rests:
        return None
    return max(rests) if plan.reverse else min(rests)


def page_of(plan: Plan, parts: Mapping[Residue, ScanPart]) -> Page:
    """As much of the parts as can be shown: nothing at or beyond the frontier, and no more than was asked for."""
    least = frontier(plan, parts)
    bound = least[0] if least is not None else b""
    rows = [row for part in parts.values() for row in zip(part.keys, part.entries, strict=True)]
    if bound:
        rows = [row for row in rows if (row[0] >= bound if plan.reverse else row[0] < bound)]
    rows.sort(reverse=plan.reverse)
    size = 0
    for position, (key, entry) in enumerate(rows):
        size += len(entry)
        if position and (position >= plan.rows or size > plan.page_bytes):
            return Page(rows[:position], key + b"\x00" if plan.reverse else key)
    return Page(rows, bound)


def _after_prefix(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix`; empty if there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,)) if stripped else b""


def _identity(request: ScanRequest) -> bytes:
    parts = (request.prefix, request.start, request.end, b"r" if request.reverse else b"")
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def _checksum(identity: bytes, rest: bytes) -> bytes:
    return zlib.crc32(rest, zlib.crc32(identity)).to_bytes(_CHECKSUM_BYTES, "big")


def _bound_in(token: bytes, identity: bytes) -> bytes:
    head = len(_TOKEN_VERSION) + _CHECKSUM_BYTES
    rest = token[head:]
    if token[: len(_TOKEN_VERSION)] != _TOKEN_VERSION or token[1:head] != _checksum(identity, rest) or not rest:
        raise InvalidArgument(
            "page_token is damaged, or of another scan: send it with the prefix, start, end and reverse of the request "
            "that it came from, or begin anew without it",
            field="page_token",
        )
    return rest
