"""The Python client of Flotta, and its command line.

async with AsyncClient("localhost:7000") as client:
    version = await client.put("greeting", b"hello", ttl_ms=60_000)
    entry = await client.get("greeting")
"""

from flotta_runtime.tls import TlsFiles

from flotta.client import AsyncClient
from flotta.errors import (
    AlreadyExistsError,
    FlottaError,
    InternalError,
    InvalidArgumentError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    PreconditionFailedError,
    RateLimitedError,
    UnavailableError,
    VersionMismatchError,
)
from flotta.models import Consistency, Delete, Entry, Get, Put

__all__ = [
    "AlreadyExistsError",
    "AsyncClient",
    "Consistency",
    "Delete",
    "Entry",
    "FlottaError",
    "Get",
    "InternalError",
    "InvalidArgumentError",
    "OutcomeUnknownError",
    "PayloadTooLargeError",
    "PreconditionFailedError",
    "Put",
    "RateLimitedError",
    "TlsFiles",
    "UnavailableError",
    "VersionMismatchError",
]
