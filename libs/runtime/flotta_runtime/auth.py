"""The internal token: which methods need it, and how it is compared.

Invariant: every method of our own internal services (`flotta.*` but `flotta.kv.*`) and every method that changes
KvDB's cluster or data behind the gateway is protected; reads, watches, pings, health, reflection and the gateway's API
(`flotta.kv.*` is part of it) are open.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

TOKEN_HEADER = "x-kvdb-internal-token"
REFUSAL = "Missing or invalid internal gRPC token"

PROTECTED_METHODS = frozenset(
    {
        *(
            f"/kvdb.coordinator.Coordinator/{name}"
            for name in (
                "RegisterNode",
                "InitShards",
                "SetNodeStatus",
                "SetShardReplicas",
                "SetShardLeader",
                "ReportShardLeader",
            )
        ),
        *(
            f"/kvdb.kvstore.KVService/{name}"
            for name in ("Set", "Delete", "ReplicateSet", "ReplicateDelete", "Shutdown")
        ),
    }
)
PROTECTED_PREFIXES = ("/kvdb.raft.", "/kvdb.replication.", "/flotta.")
OPEN_PREFIXES = ("/flotta.kv.",)


def is_protected(method: str) -> bool:
    """Whether `method` ("/package.Service/Method") needs the internal token."""
    if method.startswith(OPEN_PREFIXES):
        return False
    return method in PROTECTED_METHODS or method.startswith(PROTECTED_PREFIXES)


class TokenCheck:
    """Compares tokens in constant time. An empty expected token is refused here, so no server can run open."""

    __slots__ = ("_expected",)

    def __init__(self, token: str) -> None:
        if not token.strip():
            raise ValueError("the internal token must not be empty")
        self._expected = token.encode("utf-8")

    def matches(self, presented: str | bytes | None) -> bool:
        """Whether `presented` is the token; the time taken does not depend on how much of it is right."""
        given = presented.encode("utf-8") if isinstance(presented, str) else (presented or b"")
        return hmac.compare_digest(given, self._expected)

    def accepts(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> bool:
        """Whether call metadata carries the token."""
        for name, value in metadata or ():
            if name == TOKEN_HEADER:
                return self.matches(value)
        return False


def token_metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata a caller sends; empty without a token."""
    return ((TOKEN_HEADER, token),) if token else ()
