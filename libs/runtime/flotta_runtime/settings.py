"""Settings of a service: one frozen class whose fields are the documentation, flags, variables and file keys.

Precedence: flags > environment > TOML file (`--config`) > defaults. A field `listen` of service `storage` is the flag
`--listen`, the variable `FLOTTA_STORAGE_LISTEN` and the key `listen`; KvDB's own variable names are accepted beside it
(`env("KVDB_…")`). Anything wrong stops the start with one sentence that names the key, where its value came from and
what is allowed, and exit code 2.

A Settings object made directly (`Settings(listen=…)`) reads nothing from outside: tests and dev mode are deterministic.
"""

from __future__ import annotations

import os
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from flotta_runtime import settings_load as load
from flotta_runtime.errors import StartupError
from flotta_runtime.logging import LogFormat, LogLevel
from flotta_runtime.tls import Tls, TlsError, TlsFiles

HTTP_PORT_OFFSET = 10_000


class SettingsError(Exception):
    """The settings are wrong; the text is one sentence for the operator."""


def split_address(address: str) -> tuple[str, int]:
    """("host", port) of a validated address; the brackets of an IPv6 host are taken off."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def shown(text: str) -> str:
    """A value for an error message: quoted, and short whatever was given."""
    return repr(text) if len(text) <= 80 else f"{text[:64]!r}… ({len(text)} characters)"


def check_address(text: str, *, port_min: int = 1) -> str:
    """`text` if it is host:port with port_min ≤ port ≤ 65535, else ValueError with a sentence saying what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        hint = "; write an IPv6 host in brackets" if text.count(":") > 1 else ""
        raise ValueError(f"{shown(text)} has no port; it must be host:port{hint}")
    if not host.strip("[]") or not host.isascii() or not host.isprintable() or any(c in " /,=@" for c in host):
        raise ValueError(f"{shown(text)} has no usable host; it must be host:port")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5) or not port_min <= int(port) <= 65535:
        raise ValueError(f"{shown(text)} has a bad port; a port is a number from {port_min} to 65535")
    return text


def _listen(text: str) -> str:
    return check_address(text, port_min=0)


