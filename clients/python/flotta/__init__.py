"""The Python client of Flotta, and its command line.

>>> from flotta import Client
>>> with Client("localhost:7000") as client:
...     version = client.put("greeting", "hello", ttl_ms=60_000)
...     client.get("greeting").value
b'hello'

`AsyncClient` is the same for asyncio.
"""

from flotta_runtime.tls import TlsFiles

from flotta._async.client import AsyncClient
from flotta._sync.client import Client
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
from flotta.models import Consistency, Delete, Entry, Get, Guarantee, Put

__all__ = [
    "AlreadyExistsError",
    "AsyncClient",
    "Client",
    "Consistency",
    "Delete",
    "Entry",
    "FlottaError",
    "Get",
    "Guarantee",
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
