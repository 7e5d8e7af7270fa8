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
from flotta._async.scans import AsyncScan
from flotta._async.sessions import AsyncSession
from flotta._sync.client import Client
from flotta._sync.scans import Scan
from flotta._sync.sessions import Session
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
from flotta.models import Consistency, Delete, Entry, Get, Guarantee, Page, Put

__all__ = [
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncScan",
    "AsyncSession",
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
    "Page",
    "PayloadTooLargeError",
    "PreconditionFailedError",
    "Put",
    "RateLimitedError",
    "Scan",
    "Session",
    "TlsFiles",
    "UnavailableError",
    "VersionMismatchError",
]