def _split_list(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _blank_is_unset(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"{', '.join(values)} names one of them twice")
    return values


def _peers(value: object) -> object:
    """`id=host:port,…` (or a TOML table id → address) as pairs."""
    if isinstance(value, Mapping):
        return tuple(value.items())
    if isinstance(value, str):
        pairs = []
        for part in filter(None, (piece.strip() for piece in value.split(","))):
            name, equals, address = part.partition("=")
            if not equals:
                raise ValueError(f"{part!r} must be id=host:port")
            pairs.append((name.strip(), address.strip()))
        return tuple(pairs)
    return value


def _distinct_peers(peers: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    _distinct(tuple(name for name, _ in peers))
    _distinct(tuple(address for _, address in peers))
    return peers


def check_id(text: str) -> str:
    """`text` if it can name a node: 1–128 letters, digits, '.', '_' or '-', starting with a letter or digit."""
    plain = text.replace("-", "a").replace("_", "a").replace(".", "a")
    if not 0 < len(text) <= 128 or not text[0].isalnum() or not (plain.isascii() and plain.isalnum()):
        raise ValueError(
            f"{shown(text)} must be 1 to 128 letters, digits, '.', '_' or '-', and start with a letter or digit"
        )
    return text


Address = Annotated[str, AfterValidator(check_address)]
"""host:port of something to connect to."""
ListenAddress = Annotated[str, AfterValidator(_listen)]
"""host:port to bind; port 0 picks a free one."""
AddressList = Annotated[
    tuple[Address, ...], BeforeValidator(_split_list), AfterValidator(_distinct), Field(min_length=1)
]
"""host:port,host:port,…"""
StringList = Annotated[tuple[str, ...], BeforeValidator(_split_list)]
NodeId = Annotated[str, AfterValidator(check_id)]
PeerList = Annotated[
    tuple[tuple[NodeId, Address], ...], BeforeValidator(_peers), AfterValidator(_distinct_peers), Field(min_length=1)
]
"""id=host:port,…: who is in the cluster, in an order that never changes."""
OptionalPath = Annotated[Path | None, BeforeValidator(_blank_is_unset)]
"""A file; an empty value is none, as a variable may be set and empty."""


def _http_url(text: str) -> str:
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{shown(text)} is no URL such as http://localhost:4318/v1/traces")
    return text


OptionalUrl = Annotated[Annotated[str, AfterValidator(_http_url)] | None, BeforeValidator(_blank_is_unset)]
OptionalName = Annotated[str | None, BeforeValidator(_blank_is_unset)]
Transport = Literal["native", "grpcio"]
DurationMs = Annotated[int, Field(ge=1, le=86_400_000)]
SizeBytes = Annotated[int, Field(ge=1)]


def env(*names: str) -> dict[str, Any]:
    """For `Field(json_schema_extra=env("KVDB_…"))`: variables accepted beside FLOTTA_<SERVICE>_<FIELD>, first wins."""
    return {"env": list(names)}


_LOADING: ContextVar[load.Sources | None] = ContextVar("flotta_settings_sources", default=None)


class _OutsideSource(PydanticBaseSettingsSource):
    """Feeds the values gathered by `load_settings`; empty when a Settings object is made directly."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        sources = _LOADING.get()
        return {} if sources is None else sources.merged()


class Settings(BaseSettings):
    """Base of every service's settings. Subclasses set `service` and add fields, each with a description."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, validate_default=True)
    service: ClassVar[str]

    log_level: LogLevel = Field(default="info", description="Least severe event that is logged.")
    log_format: LogFormat = Field(
        default="auto", description="`json`, `console`, or `auto`: console on a terminal, JSON otherwise."
    )
    stop_timeout_ms: DurationMs = Field(
        default=5_000, description="How long a graceful stop may take, in ms, before what is left is cut off."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, _OutsideSource(settings_cls))


class TlsSettings(Settings):
    """Settings of a service that can use TLS: the fields of `tls.TlsFiles`, which checks them."""

    tls_cert_file: OptionalPath = Field(
        default=None,
        description="PEM file with the certificate chain of this process; set: its ports speak TLS only, and it shows "
        "the chain to those it connects to. Watched: a replacement is used for new connections.",
        json_schema_extra=env("FLOTTA_TLS_CERT_FILE"),
    )
    tls_key_file: OptionalPath = Field(
        default=None,
        description="PEM file with the private key of `tls_cert_file`, without a passphrase.",
        json_schema_extra=env("FLOTTA_TLS_KEY_FILE"),
    )
    tls_client_ca_file: OptionalPath = Field(
        default=None,
        description="PEM file; set: who connects must show a certificate that one of these authorities has signed.",
        json_schema_extra=env("FLOTTA_TLS_CLIENT_CA_FILE"),
    )
    tls_ca_file: OptionalPath = Field(
        default=None,
        description="PEM file; set: connections to other services use TLS, and one of these authorities must have "
        "signed their certificates.",
        json_schema_extra=env("FLOTTA_TLS_CA_FILE"),
    )
    tls_server_name: OptionalName = Field(
        default=None,
        description="Name to look for in the certificates of other services; unset: the host that was connected to.",
        json_schema_extra=env("FLOTTA_TLS_SERVER_NAME"),
    )

    @model_validator(mode="after")
    def _tls_is_usable(self) -> Self:
        if files := self.tls_files():
            Tls(files)
        return self

    def check_tls_both_ways(self) -> None:
        """ValueError unless TLS is used to and from others, or neither: for services that connect to their own kind."""
        if (self.tls_cert_file is None) != (self.tls_ca_file is None):
            missing = "tls_cert_file" if self.tls_cert_file is None else "tls_ca_file"
            raise ValueError(
                f"{missing} is missing: processes of this kind connect to each other, so both ways use TLS"
            )

    def tls_files(self) -> TlsFiles:
        """Which files; false if TLS is not used at all."""
        return TlsFiles(
            self.tls_cert_file, self.tls_key_file, self.tls_client_ca_file, self.tls_ca_file, self.tls_server_name
        )

    def tls(self) -> Tls | None:
        """The TLS of this service, read anew. The service keeps it for its life, and follows its files."""
        try:
            return Tls(files) if (files := self.tls_files()) else None
        except TlsError as error:
            raise StartupError(str(error)) from error


class TokenSettings(TlsSettings):
    """Settings of a service that takes part in internal calls."""

    internal_token: SecretStr | None = Field(
        default=None,
        description="The token that internal calls carry; the same for all services of a cluster.",
        json_schema_extra=env("KVDB_INTERNAL_GRPC_TOKEN", "FLOTTA_INTERNAL_TOKEN"),
    )
    internal_token_file: Path | None = Field(
        default=None,
        description="A file holding the internal token; read when the token itself is unset or blank.",
        json_schema_extra=env("FLOTTA_INTERNAL_TOKEN_FILE"),
    )

    @model_validator(mode="after")
    def _token_is_there(self) -> Self:
        self.token()
        return self

    def token(self) -> str:
        """The internal token, never empty."""
        token = read_secret(
            self.internal_token, "internal_token", "KVDB_INTERNAL_GRPC_TOKEN",
            self.internal_token_file, "internal_token_file", "FLOTTA_INTERNAL_TOKEN_FILE",
        )  # fmt: skip
        if not token.isascii() or not token.isprintable():
            raise ValueError("internal_token must be printable ASCII, because it travels in request metadata")
        return token


def read_secret(
    given: SecretStr | None, name: str, variable: str, file: Path | None, file_name: str, file_variable: str
) -> str:
    """A secret from its setting or, when that is unset or blank, from its file; ValueError rather than an empty one."""
    secret = given.get_secret_value().strip() if given is not None else ""
    if secret:
        return secret
    if file is None:
        state = "missing" if given is None else "empty"
        raise ValueError(f"{name} is {state}; set {variable} to a secret, or {file_variable} to a file that holds it")
    try:
        secret = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file_name} cannot be read: {error}") from error
    if not secret:
        raise ValueError(f"{file_name} {file} is empty")
    return secret


class GrpcSettings(TokenSettings):
    """Settings of a service with a gRPC port and a small HTTP port. A subclass gives `listen` its default."""

    listen: ListenAddress = Field(default="0.0.0.0:0", description="host:port the gRPC server binds; port 0 picks one.")
    transport: Transport = Field(
        default="native",
        description="What serves the gRPC port: `native`, or `grpcio`, the reference that is slower.",
        json_schema_extra=env("FLOTTA_TRANSPORT"),
    )
    http_listen: ListenAddress | None = Field(
        default=None,
        description="host:port for /livez, /readyz and /metrics; unset: the gRPC host, gRPC port + 10000.",
    )

    def http_address(self, grpc_port: int) -> str:
        """Where the HTTP endpoint listens, given the port the gRPC server got. Port 0 where the sum is no port."""
        if self.http_listen is not None:
            return self.http_listen
        host, configured = split_address(self.listen)
        port = grpc_port + HTTP_PORT_OFFSET if configured else 0
        return join_address(host, port if port <= 65535 else 0)


class TracedSettings(GrpcSettings):
    """Settings of a service that can tell a trace collector of the requests it serves."""

    otlp_endpoint: OptionalUrl = Field(
        default=None,
        description="URL of an OpenTelemetry collector (OTLP over HTTP, such as http://localhost:4318/v1/traces) that "
        "is told of requests whose client traces them; unset: nobody is.",
        json_schema_extra=env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    )


S = TypeVar("S", bound=Settings)


def load_settings(cls: type[S], argv: Sequence[str], environ: Mapping[str, str] | None = None) -> S:
    """Settings from flags, environment, file and defaults; SettingsError with one sentence if anything is wrong."""
    return _load(cls, argv, os.environ if environ is None else environ)[0]


def parse_args(cls: type[S], argv: Sequence[str] | None = None) -> S:
    """As `load_settings`, for a main program: a wrong setting ends it with code 2 and one sentence on stderr;
    `--help` and `--print-config` print and end it with 0."""
    try:
        settings, sources = _load(cls, sys.argv[1:] if argv is None else argv, os.environ)
    except SettingsError as error:
        sys.stderr.write(f"flotta-{cls.service}: {error}\n")
        raise SystemExit(2) from error
    if sources.print_config:
        sys.stdout.write(load.render_config(settings, sources))
        raise SystemExit(0)
    return settings


def _load(cls: type[S], argv: Sequence[str], environ: Mapping[str, str]) -> tuple[S, load.Sources]:
    try:
        sources = load.gather(cls, argv, environ)
    except load.SourceError as error:
        raise SettingsError(str(error)) from error
    token = _LOADING.set(sources)
    try:
        return cls(), sources
    except ValidationError as error:
        raise SettingsError(load.explain(error, sources)) from error
    finally:
        _LOADING.reset(token)
