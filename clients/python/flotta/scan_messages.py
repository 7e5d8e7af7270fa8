"""Between what a scan of the client takes and gives, and the gateway's messages."""

from __future__ import annotations

from flotta_proto.flotta.kv_pb2 import ScanRequest, ScanResponse
from flotta_proto.kvdb import gateway_pb2 as pb

from flotta.errors import InvalidArgumentError
from flotta.messages import GUARANTEES, key_bytes, raise_unless_ok
from flotta.models import Consistency, Entry, Guarantee, Page

PAGE_ROWS = 1_000
PAGE_ROWS_MAX = 10_000  # what a gateway takes unless it is set otherwise


def scan_request(
    prefix: str | bytes,
    start: str | bytes,
    end: str | bytes,
    *,
    reverse: bool = False,
    consistency: Consistency = Consistency.STRONG,
    max_staleness_ms: int = 0,
) -> ScanRequest:
    """InvalidArgumentError for a range that is upside down."""
    request = ScanRequest(prefix=key_bytes(prefix), start=key_bytes(start), end=key_bytes(end), reverse=reverse)
    if request.end and request.start > request.end:
        raise InvalidArgumentError("start comes after end; a range has its smaller key first, in reverse too")
    weak = consistency is Consistency.EVENTUAL
    request.options.consistency = pb.EVENTUAL if weak else pb.STRONG
    request.options.max_staleness_ms = max_staleness_ms
    return request


def check_sizes(limit: int, page_size: int) -> None:
    """InvalidArgumentError for numbers of rows that there cannot be."""
    if limit < 0:
        raise InvalidArgumentError(f"limit is {limit}; it must be 1 or more, or 0 for all rows")
    if not 0 <= page_size <= PAGE_ROWS_MAX:
        text = f"page_size is {page_size}; it must be 1 to {PAGE_ROWS_MAX}, or 0 to leave it to the gateway"
        raise InvalidArgumentError(text)


def page_of(response: ScanResponse) -> Page:
    """Raises what the response's status says. Its guarantee is the weakest of all shards that were read."""
    raise_unless_ok(response.status)
    weakest = max((shard.guarantee for shard in response.shards), default=0)
    guarantee = GUARANTEES.get(weakest, Guarantee.UNKNOWN)
    entries = tuple(
        Entry(kv.key, kv.value, kv.version, kv.create_time_ms, kv.update_time_ms, kv.expire_time_ms, guarantee)
        for kv in response.entries
    )
    revisions = {shard.shard_id: shard.revision for shard in response.shards}
    return Page(entries, response.next_page_token, revisions)
