"""Where the command line finds a cluster.

In this order: the flag, the environment (FLOTTA_GATEWAY, FLOTTA_COORDINATORS), the file that `flotta dev` leaves in
its data directory (FLOTTA_DATA, or ./flotta-data), and the ports that a local cluster uses by default.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flotta_runtime.tls import NO_TLS, TlsFiles

DATA_DIR_DEFAULT = "flotta-data"
ENDPOINT_FILE = "endpoints.json"
GATEWAY_DEFAULT = ("localhost:7000",)
COORDINATORS_DEFAULT = ("localhost:9001", "localhost:9002", "localhost:9003")


class EndpointError(ValueError):
    """An address or an endpoint file is wrong; the text says which and how."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses, where they were found (for error messages), and how to speak to them."""

    gateway: tuple[str, ...]
    coordinators: tuple[str, ...]
    gateway_from: str
    coordinators_from: str
    tls: TlsFiles = NO_TLS


def data_dir(environ: Mapping[str, str]) -> Path:
    """The data directory of `flotta dev`."""
    return Path(environ.get("FLOTTA_DATA") or DATA_DIR_DEFAULT)


def find(
    gateway: str | None,
    coordinators: str | None,
    environ: Mapping[str, str] = os.environ,
    *,
    tls: TlsFiles = NO_TLS,
) -> Endpoints:
    """The addresses to use; the arguments are the flags, where given. A CA that `flotta dev` wrote down is used for the
    addresses that it wrote down."""
    path = data_dir(environ) / ENDPOINT_FILE
    written = read_endpoint_file(path)
    found_gateway, gateway_from = _first(
        (gateway, "--gateway"),
        (environ.get("FLOTTA_GATEWAY"), "FLOTTA_GATEWAY"),
        (written.get("gateway"), str(path)),
        (",".join(GATEWAY_DEFAULT), "the default"),
    )
    found_coordinators, coordinators_from = _first(
        (coordinators, "--coordinators"),
        (environ.get("FLOTTA_COORDINATORS"), "FLOTTA_COORDINATORS"),
        (written.get("coordinators"), str(path)),
        (",".join(COORDINATORS_DEFAULT), "the default"),
    )
    if not tls and "tls_ca" in written and gateway_from == str(path):
        tls = TlsFiles(ca_file=Path(written["tls_ca"]))
    return Endpoints(found_gateway, found_coordinators, gateway_from, coordinators_from, tls)


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


def _first(*candidates: tuple[str | None, str]) -> tuple[tuple[str, ...], str]:
    for text, source in candidates:
        if text:
            return parse_addresses(text, source), source
    raise EndpointError("no address given")
