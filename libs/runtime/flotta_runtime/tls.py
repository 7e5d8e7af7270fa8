"""TLS of one process: which files it uses, what they hold now, and what becomes of it when they are replaced.

Server, channels and command line take it from here. Nothing but the standard library and grpc is needed, so that the
SDK can use it on a bare install.

Invariants:
- What is in force was checked: certificates and keys can be parsed, and belong together.
- A replacement that fails the check changes nothing. It is reported once, and only when it still fails at a second
  look, because certificate and key are rarely replaced in the same instant.
- Connections that exist are left alone; new ones use what is in force when they are made.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

_READS_MAX = 5
# grpc's words where the other side does not go on after the handshake; the alert itself is only in its log.
_REFUSED_IN_HANDSHAKE = ("Socket closed", "Connection reset", "TSI_DATA_CORRUPTED")


class TlsError(ValueError):
    """The files cannot be used; the text is one sentence that names the setting."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the PEM files are. All unset: no TLS."""

    cert_file: Path | None = None
    """The certificate chain of this process, for its ports and for the connections it makes."""
    key_file: Path | None = None
    client_ca_file: Path | None = None
    """Set: who connects here must show a certificate that one of these has signed."""
    ca_file: Path | None = None
    """Set: connections to others use TLS, and one of these must have signed their certificates."""
    server_name: str | None = None
    """The name looked for in others' certificates, instead of the host that was connected to."""

    def __bool__(self) -> bool:
        return any(self._paths()) or self.server_name is not None

    def _paths(self) -> tuple[Path | None, ...]:
        return (self.cert_file, self.key_file, self.client_ca_file, self.ca_file)

    def signature(self) -> tuple[object, ...]:
        """Changes when a file does; costs a stat for each."""
        return tuple(_stamp(path) for path in self._paths())


NO_TLS = TlsFiles()


@dataclass(frozen=True, slots=True)
class TlsContent:
    """What the files hold; b"" for a file that is not set."""

    cert: bytes = b""
    key: bytes = b""
    client_ca: bytes = b""
    ca: bytes = b""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Content that passed the check, and an asyncio server's context made from the same bytes."""

    content: TlsContent
    context: ssl.SSLContext | None


def load(files: TlsFiles) -> Loaded:
    """Read and check all files. TlsError names the setting that is wrong."""
    if files.key_file is not None and files.cert_file is None:
        raise TlsError("tls_cert_file is missing: tls_key_file is of no use without it")
    if files.cert_file is not None and files.key_file is None:
        raise TlsError("tls_key_file is missing: tls_cert_file is of no use without it")
    if files.client_ca_file is not None and files.cert_file is None:
        raise TlsError("tls_cert_file is missing: tls_client_ca_file needs a port that speaks TLS")
    if files.server_name is not None and files.ca_file is None:
        raise TlsError("tls_ca_file is missing: tls_server_name is of no use without it")
    content = _read(files)
    for _ in range(_READS_MAX):
        context = _check(files, content)  # reads certificate and key by itself: what it read must be what we have
        again = _read(files)
        if again == content:
            return Loaded(content, context)
        content = again
    raise TlsError("the TLS files are being changed all the time")


