"""Unary methods served in batches: what arrived in one turn of the event loop is handed over at once.

A `BatchService` takes all calls of a turn in one `take` and answers each through a `Replier`, whenever it can; there
is no coroutine, no context object and no parsing in between. The native transport feeds it; with grpcio the ordinary
servicer serves the same methods, so whoever writes a batch service writes that too.

What the server promises:
- Every call handed to `take` is either answered by the service or named in `ended`, never neither. An answer to a call
  that has ended meanwhile is dropped silently, so a race between the two needs no care.
- `take` sees only calls that may be served: the token was checked where the method needs one.
- Answers are collected and handed to the transport together at the end of the turn; `reply` costs an append.
- The message is the bytes as they came, not yet parsed. A message that cannot be parsed is the service's to refuse
  (`malformed.explain` names the field).

What the service promises:
- `take` returns soon and does not raise because of one bad call: it fails that call. Whatever it raises all the same
  answers every call of the batch INTERNAL, and an InvariantError ends the process.
- Each call is answered exactly once unless it ended. A call that is never answered holds its room under the caps until
  its deadline passes or its client goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from flotta_runtime.errors import FlottaError

Metadata = tuple[tuple[str, str | bytes], ...]
"""Pairs of metadata; a value is bytes where its key ends in "-bin"."""


class RpcPeer(Protocol):
    """Who is at the other end of a connection; one object for all calls of the connection."""

    @property
    def address(self) -> str:
        """In gRPC's own spelling: `ipv4:127.0.0.1:1234`, `ipv6:[::1]:1234` or `unix:`."""
        ...

    @property
    def tls_common_name(self) -> str | None:
        """Of a verified client certificate."""
        ...

    @property
    def tls_sans(self) -> list[str]:
        """The subject alternative names of a verified client certificate."""
        ...


class BatchCall(NamedTuple):
    """One call as it arrived."""

    call: int
    """Unique among the calls of this server; names the call in replies."""
    method: int
    """Index into the service's `paths`."""
    message: bytes
    metadata: Metadata | None
    """User metadata; None if there was none."""
    remaining_ms: float | None
    """Of the client's deadline when the call arrived; None if it set none."""
    peer: RpcPeer


class Replier(Protocol):
    """Answers calls. Used on the event loop only."""

    def reply(self, call: int, payload: bytes) -> None:
        """OK with this serialised response."""
        ...

    def fail(self, call: int, error: FlottaError) -> None:
        """The error's code, message and trailers, as `status.py` maps them."""
        ...


class BatchService(Protocol):
    """Serves unary methods in batches."""

    @property
    def paths(self) -> Sequence[str]:
        """Full method paths, as "/kvdb.gateway.KvGateway/Put"; a call names its own by index."""
        ...

    def take(self, calls: Sequence[BatchCall], replier: Replier) -> None:
        """Begin all of these."""
        ...

    def ended(self, calls: Sequence[int]) -> None:
        """Nobody waits for these any more: cancelled, over their deadline, or the client is gone. May name a call that
        was answered in this very turn."""
        ...
