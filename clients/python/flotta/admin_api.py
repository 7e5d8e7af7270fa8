"""The admin service over HTTP, for the command line: one request, and what its answer means.

Invariants:
- Nothing is sent twice.
- Every answer that is not a success becomes an error of this package with the service's own sentence.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import quote, urlencode, urlsplit

from flotta_runtime.tls import TlsContent, TlsError, TlsFiles, client_tls

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
)

ANSWER_BYTES_MAX = 64 << 20


class NotFoundError(FlottaError):
    """There is no such node, shard or operation."""


class NotAllowedError(InvalidArgumentError):
    """The service does not let this caller in."""


_ERRORS: dict[int, type[FlottaError]] = {
    404: NotFoundError,
    409: AlreadyExistsError,
    412: PreconditionFailedError,
    413: PayloadTooLargeError,
    429: RateLimitedError,
    503: UnavailableError,
    504: OutcomeUnknownError,
}


class AdminApi:
    """See the module."""

    def __init__(self, url: str, key: str, timeout_ms: int, tls: TlsFiles) -> None:
        self._url = urlsplit(url)
        self._key = key
        self._timeout_s = timeout_ms / 1000
        self._context = _context(tls) if self._url.scheme == "https" else None
        self._server_name = tls.server_name

    def get(self, *path: str, **query: str | int) -> Any:
        """What is at a path, given in parts."""
        return self._call("GET", path, query, None)

    def post(self, *path: str, body: object = None, text: str | None = None) -> Any:
        """The answer to an order: with a JSON body, a bare word, or nothing."""
        sent = text.encode() if text is not None else json.dumps(body).encode() if body is not None else b""
        return self._call("POST", path, {}, sent, "text/plain" if text is not None else "application/json")

    def delete(self, *path: str) -> Any:
        """The answer to an order that ends or removes something."""
        return self._call("DELETE", path, {}, None)

    def _call(
        self, method: str, path: tuple[str, ...], query: Mapping[str, str | int], body: bytes | None, kind: str = ""
    ) -> Any:
        target = "/" + "/".join(quote(part, safe="") for part in path) + (f"?{urlencode(query)}" if query else "")
        headers = {"X-Admin-Api-Key": self._key} if self._key else {}
        if body:
            headers["Content-Type"] = kind
        connection = self._connection()
        where = self._url.geturl()
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(f"the admin service cannot be reached at {where}: {_reason(error)}") from error
        try:
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            status, content = answer.status, answer.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            error_type = UnavailableError if method == "GET" else OutcomeUnknownError
            raise error_type(f"no answer from the admin service at {where}: {_reason(error)}") from error
        finally:
            connection.close()
        try:
            found = json.loads(content)
        except ValueError as error:
            raise InternalError(f"what listens at {where} is not the admin service: no JSON (HTTP {status})") from error
        if status != 200:
            _raise(status, found, self._key)
        return found

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._context is not None:
            return _Https(host, port, self._timeout_s, self._context, self._server_name or host)
        return http.client.HTTPConnection(host, port, timeout=self._timeout_s)


class _Https(http.client.HTTPConnection):
    """Over TLS, with a certificate of a name that need not be the host's."""

    def __init__(self, host: str, port: int | None, timeout_s: float, context: ssl.SSLContext, name: str) -> None:
        super().__init__(host, port or http.client.HTTPS_PORT, timeout=timeout_s)
        self._context = context
        self._name = name

    def connect(self) -> None:
        super().connect()
        self.sock = self._context.wrap_socket(self.sock, server_hostname=self._name)


def _raise(status: int, found: Any, key: str) -> NoReturn:
    body = found if isinstance(found, dict) else {}
    if status == 401:
        said = "the admin service does not take this key" if key else "the admin service wants a key"
        raise NotAllowedError(said)
    if status == 403:
        raise NotAllowedError("the admin service does not let this host's address in (its setting allowed_ips)")
    message = str(body.get("message") or f"the admin service answered HTTP {status}")
    kind = _ERRORS.get(status, InvalidArgumentError if 400 <= status < 500 else InternalError)
    raise kind(message, shard_id=str(body.get("shard_id") or ""))


def _context(files: TlsFiles) -> ssl.SSLContext:
    """Trusts `files.ca_file`, or what the system trusts where there is none."""
    context = ssl.create_default_context()
    try:
        loaded = client_tls(files)
    except TlsError as error:
        raise InvalidArgumentError(str(error)) from error
    if loaded is not None:
        content: TlsContent = loaded.content
        context = ssl.create_default_context(cadata=content.ca.decode("ascii", "replace"))
        if files.cert_file is not None:
            context.load_cert_chain(files.cert_file, files.key_file)
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