class Tls:
    """The TLS of one process. Made with the files' content checked; TlsError if it cannot be used."""

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self._loaded = load(files)
        self.generation = 0
        self._seen = files.signature()
        self._doubt = ""
        self._takers: list[Callable[[TlsContent], object]] = []

    @property
    def content(self) -> TlsContent:
        """What is in force."""
        return self._loaded.content

    @property
    def serves(self) -> bool:
        """Whether ports speak TLS."""
        return bool(self.content.cert)

    @property
    def dials(self) -> bool:
        """Whether connections to others use TLS."""
        return bool(self.content.ca)

    def on_change(self, take: Callable[[TlsContent], object]) -> None:
        """Hand each new content to `take` before it is in force. A ValueError of it refuses the content."""
        self._takers.append(take)

    def refresh(self) -> bool:
        """Look whether a file was replaced; True if its content is now in force.

        TlsError, once, for a replacement that cannot be used; what was in force stays. Cheap while nothing changes.
        """
        found = self.files.signature()
        if found == self._seen:
            doubt, self._doubt = self._doubt, ""
            if doubt:
                raise TlsError(doubt)
            return False
        self._seen, self._doubt = found, ""
        try:
            loaded = load(self.files)
            if loaded.content == self.content:
                return False
            for take in self._takers:
                take(loaded.content)
        except ValueError as error:
            self._doubt = str(error)
            return False
        self._loaded = loaded
        self.generation += 1
        return True

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a grpcio port; every new connection is given what is in force."""
        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            self._server_configuration(), self._server_configuration, bool(self.content.client_ca)
        )
        return credentials

    def _server_configuration(self) -> Any:
        content = self.content
        return grpc.ssl_server_certificate_configuration([(content.key, content.cert)], content.client_ca or None)

    def server_context(self) -> ssl.SSLContext:
        """For a port of asyncio; every new connection is given what is in force."""

        def choose(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, outer: ssl.SSLContext) -> None:
            if self._loaded.context is not None:
                connection.context = self._loaded.context

        outer = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        outer.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.content.client_ca:
            outer.verify_mode = (
                ssl.CERT_REQUIRED
            )  # whether to ask is the outer context's, whom to trust the inner one's
        outer.sni_callback = choose  # also called when the client names no server
        return outer

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For connections that trust `tls_ca_file`, and show our certificate if there is one."""
        content = self.content
        return grpc.ssl_channel_credentials(content.ca, content.key or None, content.cert or None)

    def channel_options(self, options: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """`options`, and the name that is looked for."""
        name = self.files.server_name
        if not name:
            return list(options)
        return [*options, ("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]


def client_tls(files: TlsFiles | None) -> Tls | None:
    """For a process that only connects. TlsError too where the files would leave its connections in the clear."""
    if not files:
        return None
    if files.ca_file is None:
        raise TlsError("tls_ca_file is missing: connections use TLS only when they know whom to trust")
    return Tls(files)


def open_channel(tls: Tls | None, address: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    """A connection to `address`: over TLS if this process is set up for it."""
    if tls is not None and tls.dials:
        return grpc.aio.secure_channel(address, tls.channel_credentials(), options=tls.channel_options(options))
    return grpc.aio.insecure_channel(address, options=list(options))


def open_blocking_channel(tls: Tls | None, address: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
    """The same for a caller without an event loop."""
    if tls is not None and tls.dials:
        return grpc.secure_channel(address, tls.channel_credentials(), options=tls.channel_options(options))
    return grpc.insecure_channel(address, options=list(options))


def hint(tls: Tls | None, details: str) -> str:
    """What a connection that broke while it was made may mean, as an addition to grpc's own words; often nothing."""
    if not any(words in details for words in _REFUSED_IN_HANDSHAKE):
        return ""
    if tls is None or not tls.dials:
        return "; does it speak TLS only? (tls_ca_file is not set)"
    if not tls.content.cert:
        return "; does it want a client certificate? (tls_cert_file is not set)"
    return "; does it speak TLS at all, and trust the signer of our tls_cert_file?"


def _stamp(path: Path | None) -> object:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(files: TlsFiles) -> TlsContent:
    return TlsContent(
        cert=_read_one("tls_cert_file", files.cert_file, b"-----BEGIN CERTIFICATE-----", "certificate"),
        key=_read_one("tls_key_file", files.key_file, b"PRIVATE KEY-----", "private key"),
        client_ca=_read_one("tls_client_ca_file", files.client_ca_file, b"-----BEGIN CERTIFICATE-----", "certificate"),
        ca=_read_one("tls_ca_file", files.ca_file, b"-----BEGIN CERTIFICATE-----", "certificate"),
    )


def _read_one(setting: str, path: Path | None, sign: bytes, what: str) -> bytes:
    if path is None:
        return b""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TlsError(f"{setting} {path} cannot be read: {error.strerror or error}") from error
    if sign not in content:
        raise TlsError(f"{setting} {path} holds no {what} in PEM form")
    if b"ENCRYPTED" in content:
        raise TlsError(f"{setting} {path} is protected by a passphrase; give the key without one")
    return content


def _check(files: TlsFiles, content: TlsContent) -> ssl.SSLContext | None:
    """The context of a server, if this is one; TlsError unless everything can be used."""
    for setting, path, pem in (
        ("tls_client_ca_file", files.client_ca_file, content.client_ca),
        ("tls_ca_file", files.ca_file, content.ca),
    ):
        if pem:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii", "replace"))
            except ssl.SSLError as error:
                raise TlsError(f"{setting} {path} cannot be used: {_reason(error)}") from error
    if files.cert_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if content.client_ca:
        context.load_verify_locations(cadata=content.client_ca.decode("ascii", "replace"))
        context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(files.cert_file, files.key_file)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(
                f"tls_key_file {files.key_file} is not the key of tls_cert_file {files.cert_file}"
            ) from error
        raise TlsError(
            f"tls_cert_file {files.cert_file} and tls_key_file {files.key_file} cannot be used: {_reason(error)}"
        ) from error
    except OSError as error:
        raise TlsError(f"tls_cert_file {files.cert_file} cannot be read: {error.strerror or error}") from error
    return context


def _reason(error: ssl.SSLError) -> str:
    return str(error.reason or error).lower().replace("_", " ")
