"""Where the command line finds a cluster.

In this order: the flag, the environment (FLOTTA_GATEWAY, FLOTTA_COORDINATORS, FLOTTA_ADMIN), the configuration file,
the file that `flotta dev` leaves in its data directory (FLOTTA_DATA, or ./flotta-data), and the ports that a local
cluster uses by default. The key of the admin service is found the same way; a local cluster's is read from its data
directory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from flotta_runtime.tls import NO_TLS, TlsFiles

from flotta import cli_config
from flotta.cli_config import Config, EndpointError

DATA_DIR_DEFAULT = "flotta-data"
ENDPOINT_FILE = "endpoints.json"
ADMIN_KEY_FILE = "admin-api-key"
LOCAL_DATA_DIR = "data"  # where `make up` keeps a cluster
GATEWAY_DEFAULT = ("localhost:7000",)
COORDINATORS_DEFAULT = ("localhost:9001", "localhost:9002", "localhost:9003")
ADMIN_DEFAULT = "http://localhost:8089"
KEY_VARIABLES = ("FLOTTA_ADMIN_API_KEY", "KVDB_ADMIN_SECURITY_API_KEY")
KEY_FILE_VARIABLE = "FLOTTA_ADMIN_API_KEY_FILE"


@dataclass(frozen=True, slots=True)
class Flags:
    """What was said on the command line; None where nothing was."""

    gateway: str | None = None
    coordinators: str | None = None
    admin: str | None = None
    admin_key_file: Path | None = None
    config: Path | None = None
    tls: TlsFiles = NO_TLS


NO_FLAGS = Flags()


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses, where they were found (for error messages), and how to speak to them."""

    gateway: tuple[str, ...]
    coordinators: tuple[str, ...]
    gateway_from: str
    coordinators_from: str
    tls: TlsFiles = NO_TLS
    admin: str = ADMIN_DEFAULT
    admin_from: str = "the default"
    admin_key: str = field(default="", repr=False)


def data_dir(environ: Mapping[str, str]) -> Path:
    """The data directory of `flotta dev`."""
    return Path(environ.get("FLOTTA_DATA") or DATA_DIR_DEFAULT)


def find(flags: Flags, environ: Mapping[str, str] = os.environ) -> Endpoints:
    """The addresses to use. A CA that `flotta dev` wrote down is used for the addresses that it wrote down."""
    config = cli_config.load(flags.config, environ)
    path = data_dir(environ) / ENDPOINT_FILE
    written = read_endpoint_file(path)

    def candidates(name: str, flag: str | None, default: str) -> list[tuple[str | None, str]]:
        variable = f"FLOTTA_{name.upper()}"
        return [
            (flag, f"--{name}"),
            (environ.get(variable), variable),
            (config.get(name), str(config.path)),
            (written.get(name), str(path)),
            (default, "the default"),
        ]

    gateway, gateway_from = _first(candidates("gateway", flags.gateway, ",".join(GATEWAY_DEFAULT)))
    coordinators, coordinators_from = _first(
        candidates("coordinators", flags.coordinators, ",".join(COORDINATORS_DEFAULT))
    )
    admin, admin_from = _first(candidates("admin", flags.admin, ADMIN_DEFAULT))
    tls = flags.tls or _configured_tls(config)
    if not tls and "tls_ca" in written and gateway_from == str(path):
        tls = TlsFiles(ca_file=Path(written["tls_ca"]))
    local_dir = {str(path): path.parent, "the default": Path(LOCAL_DATA_DIR)}.get(admin_from)
    return Endpoints(
        parse_addresses(gateway, gateway_from),
        parse_addresses(coordinators, coordinators_from),
        gateway_from,
        coordinators_from,
        tls,
        parse_url(admin, admin_from),
        admin_from,
        _admin_key(flags, environ, config, local_dir),
    )


def read_endpoint_file(path: Path) -> dict[str, str]:
    """What `flotta dev` wrote, or nothing when there is no such file. Lists of addresses are joined by commas."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise EndpointError(f"{path} cannot be read: {error.strerror}") from error
    try:
        content = json.loads(text)
    except ValueError as error:
        raise EndpointError(f"{path} is not JSON; remove it, or start `flotta dev` again") from error
    if not isinstance(content, dict):
        raise EndpointError(f"{path} does not hold a JSON object; remove it, or start `flotta dev` again")
    return {name: value for name, value in content.items() if isinstance(value, str)}


def parse_addresses(text: str, source: str) -> tuple[str, ...]:
    """host:port,host:port as a tuple; EndpointError names the source and the bad part."""
    addresses = tuple(part.strip() for part in text.split(",") if part.strip())
    if not addresses:
        raise EndpointError(f"{source} names no address; write host:port")
    for address in addresses:
        host, colon, port = address.rpartition(":")
        if not (colon and host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            raise EndpointError(f"{source}: {address!r} is no address; write host:port")
    return addresses


def parse_url(text: str, source: str) -> str:
    """The URL of the admin service without a slash at its end; EndpointError names the source."""
    text = text.strip().rstrip("/")
    wrong = EndpointError(f"{source}: {text!r} is no URL; write http://host:port or https://host:port")
    try:
        found = urlsplit(text)
        usable = found.scheme in ("http", "https") and found.hostname and found.port != 0
    except ValueError as error:
        raise wrong from error
    if not usable or found.path or found.query or found.fragment:
        raise wrong
    return text


def _configured_tls(config: Config) -> TlsFiles:
    return TlsFiles(
        config.file("tls_cert"), config.file("tls_key"), None, config.file("tls_ca"), config.get("tls_server_name")
    )


def _admin_key(flags: Flags, environ: Mapping[str, str], config: Config, local_dir: Path | None) -> str:
    """The key, or nothing when there is none to be found. A file that was named must be there."""
    if flags.admin_key_file is not None:
        return _read_key(flags.admin_key_file, "--admin-key-file")
    for variable in KEY_VARIABLES:
        if environ.get(variable, "").strip():
            return environ[variable].strip()
    if environ.get(KEY_FILE_VARIABLE):
        return _read_key(Path(environ[KEY_FILE_VARIABLE]), KEY_FILE_VARIABLE)
    if config.get("admin_key"):
        return str(config.get("admin_key"))
    configured = config.file("admin_key_file")
    if configured is not None:
        return _read_key(configured, f"{config.path}: admin_key_file")
    if local_dir is not None and (local_dir / ADMIN_KEY_FILE).exists():
        return _read_key(local_dir / ADMIN_KEY_FILE, "the local cluster's key")
    return ""


def _read_key(path: Path, source: str) -> str:
    try:
        key = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise EndpointError(f"{source}: {path} cannot be read: {reason}") from error
    if not key:
        raise EndpointError(f"{source}: {path} is empty")
    return key


def _first(candidates: list[tuple[str | None, str]]) -> tuple[str, str]:
    """The first text that is one; the last of the candidates always is."""
    return next((text, source) for text, source in candidates if text)
